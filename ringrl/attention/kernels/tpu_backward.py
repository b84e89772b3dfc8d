"""The local step of attention on TPUs, backward: one Pallas kernel for dq, one for dk and dv.

FlashAttention's backward (Dao et al., arXiv 2205.14135, algorithm 4): weights are computed again from the log-sum-exp.
For dq a block of queries stays in memory while keys pass, for dk and dv a block of keys while queries pass: so each sum
is complete in float32 in vector memory and is written once, at the price of computing scores and dp twice (7 products
of matrices a pair of blocks in place of 5). A single kernel would have to add to dq in HBM at every step, or to keep
one dq a block of keys.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.block_attention import result_like, vary_like
from ringrl.attention.kernels.block_ranges import LOG2_E, Ids, dot, make_k_ids, make_q_ids
from ringrl.attention.kernels.tpu_blocks import (
    LANES,
    Tables,
    array_spec,
    check_blocks,
    column,
    columns_scratch,
    hide,
    ids_spec,
    inspect,
    make_schedule,
    numbers_spec,
    spread,
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
    interpret: Any = False,
) -> tuple[
    Float32[Array, "batch heads length head_dim"],
    Float32[Array, "batch kv_heads keys head_dim"],
    Float32[Array, "batch kv_heads keys head_dim"],
]:
    """This shard of keys' shares of dq, dk and dv. What is not visible is skipped as in `tpu.forward`.

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
    data = (q, d_out, (lse * LOG2_E)[:, :, None], delta[:, :, None], k, v, q_ids, k_ids)
    (dq,) = _call(_dq_kernel, data, scale, block_q, block_k, interpret, by_keys=False)
    dk, dv = _call(_dkv_kernel, data, scale, block_q, block_k, interpret, by_keys=True)
    return dq, dk, dv


def _call(
    kernel: Callable[..., None], data: tuple, scale: float, block_q: int, block_k: int, interpret: Any, *, by_keys: bool
) -> tuple[Array, ...]:
    """Run a kernel over the grid (batch, query heads, query blocks, 1, visits), or, by keys, (batch, key heads,
    key blocks, query heads of the key head, visits); results have the shape of what the third axis counts."""
    q, _, _, _, k, _, q_ids, k_ids = data
    (batch, heads, length, head_dim), kv_heads = q.shape, k.shape[1]
    q_blocks, k_blocks, group = length // block_q, k.shape[2] // block_k, heads // kv_heads
    schedule = make_schedule(q_ids, k_ids, block_q, block_k, by_keys=by_keys)

    def queries(b: Array, h: Array, block: Array, member: Array, step: Array, tables: Tables) -> tuple:
        if not by_keys:
            return b, h, block
        return b, h * group + member, visited_block(tables, schedule.entry(b, block, k_blocks), step)

    def keys(b: Array, h: Array, block: Array, member: Array, step: Array, tables: Tables) -> tuple:
        if by_keys:
            return b, h, block
        return b, h // group, visited_block(tables, schedule.entry(b, block, q_blocks), step)

    array, k_array = array_spec(block_q, head_dim, queries), array_spec(block_k, head_dim, keys)
    number = numbers_spec(block_q, queries)
    inputs = [array, array, number, number, k_array, k_array]
    inputs += [ids_spec(q_ids, block_q, queries), ids_spec(k_ids, block_k, keys)]
    if by_keys:
        grid, outputs, result = (batch, kv_heads, k_blocks, group, schedule.width), [k_array] * 2, k
        scratch = [pltpu.VMEM((block_k, head_dim), jnp.float32)] * 2 + [columns_scratch(k_ids, block_k)]
    else:
        grid, outputs, result = (batch, heads, q_blocks, 1, schedule.width), [array], q
        scratch = [pltpu.VMEM((block_q, head_dim), jnp.float32)] + [pltpu.VMEM((block_q, LANES), jnp.float32)] * 2
        scratch += [columns_scratch(q_ids, block_q)]
    return pl.pallas_call(
        functools.partial(kernel, scale=scale, entry=schedule.entry, q_blocks=q_blocks, k_blocks=k_blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=grid, in_specs=inputs, out_specs=outputs, scratch_shapes=scratch
        ),
        out_shape=(result_like(result.shape, result),) * len(outputs),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3 + ("arbitrary",) * 2),
        interpret=interpret,
        name="attention_backward_dkv" if by_keys else "attention_backward_dq",
    )(schedule.tables, *data)


def _dq_kernel(
    tables: Tables,
    q_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    k_ref: Any,
    v_ref: Any,
    q_ids: Ids,
    k_ids: Ids,
    dq_ref: Any,
    acc_ref: Any,
    lse_column: Any,
    delta_column: Any,
    q_columns: Ids,
    *,
    scale: float,
    entry: Callable[[Array, Array, int], Array],
    q_blocks: int,
    k_blocks: int,
) -> None:
    """One block of queries against one block of keys; the log-sum-exp is to base 2."""
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(4)
    q_entry = entry(b, i, q_blocks)
    visit = inspect(tables, q_entry, step, q_entry, entry(b, visited_block(tables, q_entry, step), k_blocks))
    block_k = k_ref.shape[0]

    @pl.when(step == 0)
    def _start() -> None:
        acc_ref[...] = jnp.zeros_like(acc_ref)
        lse_column[...] = column(lse_ref[...])
        delta_column[...] = column(delta_ref[...])
        store_columns(q_columns, q_ids)

    def compute(masked: bool) -> None:
        s = dot(q_ref[...], k_ref[...], 1, 1) * (scale * LOG2_E)
        if masked:
            s = hide(s, q_columns, k_ids)
        p = jnp.exp2(s - spread(lse_column[...], block_k))
        dp = dot(d_out_ref[...], v_ref[...], 1, 1)
        ds = p * (dp - spread(delta_column[...], block_k))
        acc_ref[...] += dot(ds.astype(k_ref.dtype), k_ref[...], 1, 0)

    when_visited(visit, compute)

    @pl.when(step == pl.num_programs(4) - 1)
    def _finish() -> None:
        dq_ref[...] = acc_ref[...] * scale


def _dkv_kernel(
    tables: Tables,
    q_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    k_ref: Any,
    v_ref: Any,
    q_ids: Ids,
    k_ids: Ids,
    dk_ref: Any,
    dv_ref: Any,
    dk_acc: Any,
    dv_acc: Any,
    k_columns: Ids,
    *,
    scale: float,
    entry: Callable[[Array, Array, int], Array],
    q_blocks: int,
    k_blocks: int,
) -> None:
    """One block of keys against one block of queries, scores being [block_k, block_q].

    So the queries' log-sum-exp and delta are rows of lanes as they arrive, and no product needs a transposed operand.
    """
    b, j, member, step = (pl.program_id(axis) for axis in (0, 2, 3, 4))
    k_entry = entry(b, j, k_blocks)
    visit = inspect(tables, k_entry, step, entry(b, visited_block(tables, k_entry, step), q_blocks), k_entry)

    @pl.when((member == 0) & (step == 0))
    def _start() -> None:
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)
        store_columns(k_columns, k_ids)

    def compute(masked: bool) -> None:
        q, d_out = q_ref[...], d_out_ref[...]
        s = dot(k_ref[...], q, 1, 1) * (scale * LOG2_E)
        if masked:
            s = hide(s, k_columns, q_ids, by_keys=True)
        p = jnp.exp2(s - jnp.broadcast_to(lse_ref[...], s.shape))
        dv_acc[...] += dot(p.astype(q.dtype), d_out, 1, 0)
        dp = dot(v_ref[...], d_out, 1, 1)
        ds = p * (dp - jnp.broadcast_to(delta_ref[...], s.shape))
        dk_acc[...] += dot(ds.astype(q.dtype), q, 1, 0)

    when_visited(visit, compute)

    @pl.when((member == pl.num_programs(3) - 1) & (step == pl.num_programs(4) - 1))
    def _finish() -> None:
        dk_ref[...] = dk_acc[...] * scale
        dv_ref[...] = dv_acc[...]
