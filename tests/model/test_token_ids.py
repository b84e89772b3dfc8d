"""Token ids embedded together with those before them, and lines encoded as trials are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ringrl.config import ModelConfig
from ringrl.model.cached_decoder import CachedDecoder
from ringrl.model.output_heads import Vocabulary
from ringrl.model.token_ids import TokenIds
from ringrl.model.transformer import Transformer, make_attend

IDS = np.array([[3, 1, 4, 1, 5, 9]], np.int32)


def fields(ids=IDS, previous=2):
    """A row of one segment, with the ids before each token."""
    position = np.arange(ids.shape[1], dtype=np.int32)[None].repeat(len(ids), 0)
    before = [np.pad(ids, ((0, 0), (k, 0)))[:, : ids.shape[1]] for k in range(1, previous + 1)]
    arrays = {"token": ids, "position": position, "segment_ids": np.ones_like(ids)}
    return {name: jnp.asarray(x) for name, x in (arrays | {"previous": np.stack(before, -1)}).items()}


def test_a_token_is_the_sum_of_its_vector_and_those_of_the_ids_before_it():
    tokens = TokenIds(10, previous=2)
    embed = tokens.embedder(tokens.sizes, ModelConfig(width=8), rngs=nnx.Rngs(0))
    own, before = (np.asarray(table.embedding[...]) for table in (embed.token, embed.previous))
    x = np.asarray(embed(fields()).x[0])
    np.testing.assert_allclose(x[0], own[3], rtol=1e-6)  # there is none before it: not even an id of 0
    np.testing.assert_allclose(x[1], own[1] + before[3], rtol=1e-5)
    np.testing.assert_allclose(x[2], own[4] + before[1] + before[10 + 3], rtol=1e-5)
    np.testing.assert_allclose(x[5], own[9] + before[5] + before[10 + 1], rtol=1e-5)


def test_lines_are_encoded_as_trials():
    def embedded(trial_encoding):
        tokens, config = TokenIds(10, line=2), ModelConfig(width=8, trial_encoding=trial_encoding, max_trials=2)
        embed = tokens.embedder({}, config, rngs=nnx.Rngs(0))
        return embed, embed(fields())

    np.testing.assert_array_equal(embedded("rotary")[1].trials, [[0, 0, 1, 1, 2, 2]])
    embed, given = embedded("table")
    table, own = (np.asarray(each.embedding[...]) for each in (embed.line, embed.token))
    np.testing.assert_allclose(given.x[0], own[IDS[0]] + table[[0, 0, 1, 1, 1, 1]], rtol=1e-5)  # the last is shared
    assert given.trials is None and embedded("none")[1].trials is None


@pytest.mark.parametrize("model", [{"position_encoding": "none", "trial_encoding": "none"}, {"rope_base": 100.0}])
def test_a_cache_gives_what_one_pass_gives(model):
    tokens, rng = TokenIds(10, previous=2, line=2), np.random.default_rng(0)
    model = Transformer(ModelConfig(width=16, **model), tokens, Vocabulary(10), tokens.sizes, rngs=nnx.Rngs(0))
    row = fields(rng.integers(10, size=(2, 12)).astype(np.int32))
    whole = model(row, make_attend(None, "zigzag", None))
    decoder = CachedDecoder(model)
    part, cache = decoder.fill(jax.tree.map(lambda x: x[:, :7], row), decoder.empty(2, 12, 7))
    parts = [part]
    for at in range(7, 12):
        now = jax.tree.map(lambda x: x[:, at : at + 1], row)  # noqa: B023
        raw, cache = decoder.step(now, now, cache)
        parts.append(raw[:, None])
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-6)
