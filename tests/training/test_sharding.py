"""Every way to spread a training step over eight devices gives the loss and the gradients of one device."""

import itertools
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringrl.agent import make_decoder
from ringrl.attention.layout import to_ring_order
from ringrl.model.sharding import AXES
from ringrl.training.mesh import make_mesh, place_batch
from ringrl.training.state import init_state, make_loss
from tests.builders import make_config

POLICIES = ("none", "block", "full", "offload")
MESHES = [mesh for mesh in itertools.product((1, 2, 4, 8), repeat=len(AXES)) if math.prod(mesh) == 8]
ROWS, STEPS, VOCABULARY = 8, 16, 11


ONE = (1,) * len(AXES)
LANGUAGE_MODEL = {
    "data": {"store": "no.npy", "task": "next_token"},
    "agent": {"name": "language_model", "bins": VOCABULARY},
    "model": {
        "layers": 2,
        "width": 32,
        "heads": 8,
        "kv_heads": 8,
        "hidden": 48,
        "feed_forward_block": 3,
        "activation": "swiglu",
    },
    "training": {"batch": ROWS, "row_steps": STEPS},
}


def shaped(mesh=ONE, **model):
    """The configuration of a language model on a mesh of AXES."""
    return make_config(LANGUAGE_MODEL, mesh=dict(zip(AXES, mesh, strict=True)), model=model)


@cache
def batch():
    """Two segments and some padding a row, in the order of time."""
    rng = np.random.default_rng(0)
    segments = np.where(np.arange(STEPS) < rng.integers(3, 12, (ROWS, 1)), 1, 2)
    segments[:, -1] = 0
    ids = {name: rng.integers(0, VOCABULARY, (ROWS, STEPS)).astype(np.int32) for name in ("token", "target")}
    position = np.where(segments == 1, np.arange(STEPS), np.arange(STEPS) - (segments == 1).sum(axis=1, keepdims=True))
    integers = {"position": position.astype(np.int32), "segment_ids": segments.astype(np.int32)}
    return ids | integers | {"weight": (segments > 0).astype(np.float32)}


def loss_and_gradients(config):
    decoder = make_decoder(config.agent)
    mesh = make_mesh(config.mesh)
    graph, state = init_state(config, decoder, {}, mesh)
    order = {name: to_ring_order(x, config.mesh.seq, config.mesh.ring_layout) for name, x in batch().items()}
    step = jax.jit(jax.value_and_grad(make_loss(config, decoder, graph, mesh)))
    loss, gradients = step(state.params, place_batch(order, mesh))
    shardings = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), gradients, state.params)
    return float(loss), jax.tree.map(np.asarray, gradients), all(jax.tree.leaves(shardings))


@cache
def of_one_device():
    return loss_and_gradients(shaped(remat="none"))


def check(config):
    (loss, gradients, placed), (expected_loss, expected, _) = loss_and_gradients(config), of_one_device()
    assert placed  # a gradient stays where its parameter is: nothing is gathered that need not be
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(np.abs(b).max(), 1.0))  # noqa: E731
    jax.tree.map(close, gradients, expected)


@pytest.mark.slow
@pytest.mark.parametrize("remat", POLICIES)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_under_every_policy(mesh, remat):
    check(shaped(mesh, remat=remat))


@pytest.mark.parametrize(("mesh", "remat"), [(mesh, POLICIES[i % 4]) for i, mesh in enumerate(MESHES[::10])], ids=str)
def test_some_meshes_under_some_policies(mesh, remat):
    check(shaped(mesh, remat=remat))


@pytest.mark.parametrize(("mesh", "remat"), [((1, 1, 1, 1, 1), "offload"), ((1, 2, 2, 2, 1), "block")], ids=str)
def test_groups_of_heads_change_nothing(mesh, remat):
    check(shaped(mesh, remat=remat, head_groups=2))


def test_a_layer_is_gathered_when_it_is_computed():
    """In the program of a scan over layers, no array is a whole stack of matrices."""
    config = shaped((1, 2, 1, 4, 1), remat="full", layers=3)
    decoder, mesh = make_decoder(config.agent), make_mesh(config.mesh)
    graph, state = init_state(config, decoder, {}, mesh)
    placed = place_batch(batch(), mesh)
    program = jax.jit(jax.value_and_grad(make_loss(config, decoder, graph, mesh))).lower(state.params, placed).compile()
    text = program.as_text()
    assert "f32[32,48]" in text  # one layer's matrix, whole
    assert "f32[3,4,48]" in text and "f32[3,32,48]" not in text  # the stack is spread over eight devices


@pytest.mark.parametrize("remat", POLICIES)
def test_no_gathered_parameters_are_kept_for_the_backward_pass(remat):
    config = shaped((1, 8, 1, 1, 1), remat=remat, layers=3, head_groups=2)
    decoder, mesh = make_decoder(config.agent), make_mesh(config.mesh)
    graph, state = init_state(config, decoder, {}, mesh)
    program = str(
        jax.make_jaxpr(jax.grad(make_loss(config, decoder, graph, mesh)))(state.params, place_batch(batch(), mesh))
    )
    # A stack of layers' matrices, whole on each of eight devices, would be one of these.
    kept = [shape for shape in ("3,256,32]", "3,256,48]", "3,384,32]") if shape in program]
    assert kept == []


def test_bfloat16_gradients_are_summed_in_float32():
    config = shaped((1, 8, 1, 1, 1), compute_dtype="bfloat16")
    decoder, mesh = make_decoder(config.agent), make_mesh(config.mesh)
    graph, state = init_state(config, decoder, {}, mesh)
    with jax.numpy_dtype_promotion("standard"):  # flax's norm promotes bfloat16 itself
        gradients = jax.jit(jax.grad(make_loss(config, decoder, graph, mesh)))
        lowered = gradients.lower(state.params, place_batch(batch(), mesh)).as_text()
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    scattered = [line for line in lowered.splitlines() if "reduce_scatter" in line]
    assert scattered and not any("bf16" in line for line in scattered)
