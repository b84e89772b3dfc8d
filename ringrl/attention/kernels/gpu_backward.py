"""The local step of attention on NVIDIA GPUs, backward: one Triton kernel for dq, one for dk and dv.

FlashAttention's backward (Dao et al., arXiv 2205.14135, algorithm 4): weights are computed again from the log-sum-exp.
For dq a tile of queries stays in registers while keys pass, for dk and dv a tile of keys while the queries of all heads
that share it pass. So every sum is complete in float32 and is written once, in an order that does not change from run
to run, at the price of computing scores and dp twice (7 products of matrices a pair of tiles in place of 5). A single
kernel would have to add to dq with atomics, whose order, and so the last bits of every gradient, is left to chance.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Int32

from ringrl.attention.block_attention import result_like, vary_like
from ringrl.attention.kernels.block_ranges import LOG2_E, Ids, dot, make_k_ids, make_q_ids
from ringrl.attention.kernels.gpu_blocks import (
    hide,
    ids_spec,
    make_visits,
    padded_head_dim,
    read,
    read_ids,
    visit,
    visits_spec,
    write,
)
from ringrl.attention.kernels.gpu_tiles import Tile
from ringrl.attention.local_step import KeyGradients, Keys, Output, Queries, RowValues


def backward(
    q: Queries,
    d_out: Queries,
    lse: RowValues,
    delta: RowValues,
    k: Keys,
    v: Keys,
    q_positions: Int32[Array, "batch_or_1 queries"],
    k_positions: Int32[Array, "batch_or_1_too keys"],
    q_segments: Int32[Array, "batch queries"] | None,
    k_segments: Int32[Array, "batch keys"] | None,
    *,
    scale: float,
    q_runs: int = 1,
    k_runs: int = 1,
    dq_tile: Tile,
    dkv_tile: Tile,
    interpret: bool = False,
) -> tuple[Output, KeyGradients, KeyGradients]:
    """This shard of keys' shares of dq, dk and dv. What is not visible is skipped as in `gpu.forward`.

    Args:
        q: queries, float32, bfloat16 or float16.
        d_out: gradient of the whole output, in q's dtype.
        lse: log-sum-exp over the keys of *all* shards.
        delta: rowsum(d_out * out), less the gradient of the log-sum-exp.
        k: keys, in q's dtype.
        v: values, in q's dtype.
        q_positions: as in `gpu.forward`.
        k_positions: as in `gpu.forward`.
        q_segments: as in `gpu.forward`.
        k_segments: as in `gpu.forward`.
        scale: multiplies the scores.
        q_runs: equal stretches of queries within which positions increase.
        k_runs: equal stretches of keys within which positions increase.
        dq_tile: of the kernel that makes dq; its sides cut each run evenly.
        dkv_tile: of the kernel that makes dk and dv.
        interpret: run without a GPU, slowly.

    Returns:
        dq, dk and dv in float32; dk and dv are summed over the query heads that share a key head.
    """
    arrays = (q, d_out, lse, delta, k, v, q_positions, k_positions, q_segments, k_segments)
    arrays = vary_like(arrays, arrays)
    q, d_out, lse, delta, k, v, q_positions, k_positions, q_segments, k_segments = arrays
    q_ids, k_ids = make_q_ids(q_positions, q_segments), make_k_ids(k_positions, k_segments)
    data = q, d_out, (lse * LOG2_E).swapaxes(1, 2), delta.swapaxes(1, 2), k, v, q_ids, k_ids
    dq = _call_dq(data, scale, dq_tile, k_runs, interpret)
    return dq, *_call_dkv(data, scale, dkv_tile, q_runs, interpret)


def _call_dq(data: tuple, scale: float, tile: Tile, k_runs: int, interpret: bool) -> Array:
    q, _, _, _, k, _, q_ids, k_ids = data
    (batch, length, heads, head_dim), (_, keys, kv_heads, _) = q.shape, k.shape
    visits, width, group = make_visits(q_ids, k_ids, tile, k_runs), padded_head_dim(head_dim), heads // kv_heads
    queries_spec = pl.BlockSpec((None, tile.queries, None, width), lambda i, h, b: (b, i, h, 0))
    numbers_spec = pl.BlockSpec((None, None, tile.queries), lambda i, h, b: (b, h, i))
    keys_spec = pl.BlockSpec((None, keys, None, width), lambda i, h, b: (b, 0, h // group, 0))
    specs = [queries_spec, queries_spec, numbers_spec, numbers_spec, keys_spec, keys_spec]
    return pl.pallas_call(
        functools.partial(attention_backward_dq, scale=scale, tile=tile, k_runs=k_runs, head_dim=head_dim),
        grid=(length // tile.queries, heads, batch),
        in_specs=[visits_spec(visits), *specs, ids_spec(q_ids, tile.queries), ids_spec(k_ids, None)],
        out_specs=queries_spec,
        out_shape=result_like(q.shape, q),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="attention_backward_dq",
    )(visits, *data)


def _call_dkv(data: tuple, scale: float, tile: Tile, q_runs: int, interpret: bool) -> tuple[Array, Array]:
    q, _, _, _, k, _, q_ids, k_ids = data
    (batch, length, heads, head_dim), (_, keys, kv_heads, _) = q.shape, k.shape
    visits = make_visits(q_ids, k_ids, tile, q_runs, by_keys=True)
    width, group = padded_head_dim(head_dim), heads // kv_heads
    queries_spec = pl.BlockSpec((None, length, group, width), lambda j, h, b: (b, 0, h, 0))
    numbers_spec = pl.BlockSpec((None, group, length), lambda j, h, b: (b, h, 0))
    keys_spec = pl.BlockSpec((None, tile.keys, None, width), lambda j, h, b: (b, j, h, 0))
    specs = [queries_spec, queries_spec, numbers_spec, numbers_spec, keys_spec, keys_spec]
    dk, dv = pl.pallas_call(
        functools.partial(
            attention_backward_dkv, scale=scale, tile=tile, q_runs=q_runs, group=group, head_dim=head_dim
        ),
        grid=(keys // tile.keys, kv_heads, batch),
        in_specs=[visits_spec(visits), *specs, ids_spec(q_ids, None), ids_spec(k_ids, tile.keys)],
        out_specs=[keys_spec, keys_spec],
        out_shape=[result_like(k.shape, k)] * 2,
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="attention_backward_dkv",
    )(visits, *data)
    return dk, dv


def attention_backward_dq(
    visits: Any,
    q_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    k_ref: Any,
    v_ref: Any,
    q_ids_ref: Ids,
    k_ids_ref: Ids,
    dq_ref: Any,
    *,
    scale: float,
    tile: Tile,
    k_runs: int,
    head_dim: int,
) -> None:
    """The kernel for one tile of queries; the log-sum-exp is to base 2."""
    q, d_out = read(q_ref, head_dim), read(d_out_ref, head_dim)
    lse, delta, q_ids = lse_ref[...], delta_ref[...], jax.tree.map(lambda ref: ref[...], q_ids_ref)

    def compute(index: Array, dq: Array, masked: bool) -> Array:
        start = index * tile.keys
        k, v = (read(ref.at[pl.ds(start, tile.keys)], head_dim) for ref in (k_ref, v_ref))
        s = dot(q, k, 1, 1) * (scale * LOG2_E)
        if masked:
            s = hide(s, q_ids, read_ids(k_ids_ref, start, tile.keys))
        p = jnp.exp2(s - lse[:, None])
        ds = p * (dot(d_out, v, 1, 1) - delta[:, None])
        return dq + dot(ds.astype(k.dtype), k, 1, 0)

    dq = visit(visits, k_runs, compute, jnp.zeros(q.shape, jnp.float32))
    write(dq_ref, dq * scale, head_dim)


def attention_backward_dkv(
    visits: Any,
    q_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    k_ref: Any,
    v_ref: Any,
    q_ids_ref: Ids,
    k_ids_ref: Ids,
    dk_ref: Any,
    dv_ref: Any,
    *,
    scale: float,
    tile: Tile,
    q_runs: int,
    group: int,
    head_dim: int,
) -> None:
    """The kernel for one tile of keys. Scores are [keys, queries], so that no computed operand is transposed."""
    k, v = read(k_ref, head_dim), read(v_ref, head_dim)
    k_ids = jax.tree.map(lambda ref: ref[...], k_ids_ref)

    def compute(member: Array, index: Array, carry: tuple[Array, Array], masked: bool) -> tuple[Array, Array]:
        dk, dv = carry
        tokens = pl.ds(index * tile.queries, tile.queries)
        q, d_out = (read(ref.at[tokens, member], head_dim) for ref in (q_ref, d_out_ref))
        s = dot(k, q, 1, 1) * (scale * LOG2_E)
        if masked:
            s = hide(s, read_ids(q_ids_ref, index * tile.queries, tile.queries), k_ids, by_keys=True)
        p = jnp.exp2(s - lse_ref[member, tokens][None, :])
        dv = dv + dot(p.astype(q.dtype), d_out, 1, 0)
        ds = p * (dot(v, d_out, 1, 1) - delta_ref[member, tokens][None, :])
        return dk + dot(ds.astype(q.dtype), q, 1, 0), dv

    def head(member: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return visit(visits, q_runs, functools.partial(compute, member), carry)

    carry = jnp.zeros(k.shape, jnp.float32), jnp.zeros(k.shape, jnp.float32)
    dk, dv = lax.fori_loop(jnp.int32(0), jnp.int32(group), head, carry)
    write(dk_ref, dk * scale, head_dim)
    write(dv_ref, dv, head_dim)
