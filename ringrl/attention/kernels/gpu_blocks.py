"""What the three GPU kernels share: the shapes of their tiles, which tiles they visit, and how they read them.

A program of the grid computes one tile of the result and visits tiles of the other side. Which ones is a table of four
numbers a tile and a run of the other side's tokens, computed outside of the kernels from the ranges of the ids
(`block_ranges`): the tiles from the first to the last in which something is visible, and among them a stretch in which
everything is. The latter, nearly all of a long shard, are computed without reading an id. Within a run causality and
segments, whose tokens lie one after the other, leave exactly such a stretch with edges; what
other ids hide between is masked by the edges' exact comparison.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Int32

from ringrl.attention.kernels.block_ranges import Ids, Range, block_range, needed_pairs
from ringrl.attention.kernels.gpu_tiles import Tile

Carry = TypeVar("Carry")


def make_visits(
    q_ids: Ids, k_ids: Ids, tile: Tile, runs: int, *, by_keys: bool = False
) -> Int32[Array, "rows tiles {runs} 4"]:
    """For every tile of queries, or of keys (`by_keys`), and run of the other side: which of its tiles are visited.

    Four numbers, counted over all tiles of the other side: the first visited, the first of a stretch of tiles that are
    visible as a whole, the first after that stretch, the first that is not visited. Rows are 1 or the batch.
    """
    q, k = block_range(q_ids, tile.queries), block_range(k_ids, tile.keys)
    needed, whole = needed_pairs(q, k), _whole_pairs(q, k)
    if by_keys:
        needed, whole = needed.swapaxes(1, 2), whole.swapaxes(1, 2)
    shape = (*needed.shape[:2], runs, needed.shape[2] // runs)
    needed, whole = needed.reshape(shape), whole.reshape(shape)
    index = lax.broadcasted_iota(jnp.int32, shape, 2) * shape[3] + lax.broadcasted_iota(jnp.int32, shape, 3)
    end = jnp.where(needed, index + 1, 0).max(-1)
    first = jnp.where(needed, index, jnp.iinfo(jnp.int32).max).min(-1)
    first = jnp.minimum(first, end)
    stretch = jnp.where(whole, index, end[..., None]).min(-1)
    after = jnp.where(~whole & (index >= stretch[..., None]), index, end[..., None]).min(-1)
    after = jnp.minimum(after, end)
    return jnp.stack([first, stretch, after, end], axis=-1)


def _whole_pairs(q: Range, k: Range) -> Array:
    """Pairs of tiles of which every token of one sees every token of the other."""
    whole = q.low.positions[:, :, None] >= k.high.positions[:, None, :]
    if q.low.segments is not None:
        one_q, one_k = q.low.segments == q.high.segments, k.low.segments == k.high.segments
        whole &= one_q[:, :, None] & one_k[:, None, :]
        whole &= q.low.segments[:, :, None] == k.low.segments[:, None, :]
    return whole


def visit(visits: Any, runs: int, compute: Callable[[Array, Carry, bool], Carry], carry: Carry) -> Carry:
    """compute(tile, carry, masked) for each tile to visit; `visits` is a reference to [runs, 4] of `make_visits`."""

    def visit_run(run: Array | int, carry: Carry) -> Carry:
        first, stretch, after, end = (visits[run, number] for number in range(4))
        before = stretch - first

        def edge(number: Array, carry: Carry) -> Carry:
            return compute(jnp.where(number < before, first, after - before) + number, carry, True)

        carry = lax.fori_loop(stretch, after, lambda index, carry: compute(index, carry, False), carry)
        return lax.fori_loop(jnp.int32(0), before + end - after, edge, carry)

    return visit_run(0, carry) if runs == 1 else lax.fori_loop(jnp.int32(0), jnp.int32(runs), visit_run, carry)


def hide(scores: Array, q_ids: Ids, k_ids: Ids, *, by_keys: bool = False) -> Array:
    """Scores [queries, keys], or [keys, queries] (`by_keys`), with -inf where the key is not visible.

    The ids are arrays of one axis.
    """
    down, across = (k_ids, q_ids) if by_keys else (q_ids, k_ids)

    def spread(get: Callable[[Ids], Array]) -> tuple[Array, Array]:
        return (
            jnp.broadcast_to(get(down)[:, None], scores.shape),
            jnp.broadcast_to(get(across)[None, :], scores.shape),
        )

    rows, columns = spread(lambda ids: ids.positions)
    mask = columns >= rows if by_keys else rows >= columns
    if down.segments is not None:
        rows, columns = spread(lambda ids: ids.segments)
        mask &= rows == columns
    return jnp.where(mask, scores, -jnp.inf)


def read_ids(ids: Ids, start: Array, size: int) -> Ids:
    """`size` ids from references to all of a row's."""
    return jax.tree.map(lambda ref: ref[pl.ds(start, size)], ids)


def read(ref: Any, head_dim: int) -> Array:
    """The tokens of a reference [tokens, padded head_dim]; what pads the heads is 0."""
    padded = ref.shape[-1]
    if padded == head_dim:
        return ref[...]
    mask = jnp.broadcast_to(jnp.arange(padded)[None] < head_dim, ref.shape)
    return plgpu.load(ref, mask=mask, other=jnp.zeros((), ref.dtype))


def write(ref: Any, x: Array, head_dim: int) -> None:
    """Write tokens to a reference [tokens, padded head_dim]; the array behind it has no padding."""
    padded = ref.shape[-1]
    if padded == head_dim:
        ref[...] = x
        return
    plgpu.store(ref, x, mask=jnp.broadcast_to(jnp.arange(padded)[None] < head_dim, ref.shape))


def padded_head_dim(head_dim: int) -> int:
    """Tiles have sides that are powers of two, at least 16 for the matrix units."""
    return max(pl.next_power_of_2(head_dim), 16)


def visits_spec(visits: Array) -> pl.BlockSpec:
    """All of a tile's numbers, over a grid (tiles, heads, batch)."""
    rows, _, runs, _ = visits.shape
    return pl.BlockSpec((None, None, runs, 4), lambda i, _, b: (b if rows > 1 else 0, i, 0, 0))


def ids_spec(ids: Ids, tile: int | None) -> Ids:
    """The ids of a tile, over a grid (tiles, heads, batch); None: those of all of a row's tokens."""

    def spec(x: Array) -> pl.BlockSpec:
        rows, _, length = x.shape
        if tile is None:
            return pl.BlockSpec((None, None, length), lambda i, _, b: (b if rows > 1 else 0, 0, 0))
        return pl.BlockSpec((None, None, tile), lambda i, _, b: (b if rows > 1 else 0, 0, i))

    return jax.tree.map(spec, ids)
