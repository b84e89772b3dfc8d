"""What the two TPU kernels share: which pairs of blocks they visit, the masks inside a block, and their grids.

The ranges of the blocks' ids (`block_ranges`) are prefetched to scalar memory; there is no table of pairs. The visits
of one row of the grid are the blocks from its first to its last needed one, and the grid is as wide as the widest row
needs: a hop of which nothing is visible costs one empty step a row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32

from ringrl.attention.kernels.block_ranges import Ids, Range, block_range, needed_pairs

LANES = 128
"""The width of a vector register and of the matrix unit: blocks are multiples of it."""


class Tables(NamedTuple):
    """What the kernels and their index maps read from scalar memory, O(blocks) int32 numbers a row of the batch.

    A *row* of the grid is a block whose result is being computed (of queries; of keys for dk and dv); it visits blocks
    of the other side.
    """

    q: Range
    k: Range
    first: Any  # [rows * blocks] first block that the row needs; 0 where it needs none
    last: Any  # [rows * blocks] last block that the row needs; -1 where it needs none
    after: Any  # [rows * blocks] the block that the next row starts with, to be fetched while this row runs empty


class Schedule(NamedTuple):
    """`Tables` and what of them is known outside the kernels."""

    tables: Tables
    width: Int32[Array, ""]  # blocks that the longest row visits, at least 1
    batched: bool  # the tables differ between the rows of the batch

    def entry(self, b: Array, block: Array, blocks: int) -> Array:
        """The index into the tables of block number `block` of `blocks`, in row b of the batch."""
        return b * blocks + block if self.batched else block


def make_schedule(q_ids: Ids, k_ids: Ids, block_q: int, block_k: int, *, by_keys: bool = False) -> Schedule:
    """Which blocks every row of the grid visits; rows are query blocks, or key blocks (`by_keys`)."""
    q, k = block_range(q_ids, block_q), block_range(k_ids, block_k)
    needed = needed_pairs(q, k)
    if by_keys:
        needed = needed.swapaxes(1, 2)
    first, last, after = _visits(needed)
    rows = needed.shape[0]
    q, k = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, x.shape[1])), (q, k))
    tables = jax.tree.map(jnp.ravel, Tables(q, k, first, last, after))
    width = jnp.maximum((last - first).max() + 1, 1)
    return Schedule(tables, width, rows > 1)


def _visits(needed: Array) -> tuple[Array, Array, Array]:
    """first, last and after of `Tables`, each [batch_or_1, rows], of needed [batch_or_1, rows, blocks]."""
    blocks = needed.shape[2]
    index = lax.broadcasted_iota(jnp.int32, needed.shape, 2)
    first = jnp.where(needed, index, blocks).min(-1)
    last = jnp.where(needed, index, -1).max(-1)
    empty = last < 0
    first = jnp.where(empty, 0, first)
    row = lax.broadcasted_iota(jnp.int32, first.shape, 1)
    rows = first.shape[1]
    ahead = lax.cummin(jnp.where(empty, rows, row), axis=1, reverse=True)
    ahead = jnp.concatenate([ahead[:, 1:], jnp.full_like(ahead[:, :1], rows)], axis=1)
    start = jnp.take_along_axis(first, jnp.minimum(ahead, rows - 1), axis=1)
    return first, last, jnp.where(ahead < rows, start, jnp.maximum(last, 0))


class _Visit(NamedTuple):
    """One step of the grid, as the kernels see it; everything is a scalar."""

    runs: Array  # some pair of tokens is visible
    whole: Array  # every pair of tokens is visible


def visited_block(tables: Tables, entry: Array, step: Array) -> Array:
    """The block to have in memory at `step` of row `entry` (an index into the tables)."""
    block = tables.first[entry] + step
    return jnp.where(block <= tables.last[entry], block, tables.after[entry])


def inspect(tables: Tables, entry: Array, step: Array, q_entry: Array, k_entry: Array) -> _Visit:
    """Whether a step of row `entry` computes, and whether it needs a mask, from the ranges of the two blocks."""
    q, k = tables.q, tables.k
    runs = tables.first[entry] + step <= tables.last[entry]
    runs &= q.high.positions[q_entry] >= k.low.positions[k_entry]
    whole = q.low.positions[q_entry] >= k.high.positions[k_entry]
    if q.low.segments is not None:
        q_low, q_high = q.low.segments[q_entry], q.high.segments[q_entry]
        k_low, k_high = k.low.segments[k_entry], k.high.segments[k_entry]
        runs &= (q_low <= k_high) & (k_low <= q_high)
        whole &= (q_low == q_high) & (k_low == k_high) & (q_low == k_low)
    return _Visit(runs, whole)


def when_visited(visit: _Visit, compute: Callable[[bool], None]) -> None:
    """compute(masked): without mask arithmetic where everything is visible, not at all where nothing is."""
    pl.when(visit.runs & visit.whole)(lambda: compute(False))
    pl.when(visit.runs & ~visit.whole)(lambda: compute(True))


def store_columns(columns: Ids, rows: Ids) -> None:
    """Turn a block's ids from a row of lanes into columns, repeated over all lanes, in scratch memory."""
    columns.positions[...] = column(rows.positions[...])
    if rows.segments is not None:
        columns.segments[...] = column(rows.segments[...])


def column(row: Array) -> Array:
    """[1, n] -> [n, LANES], every lane the same."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def spread(columns: Array, width: int) -> Array:
    """[n, LANES] whose lanes are all the same -> [n, width]."""
    if width <= LANES:
        return columns[:, :width]
    return jnp.concatenate([columns] * (width // LANES), axis=1)


def hide(scores: Array, columns: Ids, rows: Ids, *, by_keys: bool = False) -> Array:
    """Scores with -inf where the key is not visible.

    Args:
        scores: [block_q, block_k], or [block_k, block_q] (`by_keys`).
        columns: references to ids of the first axis, [.., LANES].
        rows: references to ids of the second axis, [1, ..].
        by_keys: the first axis is that of the keys.
    """
    width = scores.shape[1]
    across, down = jnp.broadcast_to(rows.positions[...], scores.shape), spread(columns.positions[...], width)
    mask = across >= down if by_keys else down >= across
    if rows.segments is not None:
        mask &= jnp.broadcast_to(rows.segments[...], scores.shape) == spread(columns.segments[...], width)
    return jnp.where(mask, scores, -jnp.inf)


Index = Callable[..., tuple[Any, Any, Any]]
"""Grid indices and the tables -> (row of the batch, head, block)."""


def array_spec(block: int, head_dim: int, index: Index) -> pl.BlockSpec:
    """Blocks of [batch, heads, length, head_dim]."""
    return pl.BlockSpec((None, None, block, head_dim), lambda *grid: (*index(*grid), 0))


def numbers_spec(block: int, index: Index) -> pl.BlockSpec:
    """Blocks of one number a token and head, [batch, heads, 1, length], as a row of lanes."""

    def indices(*grid: Any) -> tuple:
        b, head, i = index(*grid)
        return b, head, 0, i

    return pl.BlockSpec((None, None, 1, block), indices)


def ids_spec(ids: Ids, block: int, index: Index) -> Ids:
    """Blocks of ids, each [batch_or_1, 1, length]."""

    def spec(x: Array) -> pl.BlockSpec:
        def indices(*grid: Any) -> tuple:
            b, _, i = index(*grid)
            return b if x.shape[0] > 1 else 0, 0, i

        return pl.BlockSpec((None, 1, block), indices)

    return jax.tree.map(spec, ids)


def columns_scratch(ids: Ids, block: int) -> Ids:
    """Scratch memory for `store_columns`."""
    return jax.tree.map(lambda _: pltpu.VMEM((block, LANES), jnp.int32), ids)


def check_blocks(q: Array, k: Array, block_q: int, block_k: int) -> None:
    """ValueError unless blocks are multiples of `LANES` and cut the lengths evenly."""
    for name, block, length in (("block_q", block_q, q.shape[2]), ("block_k", block_k, k.shape[2])):
        if block < 1 or block % LANES or length % block:
            raise ValueError(f"{name} = {block} must be a multiple of {LANES} and divide the padded length, {length}")
