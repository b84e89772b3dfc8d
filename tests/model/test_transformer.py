"""The decoder: causality and isolation by gradient, decoding against the full forward, feed-forward blocks, meshes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ringrl.config import MeshConfig, ModelConfig, change_section
from ringrl.model.cached_decoder import CachedDecoder
from ringrl.model.output_heads import TanhMSE
from ringrl.model.token_blocks import blockwise
from ringrl.model.tokens import ORDER, TokenLayout
from ringrl.model.transformer import Transformer, make_attend
from ringrl.training.mesh import make_mesh

SIZES = {"observation": 3, "action": 2}
SHAPE = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "feed_forward_block": 8, "max_steps": 16, "max_trials": 4}
CONFIG = ModelConfig(**SHAPE, trial_encoding="rotary")
TABLES = ModelConfig(**SHAPE, trial_encoding="table")
SETS = ModelConfig(**SHAPE, position_encoding="none", trial_encoding="none")
LAYOUTS = [TokenLayout(ORDER), TokenLayout(("return_to_go", "observation", "action")), TokenLayout(ORDER, fused=True)]


def make_steps(segments: list[list[int]], seed: int = 0) -> dict[str, jax.Array]:
    """Random rows whose segment ids are given; position, step and trial count within each segment."""
    ids = np.array(segments, np.int32)
    batch, length = ids.shape
    rng = np.random.default_rng(seed)
    position = np.zeros_like(ids)
    for row in range(batch):
        for t in range(1, length):
            position[row, t] = position[row, t - 1] + 1 if ids[row, t] == ids[row, t - 1] else 0
    draw = lambda *shape: rng.normal(size=(batch, length, *shape)).astype(np.float32)  # noqa: E731
    action, reward, completion = draw(2), draw(), draw()
    first = position == 0

    def previous(x: np.ndarray) -> np.ndarray:
        shifted = np.roll(x, 1, axis=1)
        shifted[first] = 0
        return shifted

    steps = {
        "observation": draw(3), "action": action, "reward": reward, "return_to_go": draw(), "completion": completion,
        "previous_action": previous(action), "previous_reward": previous(reward),
        "previous_completion": previous(completion),
        "step": position % 4, "trial": position // 4, "position": position, "segment_ids": ids,
        "weight": (ids > 0).astype(np.float32),
    }  # fmt: skip
    return {name: jnp.asarray(x) for name, x in steps.items()}


def make_model(layout: TokenLayout, config: ModelConfig = CONFIG) -> Transformer:
    model = Transformer(config, layout, TanhMSE(), SIZES, rngs=nnx.Rngs(0))
    # Embeddings of step and trial start small; let them matter.
    return model


ATTEND = make_attend(None, "contiguous", None)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_prediction_depends_on_the_past_of_its_segment_alone(layout):
    steps = make_steps([[1, 1, 1, 2, 2, 2, 2, 0]])
    model = make_model(layout)
    inputs = (
        ("observation", "action", "reward")
        if not layout.fused
        else ("observation", "previous_action", "previous_reward")
    )

    def at(values, t):
        return jnp.sum(model(steps | values, ATTEND)[0, t])

    for t in (2, 5):
        gradients = jax.grad(partial(at, t=t))({name: steps[name] for name in inputs})
        start = 0 if t < 3 else 3
        for name in set(inputs) & set(layout.modalities) | {"observation"}:
            reach = np.abs(np.asarray(gradients[name][0])).reshape(8, -1).sum(axis=1)
            seen = t + 1 if name == "observation" or layout.fused else t  # the step's own action must not leak
            assert (reach[:start] == 0).all() and (reach[seen:] == 0).all(), name
            assert (reach[start:seen] > 0).all(), name


@pytest.mark.parametrize("config", [CONFIG, TABLES, SETS], ids=["rotary", "tables", "sets"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("ring", [1, 2, 4])
def test_decoding_step_by_step_equals_the_full_forward(ring, layout, config):
    steps = make_steps([[1] * 8, [1] * 3 + [2] * 5])
    model = make_model(layout, config)
    full = model(steps, ATTEND)
    one = lambda t: {name: x[:, t : t + 1] for name, x in steps.items()}  # noqa: E731
    mesh = None if ring == 1 else make_mesh(MeshConfig(seq=ring), jax.devices()[:ring])
    decoder, tokens = CachedDecoder(model, mesh), layout.tokens_per_step
    cache = decoder.empty(2, 9 * tokens, tokens)
    previous = one(0) | {"segment_ids": jnp.zeros((2, 1), jnp.int32)}
    for t in range(8):
        raw, cache = decoder.step(previous, one(t), cache)
        np.testing.assert_allclose(raw, full[:, t], atol=2e-5)
        previous = one(t)
    # Filled halfway in two chunks, then decoded: the same.
    cache = decoder.empty(2, 9 * tokens, 2 * tokens)
    for start in (0, 2):
        raw, cache = decoder.fill({name: x[:, start : start + 2] for name, x in steps.items()}, cache)
        np.testing.assert_allclose(raw, full[:, start : start + 2], atol=2e-5)
    raw, _ = decoder.step(one(3) | {"segment_ids": jnp.zeros((2, 1), jnp.int32)}, one(4), cache)
    np.testing.assert_allclose(raw, full[:, 4], atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_by_rotation_only_how_many_trials_ago_counts(layout):
    steps, model = make_steps([[1] * 12]), make_model(layout)
    outputs = model(steps, ATTEND)
    later = steps | {"trial": steps["trial"] + 10_000}
    np.testing.assert_allclose(model(later, ATTEND), outputs, atol=2e-5)
    apart = model(steps | {"trial": 2 * steps["trial"]}, ATTEND)
    np.testing.assert_allclose(apart[:, :4], outputs[:, :4], atol=2e-5)
    assert (np.abs(apart - outputs)[:, 4:] > 1e-4).any(axis=(2, 3)).all()


def test_without_positions_the_order_of_earlier_steps_is_nothing():
    """Of one layer: in the next, what an earlier step has read would tell which steps were before it."""
    model = make_model(LAYOUTS[2], change_section(SETS, {"layers": 1}, "test"))
    steps = make_steps([[1] * 12])
    order = np.append(np.random.default_rng(0).permutation(11), 11)
    mixed = {name: x[:, order] for name, x in steps.items()} | {"position": steps["position"]}
    np.testing.assert_allclose(model(mixed, ATTEND)[:, -1], model(steps, ATTEND)[:, -1], atol=2e-5)
    rotated = make_model(LAYOUTS[2], change_section(CONFIG, {"layers": 1}, "test"))
    assert np.abs(rotated(mixed, ATTEND)[:, -1] - rotated(steps, ATTEND)[:, -1]).max() > 1e-3


@pytest.mark.parametrize("length", [24, 27, 8, 6])
def test_blockwise_applies_the_function_to_every_token_in_its_position(length):
    x, w = jax.random.normal(jax.random.key(0), (2, length, 5)), jnp.arange(1.0, 6.0)
    heads, constants = jax.random.normal(jax.random.key(1), (3, 2, length, 5)), jnp.arange(2 * length).reshape(2, -1)

    def f(w, tokens, constants):
        y, heads = tokens
        total = jnp.sum(heads * w[None, None, None], axis=0)
        return jnp.sin(y) * total + constants.astype(jnp.float32)[..., None] * w[None, None]

    def blocks(w, tokens):
        return blockwise(f, w, tokens, 8, axes=(1, 2), constants=constants)

    def whole(w, tokens):
        return f(w, tokens, constants)

    np.testing.assert_allclose(blocks(w, (x, heads)), whole(w, (x, heads)), atol=1e-5)
    got, expected = (
        jax.grad(lambda *args, g=g: jnp.sum(jnp.cos(g(*args))), argnums=(0, 1))(w, (x, heads)) for g in (blocks, whole)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, expected)


def test_gradients_of_weights_are_summed_over_blocks_in_float32():
    # A thousand times 1 and then nothing more: bfloat16 counts no further than 256.
    x = jnp.ones((1, 1024, 1), jnp.bfloat16)
    f = lambda w, x, _: x * w[None, None]  # noqa: E731
    gradient = jax.grad(lambda w: jnp.sum(blockwise(f, w, x, 1).astype(jnp.float32)))(jnp.ones(1, jnp.bfloat16))
    assert float(gradient[0]) == 1024


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 1, 1, 4, 1), marks=pytest.mark.slow),
        pytest.param((2, 2, 2, 1, 1), marks=pytest.mark.slow),
        (1, 2, 1, 4, 1),
        (1, 1, 2, 2, 2),
    ],
    ids=str,
)
def test_every_mesh_gives_the_outputs_and_gradients_of_one_device(shape):
    steps = make_steps([[1] * 10 + [2] * 6, [1] * 16, [1] * 4 + [2] * 12, [1] * 15 + [0]])
    model = make_model(LAYOUTS[0])
    graph, params = nnx.split(model)

    def loss(params, steps, attend, mesh):
        return jnp.sum(jnp.square(nnx.merge(graph, params)(steps, attend, mesh)) * steps["weight"][..., None, None])

    expected = jax.jit(jax.value_and_grad(partial(loss, attend=ATTEND, mesh=None)))(params, steps)
    mesh = jax.make_mesh(
        shape,
        ("data", "fsdp", "tensor", "seq", "heads"),
        axis_types=(AxisType.Auto,) * 5,
        devices=jax.devices()[: int(np.prod(shape))],
    )
    attend = make_attend(mesh, "contiguous", None)
    placed = jax.device_put(steps, NamedSharding(mesh, P(("data", "fsdp"), ("seq", "heads"))))
    got = jax.jit(jax.value_and_grad(partial(loss, attend=attend, mesh=mesh)))(params, placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, expected)
