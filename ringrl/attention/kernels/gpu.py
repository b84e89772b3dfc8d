"""The local step of attention on NVIDIA GPUs: one device's queries against one shard of keys, forward, in Triton.

FlashAttention-2's forward (Dao, arXiv 2307.08691, section 3.1), written in Pallas and compiled by its Triton backend: a
program of the grid (tiles of queries, heads, batch) keeps the online softmax of its queries in registers, in float32,
while the tiles of keys pass that something of it sees (`gpu_blocks`). The gradients are in `gpu_backward`.

Why not JAX's kernel (`jax.experimental.pallas.ops.gpu.attention`). Its causality is that of one sequence against
itself: it knows no positions and returns no float32 output, so its results cannot be merged around a ring. It visits
all earlier keys, segments or not, and its keys have as many heads as its queries. Why not cuDNN: its masks are made for
one sequence against itself, too, JAX's calls of it are private, and both round a hop's results to the inputs' dtype.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Int32

from ringrl.attention.block_attention import MASKED_LSE, result_like, vary_like
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
from ringrl.attention.local_step import Keys, Output, Queries, RowValues


def forward(
    q: Queries,
    k: Keys,
    v: Keys,
    q_positions: Int32[Array, "batch_or_1 queries"],
    k_positions: Int32[Array, "batch_or_1_too keys"],
    q_segments: Int32[Array, "batch queries"] | None,
    k_segments: Int32[Array, "batch keys"] | None,
    *,
    scale: float,
    k_runs: int = 1,
    tile: Tile,
    interpret: bool = False,
) -> tuple[Output, RowValues]:
    """Attend all queries to this shard of keys; tiles in which nothing is visible are not computed.

    Args:
        q: queries, float32, bfloat16 or float16; query head h reads key head h // (heads / kv_heads).
        k: keys, in q's dtype.
        v: values, in q's dtype.
        q_positions: a query sees keys at its own position and before; `SEES_ALL`, `SEES_NONE`.
        k_positions: 0 or more; `NEVER_SEEN` for padding.
        q_segments: a query sees keys of its own segment, 0 sees nothing. None: one segment.
        k_segments: the keys' segments.
        scale: multiplies the scores.
        k_runs: equal stretches of keys within which positions increase.
        tile: its sides cut queries, and each run of keys, evenly.
        interpret: run without a GPU, slowly.

    Returns:
        Normalised float32 output and log-sum-exp; 0 and `MASKED_LSE` for queries that see nothing.
    """
    arrays = (q, k, v, q_positions, k_positions, q_segments, k_segments)
    q, k, v, q_positions, k_positions, q_segments, k_segments = vary_like(arrays, arrays)
    q_ids, k_ids = make_q_ids(q_positions, q_segments), make_k_ids(k_positions, k_segments)
    (batch, length, heads, head_dim), (_, keys, kv_heads, _) = q.shape, k.shape
    visits, width, group = make_visits(q_ids, k_ids, tile, k_runs), padded_head_dim(head_dim), heads // kv_heads
    queries_spec = pl.BlockSpec((None, tile.queries, None, width), lambda i, h, b: (b, i, h, 0))
    keys_spec = pl.BlockSpec((None, keys, None, width), lambda i, h, b: (b, 0, h // group, 0))
    out, lse = pl.pallas_call(
        functools.partial(attention_forward, factor=scale * LOG2_E, tile=tile, k_runs=k_runs, head_dim=head_dim),
        grid=(length // tile.queries, heads, batch),
        in_specs=[
            visits_spec(visits),
            queries_spec,
            keys_spec,
            keys_spec,
            ids_spec(q_ids, tile.queries),
            ids_spec(k_ids, None),
        ],
        out_specs=[queries_spec, pl.BlockSpec((None, None, tile.queries), lambda i, h, b: (b, h, i))],
        out_shape=[result_like(q.shape, q), result_like((batch, heads, length), q)],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="attention_forward",
    )(visits, q, k, v, q_ids, k_ids)
    return out, lse.swapaxes(1, 2)


def attention_forward(
    visits: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    q_ids_ref: Ids,
    k_ids_ref: Ids,
    out_ref: Any,
    lse_ref: Any,
    *,
    factor: float,
    tile: Tile,
    k_runs: int,
    head_dim: int,
) -> None:
    """The kernel: one tile of queries. Scores are to base 2; `factor` is scale * log2(e)."""
    q, q_ids = read(q_ref, head_dim), jax.tree.map(lambda ref: ref[...], q_ids_ref)

    def compute(index: Array, carry: tuple[Array, Array, Array], masked: bool) -> tuple[Array, Array, Array]:
        acc, highest, total = carry
        start = index * tile.keys
        k = read(k_ref.at[pl.ds(start, tile.keys)], head_dim)
        s = dot(q, k, 1, 1) * factor
        if masked:
            s = hide(s, q_ids, read_ids(k_ids_ref, start, tile.keys))
        # A hidden score is -inf and `higher` is finite, so its weight is 0 also where nothing has been seen yet.
        higher = jnp.maximum(highest, s.max(axis=1))
        p = jnp.exp2(s - higher[:, None])
        shrink = jnp.exp2(highest - higher)
        v = read(v_ref.at[pl.ds(start, tile.keys)], head_dim)
        return acc * shrink[:, None] + dot(p.astype(v.dtype), v, 1, 0), higher, total * shrink + p.sum(axis=1)

    empty = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(tile.queries, MASKED_LSE, jnp.float32),
        jnp.zeros(tile.queries, jnp.float32),
    )
    acc, highest, total = visit(visits, k_runs, compute, empty)
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    write(out_ref, acc / total[:, None], head_dim)
    lse_ref[...] = jnp.where(seen, highest * (1 / LOG2_E) + jnp.log(total), MASKED_LSE)
