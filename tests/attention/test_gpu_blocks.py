"""Which tiles the GPU kernels visit, and of which they read no ids."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringrl.attention.block_attention import NEVER_SEEN
from ringrl.attention.kernels.block_ranges import make_k_ids, make_q_ids
from ringrl.attention.kernels.gpu_blocks import make_visits
from ringrl.attention.kernels.gpu_tiles import Tile
from tests.attention.shard_cases import visible
from tests.attention.token_rows import positions, segments

TILE = Tile(64, 32, 4)


@partial(jax.jit, static_argnames=("runs", "by_keys"))
def _visits(q, k, q_segments, k_segments, runs, by_keys):
    return make_visits(make_q_ids(q, q_segments), make_k_ids(k, k_segments), TILE, runs, by_keys=by_keys)


def visits(q, k, q_segments=None, k_segments=None, *, runs=1, by_keys=False):
    return _visits(q, k, q_segments, k_segments, runs, by_keys).tolist()


def test_causality():
    """First visited, first and end of those that are seen whole, end of those that are visited."""
    here = positions((0, 256))
    assert visits(here, here) == [[[[0, 2, 2, 2]], [[0, 0, 2, 4]], [[0, 0, 4, 6]], [[0, 0, 6, 8]]]]
    assert visits(positions((256, 512)), here) == [[[[0, 0, 8, 8]]] * 4]
    assert visits(here, positions((256, 512))) == [[[[0, 0, 0, 0]]] * 4]
    by_keys = visits(here, here, by_keys=True)
    assert by_keys[0][:3] == [[[0, 1, 4, 4]], [[0, 1, 4, 4]], [[1, 2, 4, 4]]]


def test_two_runs_of_a_zigzag_shard():
    own = positions((128, 256), (768, 896))
    earlier = positions((0, 128), (896, 1024))
    assert visits(own, own, runs=2)[0] == [
        [[0, 2, 2, 2], [0, 0, 0, 0]],
        [[0, 0, 2, 4], [0, 0, 0, 0]],
        [[0, 0, 4, 4], [4, 6, 6, 6]],
        [[0, 0, 4, 4], [4, 4, 6, 8]],
    ]
    assert visits(own, earlier, runs=2)[0] == [[[0, 0, 4, 4], [0, 0, 0, 0]]] * 4


def test_segments_and_padding():
    here, ids = positions((0, 256)), segments([(1, 96), (2, 100), (0, 60)])
    rows = visits(here, here, ids, ids)[0]
    assert rows == [[[0, 2, 2, 2]], [[0, 4, 4, 4]], [[3, 3, 4, 6]], [[3, 7, 7, 7]]]
    half = jnp.where(here < 128, NEVER_SEEN, here)  # the late half of a shard, as a ring takes it
    assert visits(here, half)[0] == [[[0, 0, 0, 0]], [[0, 0, 0, 0]], [[4, 6, 6, 6]], [[4, 4, 6, 8]]]


@pytest.mark.parametrize("seed", range(5))
def test_every_visible_pair_is_visited_and_whole_tiles_are_whole(seed):
    rng = np.random.default_rng(seed)
    q, k = (jnp.asarray(np.sort(rng.integers(0, 400, 256)), jnp.int32)[None] for _ in range(2))
    q_segments, k_segments = (jnp.asarray(rng.integers(0, 3, (2, 8)).repeat(32, 1), jnp.int32) for _ in range(2))
    mask = np.asarray(visible(q, k, q_segments, k_segments))[:, 0]
    tiles = mask.reshape(2, 4, 64, 8, 32)
    seen, whole = tiles.any((2, 4)), tiles.all((2, 4))
    table = np.asarray(visits(q, k, q_segments, k_segments, runs=2))
    for row, tile, run in np.ndindex(2, 4, 2):
        first, stretch, after, end = table[row, tile, run]
        numbers = np.arange(run * 4, run * 4 + 4)
        inside = (numbers >= first) & (numbers < end)
        assert not seen[row, tile, numbers[~inside]].any()
        assert whole[row, tile, stretch:after].all() and first <= stretch <= after <= end


def test_the_table_is_linear_in_the_tokens():
    ids = jax.ShapeDtypeStruct((8, 131072), jnp.int32)

    def table(positions, segments):
        return make_visits(make_q_ids(positions, segments), make_k_ids(positions, segments), TILE, 2)

    assert jax.eval_shape(table, ids, ids).shape == (8, 2048, 2, 4)
