"""The local step of attention on TPUs, backward, as one Pallas kernel: dq, dk and dv in one pass over the scores.

FlashAttention's backward (Dao et al., arXiv 2205.14135, algorithm 4): weights are computed again from the log-sum-exp,
five products of matrices a pair of blocks. A block of keys stays in vector memory while queries pass, and its dk and dv
are complete, in float32, before they are written. dq is summed in HBM: its tile is read while the products of the step
are computed, and written while those of the next one are. A kernel for dq and one for dk and dv need no such tile, but
compute scores and dp twice, seven products in place of five.

What the tile costs: 8 bytes a number of dq and step, against 10 * block_k FLOPs. With 1,024 keys that is a fifth of
the HBM bandwidth of a v5e at its peak, and less than half of a v6e's.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.block_attention import result_like, vary_like
from ringrl.attention.kernels.block_ranges import LOG2_E, Ids, dot, make_k_ids, make_q_ids
from ringrl.attention.kernels.tpu_blocks import (
    Tables,
    array_spec,
    check_blocks,
    columns_scratch,
    hide,
    ids_spec,
    inspect,
    make_schedule,
    numbers_spec,
    store_columns,
    visited_block,
    when_visited,
)


def backward(
    q: Float[Array, "batch heads length head_dim"],
    d_out: Float[Array, "batch heads length head_dim"],
    lse: Float32[Array, "batch heads length"],
    delta: Float32[Array, "batch heads length"],
    k: Float[Array, "batch kv_heads keys head_dim"],
    v: Float[Array, "batch kv_heads keys head_dim"],
    q_positions: Int32[Array, "batch_or_1 length"],
    k_positions: Int32[Array, "batch_or_1_too keys"],
    q_segments: Int32[Array, "batch length"] | None,
    k_segments: Int32[Array, "batch keys"] | None,
    *,
    scale: float,
    block_q: int,
    block_k: int,
    dq: Float32[Array, "batch heads length head_dim"] | None = None,
    interpret: Any = False,
) -> tuple[
    Float32[Array, "batch heads length head_dim"],
    Float32[Array, "batch kv_heads keys head_dim"],
    Float32[Array, "batch kv_heads keys head_dim"],
]:
    """dq with the share of this shard of keys, dk and dv. What is not visible is skipped as in `tpu.forward`.

    Args:
        q: queries, float32 or bfloat16.
        d_out: gradient of the whole output, in q's dtype.
        lse: log-sum-exp over the keys of *all* shards.
        delta: rowsum(d_out * out), less the gradient of the log-sum-exp.
        k: keys, in q's dtype.
        v: values, in q's dtype.
        q_positions: as in `tpu.forward`.
        k_positions: as in `tpu.forward`.
        q_segments: as in `tpu.forward`.
        k_segments: as in `tpu.forward`.
        scale: multiplies the scores.
        block_q: queries a block: a multiple of 128 that divides length.
        block_k: keys a block: a multiple of 128 that divides keys.
        dq: of other shards' keys, to which this one's share is added in place; None: of none.
        interpret: run without a TPU, slowly; also Pallas's InterpretParams.

    Returns:
        dq, dk and dv in float32; dk and dv are summed over the query heads that share a key head.

    Raises:
        ValueError: a block size does not fit.
    """
    check_blocks(q, k, block_q, block_k)
    arrays = (q, d_out, lse, delta, k, v, q_positions, k_positions, q_segments, k_segments)
    arrays = vary_like(arrays, arrays)
    q, d_out, lse, delta, k, v, q_positions, k_positions, q_segments, k_segments = arrays
    q_ids, k_ids = make_q_ids(q_positions, q_segments), make_k_ids(k_positions, k_segments)
    data = _Inputs(q, d_out, (lse * LOG2_E)[:, :, None], delta[:, :, None], k, v, q_ids, k_ids)
    before = vary_like(jnp.zeros(q.shape, jnp.float32) if dq is None else dq, q)
    if not interpret:  # XLA puts what is small into vector memory
        before = pltpu.with_memory_space_constraint(before, pltpu.HBM)
    return _call(data, before, scale, block_q, block_k, interpret)


class _Inputs(NamedTuple):
    """What passes through vector memory in blocks: arrays, their block specs or references."""

    q: Any
    d_out: Any
    lse: Any  # [batch, heads, 1, length], to base 2
    delta: Any  # [batch, heads, 1, length]
    k: Any
    v: Any
    q_ids: Ids
    k_ids: Ids


def _call(
    data: _Inputs, before: Array, scale: float, block_q: int, block_k: int, interpret: Any
) -> tuple[Array, Array, Array]:
    """Run the kernel over the grid (batch, key heads, key blocks, query heads of the key head, visits)."""
    q, k, v = data.q, data.k, data.v
    (batch, heads, length, head_dim), kv_heads = q.shape, k.shape[1]
    q_blocks, k_blocks, group = length // block_q, k.shape[2] // block_k, heads // kv_heads
    schedule = make_schedule(data.q_ids, data.k_ids, block_q, block_k, by_keys=True)

    def queries(b: Array, h: Array, j: Array, member: Array, step: Array, tables: Tables) -> tuple:
        return b, h * group + member, visited_block(tables, schedule.entry(b, j, k_blocks), step)

    def keys(b: Array, h: Array, j: Array, member: Array, step: Array, tables: Tables) -> tuple:
        return b, h, j

    array, k_array = array_spec(block_q, head_dim, queries), array_spec(block_k, head_dim, keys)
    number, in_hbm = numbers_spec(block_q, queries), pl.BlockSpec(memory_space=pltpu.HBM)
    ids = ids_spec(data.q_ids, block_q, queries), ids_spec(data.k_ids, block_k, keys)
    return pl.pallas_call(
        functools.partial(_kernel, scale=scale, entry=schedule.entry, q_blocks=q_blocks, k_blocks=k_blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, kv_heads, k_blocks, group, schedule.width),
            in_specs=[_Inputs(array, array, number, number, k_array, k_array, *ids), in_hbm],
            out_specs=[in_hbm, k_array, k_array],
            scratch_shapes=[
                _KeySums(*[pltpu.VMEM((block_k, head_dim), jnp.float32)] * 2),
                columns_scratch(data.k_ids, block_k),
                _tile_scratch(block_q, head_dim),
            ],
        ),
        out_shape=tuple(result_like(x.shape, q) for x in (q, k, v)),
        input_output_aliases={len(jax.tree.leaves((schedule.tables, data))): 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 2 + ("arbitrary",) * 3),
        interpret=interpret,
        name="attention_backward",
    )(schedule.tables, data, before)


class _Tile(NamedTuple):
    """The tile of dq that a step adds to, between HBM and vector memory; two of them, in turn.

    One store at most is under way. It is waited for by the next step that computes: before that step's own store, or,
    where the step adds to the same tile, before it is read again.
    """

    values: Any  # [2, block_q, head_dim], float32
    steps: Any  # [1]: how many steps have computed for this key head
    last: Any  # [1]: the tile of the last of them
    arrived: Any  # semaphore of reads
    written: Any  # semaphore of stores

    def start(self) -> None:
        """Before the first step of a key head."""
        self.steps[0] = 0

    def read(self, tile: Any, number: Array) -> None:
        """Begin to read `tile` of dq in HBM, which is the key head's tile `number`."""
        pl.when((self.steps[0] > 0) & (self.last[0] == number))(lambda: self._store(tile).wait())
        self._load(tile).start()

    def add(self, tile: Any, number: Array, share: Array) -> None:
        """Add a step's share to the tile that `read` has begun to read, and begin to write it."""
        self._load(tile).wait()
        self.values[self._slot()] += share
        pl.when((self.steps[0] > 0) & (self.last[0] != number))(lambda: self._store(tile).wait())
        self._store(tile).start()
        self.steps[0] += 1
        self.last[0] = number

    def finish(self, tile: Any) -> None:
        """After the last step of a key head."""
        pl.when(self.steps[0] > 0)(lambda: self._store(tile).wait())

    def _slot(self) -> Array:
        return lax.rem(self.steps[0], 2)

    def _load(self, tile: Any) -> Any:
        return pltpu.make_async_copy(tile, self.values.at[self._slot()], self.arrived)

    def _store(self, tile: Any) -> Any:
        """To start, or to wait for the one before: all are of one size, which is all that waiting needs to know."""
        return pltpu.make_async_copy(self.values.at[self._slot()], tile, self.written)


def _tile_scratch(block_q: int, head_dim: int) -> _Tile:
    counter, semaphore = pltpu.SMEM((1,), jnp.int32), pltpu.SemaphoreType.DMA
    return _Tile(pltpu.VMEM((2, block_q, head_dim), jnp.float32), counter, counter, semaphore, semaphore)


class _KeySums(NamedTuple):
    """The sums over queries of a block of keys' gradients, in vector memory, float32."""

    dk: Any  # [block_k, head_dim], without the scale
    dv: Any  # [block_k, head_dim]

    def start(self) -> None:
        """Before the first query."""
        self.dk[...] = jnp.zeros_like(self.dk)
        self.dv[...] = jnp.zeros_like(self.dv)

    def add(self, blocks: _Inputs, k_columns: Ids, scale: float, masked: bool) -> Array:
        """Add what a block of queries gives; returns its own gradient's share. Scores are [block_k, block_q].

        So the queries' log-sum-exp and delta are rows of lanes as they arrive, and only dq needs a transposed operand.
        """
        q, d_out, k = blocks.q[...], blocks.d_out[...], blocks.k[...]
        s = dot(k, q, 1, 1) * (scale * LOG2_E)
        if masked:
            s = hide(s, k_columns, blocks.q_ids, by_keys=True)
        p = jnp.exp2(s - jnp.broadcast_to(blocks.lse[...], s.shape))
        self.dv[...] += dot(p.astype(q.dtype), d_out, 1, 0)
        dp = dot(blocks.v[...], d_out, 1, 1)
        ds = (p * (dp - jnp.broadcast_to(blocks.delta[...], s.shape))).astype(q.dtype)
        self.dk[...] += dot(ds, q, 1, 0)
        return dot(ds, k, 0, 0) * scale


def _kernel(
    tables: Tables,
    blocks: _Inputs,
    before: Any,
    dq_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    sums: _KeySums,
    k_columns: Ids,
    dq_tile: _Tile,
    *,
    scale: float,
    entry: Callable[[Array, Array, int], Array],
    q_blocks: int,
    k_blocks: int,
) -> None:
    """One block of keys against one block of queries."""
    del before  # dq's memory before the first step
    b, h, j, member, step = (pl.program_id(axis) for axis in range(5))
    group, k_entry = pl.num_programs(3), entry(b, j, k_blocks)
    block = visited_block(tables, k_entry, step)
    visit = inspect(tables, k_entry, step, entry(b, block, q_blocks), k_entry)
    number, block_q = member * q_blocks + block, blocks.q.shape[0]
    tile = dq_ref.at[b, h * group + member, pl.ds(block * block_q, block_q)]
    first, last = (member == 0) & (step == 0), (member == group - 1) & (step == pl.num_programs(4) - 1)

    pl.when(first & (j == 0))(dq_tile.start)

    @pl.when(first)
    def _start() -> None:
        sums.start()
        store_columns(k_columns, blocks.k_ids)

    def compute(masked: bool) -> None:
        dq_tile.read(tile, number)
        dq_tile.add(tile, number, sums.add(blocks, k_columns, scale, masked))

    when_visited(visit, compute)

    @pl.when(last)
    def _finish() -> None:
        dk_ref[...] = sums.dk[...] * scale
        dv_ref[...] = sums.dv[...]

    pl.when(last & (j == k_blocks - 1))(lambda: dq_tile.finish(tile))
