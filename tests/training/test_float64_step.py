"""A training step in float32 against the same step written out in float64 (`tests.training.float64_step`)."""

from functools import partial

import jax
import numpy as np
import pytest

from ringrl.agent import make_decoder
from ringrl.training.mesh import make_mesh
from ringrl.training.state import init_state, make_optimizer, make_train_step, set_rope_base
from tests.training.float64_step import adamw, mean_loss

SIZES = {"observation": 3, "action": 2}
MODEL = {
    "layers": 2,
    "width": 16,
    "heads": 4,
    "kv_heads": 2,
    "max_steps": 5,
    "max_trials": 3,
    "trial_encoding": "table",
}
STEPS = 3


def make_batch(rows=4, steps=12):
    """Two segments a row and two steps of padding, of three trials each; the time step goes beyond the table."""
    rng, shape = np.random.default_rng(0), (rows, steps)
    wide = {"observation": 3, "action": 2, "previous_action": 2}
    scalars = ("reward", "return_to_go", "completion", "previous_reward", "previous_completion")
    batch = {name: rng.normal(size=(*shape, width)) for name, width in wide.items()}
    batch |= {name: rng.normal(size=shape) for name in scalars}
    batch["action"] = np.tanh(batch["action"])
    position = np.array([0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 0, 0])
    numbers = {
        "position": position,
        "step": position,
        "trial": position // 3,
        "segment_ids": [1] * 7 + [2] * 3 + [0] * 2,
    }
    batch |= {name: np.broadcast_to(np.asarray(each, np.int32), shape) for name, each in numbers.items()}
    batch["weight"] = (batch["segment_ids"] > 0) * rng.uniform(0.5, 1.5, shape)
    return {name: each.astype(np.float32) if each.dtype == np.float64 else each for name, each in batch.items()}


def in_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64 if np.asarray(x).dtype.kind == "f" else None), tree)


def gradient(loss, params, batch):
    """In float64, and not by the model's own code."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return jax.tree.map(np.asarray, jax.grad(lambda p: loss(jax.numpy, params=p, batch=batch))(params))


def adam_moments(state):
    found = [x for x in jax.tree.leaves(state.optimizer, is_leaf=lambda x: hasattr(x, "nu")) if hasattr(x, "nu")]
    return [jax.tree.leaves(in_float64(each)) for each in (found[0].mu, found[0].nu)]


@pytest.mark.parametrize("head, clip, accumulation", [("tanh_mse", 0.05, 1), ("gaussian", 1e4, 2)])
def test_a_step_is_that_of_float64(head, clip, accumulation, tiny_config):
    optimizer = {"learning_rate": 0.01, "warmup_steps": 0, "weight_decay": 0.1, "clip_norm": clip}
    config = tiny_config(
        {"name": "agentic_transformer", "trajectories": 2, "fused": True, "head": head},
        model=MODEL,
        optimizer=optimizer | {"accumulation": accumulation},
        training={"batch": 4, "row_steps": 12, "steps": 10},
    )
    decoder, mesh = make_decoder(config.agent), make_mesh(config.mesh)
    config = set_rope_base(config, decoder)
    graph, state = init_state(config, decoder, SIZES, mesh)
    train_step = make_train_step(config, decoder, graph, mesh, jax.tree.map(lambda x: x.sharding, state))
    _, schedule = make_optimizer(config.optimizer, config.training.steps)
    batch, exact = make_batch(), in_float64(make_batch())
    loss = partial(mean_loss, model=config.model, base=config.model.rope_base or 0.0)
    for t in range(1, STEPS + 1):
        params, moments = in_float64(state.params), adam_moments(state)
        state, metrics = train_step(state, batch)
        expected = gradient(loss, params, exact)
        check_by_differences(loss, params, exact, expected)
        paths, gradients = zip(*jax.tree_util.tree_flatten_with_path(expected)[0], strict=True)
        decayed = [path[-1].key in ("kernel", "embedding") for path in paths]
        rate = float(schedule(t - 1))
        new, first, second = adamw(config.optimizer, rate, gradients, moments, jax.tree.leaves(params), decayed, t)
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        assert float(metrics["loss"]) == pytest.approx(float(loss(np, params=params, batch=exact)), rel=3e-6)
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5) and (norm > clip) == (head == "tanh_mse")
        assert float(metrics["weight_max"]) == pytest.approx(max(np.abs(p).max() for p in new), rel=1e-5)
        compare(new, first, second, state, rate, min(norm, clip), 1 - config.optimizer.beta2**t)


def check_by_differences(loss, params, batch, gradients):
    """The gradient along a random direction is the loss's own difference."""
    rng, size = np.random.default_rng(1), 1e-5
    along = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    moved = lambda size: jax.tree.map(lambda x, d: x + size * d, params, along)  # noqa: E731
    ahead, back = (loss(np, params=moved(sign * size), batch=batch) for sign in (1, -1))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradients, along)))
    assert (ahead - back) / (2 * size) == pytest.approx(slope, rel=1e-6)


def compare(new, first, second, state, rate, norm, correction):
    """Moments agree to a millionth of the gradient's norm; weights to that share of a step which this means.

    A weight moves by about the learning rate, regardless of its gradient: where that is small, so is what is known.
    """
    error = 1e-6 * norm
    for expected, found in zip((first, second), adam_moments(state), strict=True):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=error)
    moved = 0
    for p, v, found in zip(new, second, jax.tree.leaves(in_float64(state.params)), strict=True):
        known = error / (np.sqrt(v / correction) + 1e-12)
        bound = 3e-7 * np.abs(p) + rate * np.minimum(1e-4 + 10 * known, 4.0)
        assert np.all(np.abs(found - p) <= bound)
        moved += np.count_nonzero(known < 1e-2)
    assert moved > 0.5 * sum(p.size for p in new), "the bound says something of most weights"
