"""The local step of attention on TPUs: one device's queries against one shard of keys, forward, as a Pallas kernel.

FlashAttention's forward (Dao et al., arXiv 2205.14135, algorithm 1; Dao, arXiv 2307.08691, section 3.1) over a grid
(batch, heads, query blocks, key blocks) whose last axis runs in sequence: the online softmax is kept in vector memory,
in float32, and a score never reaches HBM. The gradients are in `tpu_backward`.

Why not JAX's splash attention (`jax.experimental.pallas.ops.tpu.splash_attention`). Its masks are NumPy arrays or
functions, preprocessed on the host into tables of query blocks x key blocks, for one known offset between queries and
keys. In a ring the shard of keys that a device has depends on a traced hop number, and the tables of a million
tokens took minutes to build. Here the mask is made of the positions and segment ids that travel with the keys;
what is prefetched is O(blocks), segments skip blocks as causality does, and a grid's width is what the hop needs
(`tpu_blocks`). Its forward also gives garbage for rows that see nothing, writes the log-sum-exp 128 times over, and its
backward kernels may not be split over a chip's two cores.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.block_attention import MASKED_LSE, result_like, vary_like
from ringrl.attention.kernels.block_ranges import LOG2_E, Ids, dot, make_k_ids, make_q_ids
from ringrl.attention.kernels.tpu_blocks import (
    LANES,
    Tables,
    array_spec,
    check_blocks,
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


def forward(
    q: Float[Array, "batch heads length head_dim"],
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
) -> tuple[Float32[Array, "batch heads length head_dim"], Float32[Array, "batch heads length"]]:
    """Attend all queries to this shard of keys; pairs of blocks in which nothing is visible are not computed.

    Args:
        q: queries, float32 or bfloat16; heads is a multiple of kv_heads (query head h reads key head h // group).
        k: keys, in q's dtype.
        v: values, in q's dtype.
        q_positions: a query sees keys at its own position and before; `SEES_ALL`, `SEES_NONE`.
        k_positions: 0 or more; `NEVER_SEEN` for padding.
        q_segments: a query sees keys of its own segment, 0 sees nothing. None: one segment.
        k_segments: the keys' segments.
        scale: multiplies the scores.
        block_q: queries a block: a multiple of 128 that divides length. See `tpu_blocks.default_blocks`.
        block_k: keys a block: a multiple of 128 that divides keys.
        interpret: run without a TPU, slowly; also Pallas's InterpretParams.

    Returns:
        Normalised output and log-sum-exp; 0 and `MASKED_LSE` for queries that see nothing.

    Raises:
        ValueError: a block size does not fit.
    """
    check_blocks(q, k, block_q, block_k)
    arrays = (q, k, v, q_positions, k_positions, q_segments, k_segments)
    q, k, v, q_positions, k_positions, q_segments, k_segments = vary_like(arrays, arrays)
    q_ids, k_ids = make_q_ids(q_positions, q_segments), make_k_ids(k_positions, k_segments)
    batch, heads, length, head_dim = q.shape
    q_blocks, k_blocks, group = length // block_q, k.shape[2] // block_k, heads // k.shape[1]
    schedule = make_schedule(q_ids, k_ids, block_q, block_k)

    def queries(b: Array, h: Array, i: Array, step: Array, tables: Tables) -> tuple:
        return b, h, i

    def keys(b: Array, h: Array, i: Array, step: Array, tables: Tables) -> tuple:
        return b, h // group, visited_block(tables, schedule.entry(b, i, q_blocks), step)

    array, k_array = array_spec(block_q, head_dim, queries), array_spec(block_k, head_dim, keys)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, factor=scale * LOG2_E, entry=schedule.entry, q_blocks=q_blocks, k_blocks=k_blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, heads, q_blocks, schedule.width),
            in_specs=[array, k_array, k_array, ids_spec(q_ids, block_q, queries), ids_spec(k_ids, block_k, keys)],
            out_specs=[array, numbers_spec(block_q, queries)],
            scratch_shapes=[
                Softmax(*(pltpu.VMEM((block_q, width), jnp.float32) for width in (head_dim, LANES, LANES))),
                columns_scratch(q_ids, block_q),
            ],
        ),
        out_shape=[result_like(q.shape, q), result_like((batch, heads, 1, length), q)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="attention_forward",
    )(schedule.tables, q, k, v, q_ids, k_ids)
    return out, lse.reshape(q.shape[:3])


class Softmax(NamedTuple):
    """References to the online softmax of a block of queries, in vector memory; scores are to base 2.

    m_j = max(m_{j-1}, max s_j), l_j = 2^(m_{j-1} - m_j) l_{j-1} + sum 2^(s_j - m_j), and likewise the output
    (FlashAttention, arXiv 2205.14135, algorithm 1).
    """

    acc: Any  # [block_q, head_dim], the output times `total`
    highest: Any  # [block_q, LANES]: m, the same in all lanes
    total: Any  # [block_q, LANES]: a lane sums its share of the keys, and lanes are summed once a query block

    def start(self) -> None:
        """Before any key."""
        self.acc[...] = jnp.zeros_like(self.acc)
        self.highest[...] = jnp.full_like(self.highest, MASKED_LSE)
        self.total[...] = jnp.zeros_like(self.total)

    def add(self, s: Array, v: Array, scales: Array | None = None) -> None:
        """Scores [block_q, block_k], -inf where hidden, and these keys' values; `scales` [block_q, block_k] of them."""
        block_k, head_dim = v.shape
        before = self.highest[...]
        highest = jnp.maximum(before, s.max(axis=1, keepdims=True))
        # A hidden score is -inf and `highest` is finite, so its weight is 0 also where nothing has been seen yet.
        p = jnp.exp2(s - spread(highest, block_k))
        shrink = jnp.exp2(before - highest)
        self.highest[...] = highest
        self.total[...] = shrink * self.total[...] + sum(p[:, j : j + LANES] for j in range(0, block_k, LANES))
        weights = p if scales is None else p * scales
        self.acc[...] = self.acc[...] * spread(shrink, head_dim) + dot(weights.astype(v.dtype), v, 1, 0)

    def finish(self, out_ref: Any) -> Array:
        """Write the normalised output; the natural log-sum-exp [block_q, LANES], the same in all lanes."""
        total = self.total[...].sum(axis=1, keepdims=True)
        seen = total > 0
        total = jnp.where(seen, total, 1.0)
        out_ref[...] = self.acc[...] / total
        return jnp.where(seen, self.highest[...] * (1 / LOG2_E) + jnp.log(total), MASKED_LSE)


def _kernel(
    tables: Tables,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    q_ids: Ids,
    k_ids: Ids,
    out_ref: Any,
    lse_ref: Any,
    softmax: Softmax,
    q_columns: Ids,
    *,
    factor: float,
    entry: Callable[[Array, Array, int], Array],
    q_blocks: int,
    k_blocks: int,
) -> None:
    """One block of queries against one block of keys. Scores are to base 2; `factor` is scale * log2(e)."""
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    q_entry = entry(b, i, q_blocks)
    visit = inspect(tables, q_entry, step, q_entry, entry(b, visited_block(tables, q_entry, step), k_blocks))

    @pl.when(step == 0)
    def _start() -> None:
        softmax.start()
        store_columns(q_columns, q_ids)

    def compute(masked: bool) -> None:
        s = dot(q_ref[...], k_ref[...], 1, 1) * factor
        softmax.add(hide(s, q_columns, k_ids) if masked else s, v_ref[...])

    when_visited(visit, compute)

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish() -> None:
        lse_ref[...] = softmax.finish(out_ref).T[:1]
