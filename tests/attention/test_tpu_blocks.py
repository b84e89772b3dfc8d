"""Which pairs of blocks the TPU kernels visit."""

import jax
import jax.numpy as jnp

from ringrl.attention.kernels.block_ranges import make_k_ids, make_q_ids
from ringrl.attention.kernels.tpu_blocks import make_schedule
from tests.attention.token_rows import positions, segments


def test_visits():
    """Rows of the grid start at their first needed block, and fetch the next row's while they run empty."""
    q_ids, k_ids = make_q_ids(positions((0, 512)), None), make_k_ids(positions((0, 512)), None)
    schedule = make_schedule(q_ids, k_ids, 128, 128)
    assert (schedule.tables.first.tolist(), schedule.tables.last.tolist()) == ([0, 0, 0, 0], [0, 1, 2, 3])
    assert schedule.width == 4 and not schedule.batched
    by_keys = make_schedule(q_ids, k_ids, 128, 128, by_keys=True).tables
    assert (by_keys.first.tolist(), by_keys.last.tolist()) == ([0, 1, 2, 3], [3, 3, 3, 3])
    assert by_keys.after.tolist() == [1, 2, 3, 3]

    future = make_schedule(q_ids, make_k_ids(positions((512, 1024)), None), 128, 128)
    assert future.width == 1 and future.tables.last.tolist() == [-1] * 4 and future.tables.after.tolist() == [0] * 4

    ids = segments([(1, 128), (2, 128), (0, 128), (3, 128)], [(5, 512)])
    packed = make_schedule(make_q_ids(positions((0, 512)), ids), make_k_ids(positions((0, 512)), ids), 128, 128)
    assert packed.batched
    assert packed.tables.first.tolist() == [0, 1, 0, 3, 0, 0, 0, 0]
    assert packed.tables.last.tolist() == [0, 1, -1, 3, 0, 1, 2, 3]
    assert packed.tables.after.tolist() == [1, 3, 3, 3, 0, 0, 0, 3]


def test_scalar_memory_is_linear_in_blocks():
    ids = jax.ShapeDtypeStruct((8, 131072), jnp.int32)

    def tables(positions, segments):
        q_ids, k_ids = make_q_ids(positions, segments), make_k_ids(positions, segments)
        return make_schedule(q_ids, k_ids, 512, 1024).tables

    sizes = [x.size for x in jax.tree.leaves(jax.eval_shape(tables, ids, ids))]
    assert sum(sizes) == 8 * (7 * 256 + 4 * 128)
