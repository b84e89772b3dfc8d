"""Tokens: their order, which one predicts, positions and segments, and that a rollout builds the same ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ringrl.config import ModelConfig, change_section
from ringrl.model.tokens import ORDER, TokenEmbedder, TokenLayout

SIZES = {"observation": 3, "action": 2}
WIDTH = 8
CONFIG = ModelConfig(width=WIDTH, max_steps=4, max_trials=2)
LAYOUTS = [
    TokenLayout(ORDER),
    TokenLayout(("observation", "action")),
    TokenLayout(("return_to_go", "observation", "action")),
    TokenLayout(ORDER, fused=True),
]


def make_steps(length: int = 6, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    floats = {"observation": 3, "action": 2, "reward": 0, "return_to_go": 0, "completion": 0}
    floats |= {"previous_action": 2, "previous_reward": 0, "previous_completion": 0}
    steps = {name: rng.normal(size=(2, length, size) if size else (2, length)) for name, size in floats.items()}
    steps = {name: jnp.asarray(x, jnp.float32) for name, x in steps.items()}
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (2, length))
    ids = jnp.asarray([[1] * length, [1] * 2 + [2] * (length - 3) + [0]], jnp.int32)
    return steps | {"step": index % 3, "trial": index // 3, "position": index, "segment_ids": ids}


def make_embedder(layout: TokenLayout, encoding: str = "table") -> TokenEmbedder:
    config = change_section(CONFIG, {"trial_encoding": encoding}, "test")
    return TokenEmbedder(layout, SIZES, config, rngs=nnx.Rngs(0))


def test_modalities_come_in_the_papers_order():
    layout = TokenLayout(("action", "reward", "observation", "return_to_go"))
    assert layout.modalities == ("return_to_go", "observation", "action", "reward")
    assert (layout.tokens_per_step, layout.read_index) == (4, 1)
    assert TokenLayout(("observation", "action")).read_index == 0
    fused = TokenLayout(ORDER, fused=True)
    assert (fused.tokens_per_step, fused.read_index) == (1, 0)
    for modalities in (("action",), ("observation", "pixels")):
        with pytest.raises(ValueError, match="modalities must include"):
            TokenLayout(modalities)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_shapes_positions_and_segments(layout):
    steps, per_step = make_steps(), layout.tokens_per_step
    x, position, segment, _ = make_embedder(layout)(steps)
    assert x.shape == (2, 6 * per_step, WIDTH)
    np.testing.assert_array_equal(position[0], np.arange(6 * per_step))
    np.testing.assert_array_equal(
        segment[1].reshape(6, per_step), np.repeat(steps["segment_ids"][1], per_step).reshape(6, -1)
    )
    read = make_embedder(layout).read(x)
    np.testing.assert_array_equal(read, x[:, layout.read_index :: per_step])


@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=str)
def test_an_interleaved_token_holds_its_own_modality_and_nothing_else(layout):
    embedder, steps = make_embedder(layout), make_steps()
    x = embedder(steps).x
    for index, name in enumerate(layout.modalities):
        changed = np.asarray(embedder(steps | {name: steps[name] + 1.0})[0] != x).any(axis=(0, 2))
        np.testing.assert_array_equal(np.flatnonzero(changed), np.arange(6) * layout.tokens_per_step + index)
    for name in ("previous_action", "previous_reward", "previous_completion"):
        np.testing.assert_array_equal(embedder(steps | {name: steps[name] + 1.0})[0], x)


def test_a_fused_token_never_holds_what_it_predicts():
    embedder, steps = make_embedder(LAYOUTS[3]), make_steps()
    x = embedder(steps).x
    for name in ("action", "reward", "completion"):
        np.testing.assert_array_equal(embedder(steps | {name: steps[name] + 1.0})[0], x)
        previous = f"previous_{name}"
        assert (embedder(steps | {previous: steps[previous] + 1.0})[0] != x).any(axis=2).all()


def at(embedder: TokenEmbedder, step: int, trial: int) -> np.ndarray:
    """The tokens of `make_steps`, were they all of this step and trial."""
    numbers = {"step": jnp.full((2, 6), step, jnp.int32), "trial": jnp.full((2, 6), trial, jnp.int32)}
    return np.asarray(embedder(make_steps() | numbers)[0])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_tables_tell_tokens_apart_up_to_their_last_row(layout):
    tokens = partial(at, make_embedder(layout))
    assert (tokens(0, 0) != tokens(1, 0)).any(axis=2).all() and (tokens(0, 0) != tokens(0, 1)).any(axis=2).all()
    last, further = (CONFIG.max_steps - 1, CONFIG.max_trials - 1), (CONFIG.max_steps + 7, CONFIG.max_trials + 7)
    np.testing.assert_array_equal(tokens(*last), tokens(*further))


@pytest.mark.parametrize("encoding", ["rotary", "none"])
def test_without_a_table_nothing_of_the_trial_is_added(encoding):
    embedder = make_embedder(LAYOUTS[0], encoding)
    np.testing.assert_array_equal(at(embedder, 1, 0), at(embedder, 1, 9))
    assert (at(embedder, 1, 0) != at(embedder, 2, 0)).any(axis=2).all()
    trials = embedder(make_steps()).trials
    assert (trials is None) == (encoding == "none")


@pytest.mark.parametrize("encoding", ["table", "rotary", "none"])
def test_tables_keep_their_paths_in_checkpoints(encoding):
    state = nnx.to_pure_dict(nnx.state(make_embedder(LAYOUTS[0], encoding), nnx.Param))
    assert jax.tree.map(jnp.shape, state["step"]) == {"embedding": (4, WIDTH)}
    expected = {"embedding": (2, WIDTH)} if encoding == "table" else None
    assert jax.tree.map(jnp.shape, state.get("trial")) == expected


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_rollout_adds_the_same_tokens_one_step_after_the_other(layout):
    embedder, steps = make_embedder(layout, "rotary"), make_steps()
    whole = [np.asarray(part) for part in embedder(steps)]
    one = lambda t: {name: x[:, t : t + 1] for name, x in steps.items()}  # noqa: E731
    previous = one(0) | {"segment_ids": jnp.zeros((2, 1), jnp.int32)}
    per_step, parts = layout.tokens_per_step, []
    for t in range(6):
        parts.append(embedder.following(previous, one(t)))
        assert parts[-1][0].shape[1] == per_step
        previous = one(t)
    x, position, segment, trial = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    lead = per_step - layout.read_index - 1  # tokens of the step before the first: there is none, so they are padding
    np.testing.assert_array_equal(segment[:, :lead], 0)
    total = 6 * per_step - lead
    np.testing.assert_allclose(x[:, lead:], whole[0][:, :total], atol=1e-6)
    np.testing.assert_array_equal(position[:, lead:], whole[1][:, :total])
    np.testing.assert_array_equal(segment[:, lead:], whole[2][:, :total])
    np.testing.assert_array_equal(trial[:, lead:], whole[3][:, :total])
    assert (np.diff(trial[0, lead:]) >= 0).all() and trial[0, -1] == 1
