"""A few new queries against a cache of keys and values, which may be spread over the ring.

The cache never moves: every device attends to its local shard, and one combination of (output, log-sum-exp) over the
ring joins the results (Shyam et al., Tree Attention, arXiv 2408.04093). What is sent is a query's output,
for any length of the cache. Entries may be in any order and on any device, because every entry has its position.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.block_attention import TokenBlocks, forward_blocks, needed_blocks, vary_like
from ringrl.attention.kernels import make_sizes
from ringrl.attention.kernels.xla import XlaStep
from ringrl.attention.local_step import TokenIndex, finish

CACHE_BLOCK = 1024
"""Cache entries that are read at a time. Blocks without any entry that a query sees are not read."""

QUERY_BLOCK = 256
"""Queries at a time, so that a long prompt needs no [queries, CACHE_BLOCK] scores of all its tokens at once."""


def decode_attention(
    q: Float[Array, "batch queries heads head_dim"],
    k_cache: Float[Array, "batch cache kv_heads head_dim"],
    v_cache: Float[Array, "batch cache kv_heads head_dim"],
    *,
    q_segment_ids: Int32[Array, "batch queries"],
    cache_segment_ids: Int32[Array, "batch cache"],
    q_positions: Int32[Array, "batch queries"],
    cache_positions: Int32[Array, "batch cache"],
    scale: float | None = None,
    axis_name: str | None = None,
    return_lse: bool = False,
) -> (
    Float[Array, "batch queries heads head_dim"]
    | tuple[Float[Array, "batch queries heads head_dim"], Float32[Array, "batch heads queries"]]
):
    """Attend new queries to the cache entries of their own segment at or before their positions.

    The queries' own keys and values must already be in the cache. Forward only: it has no reverse-mode derivative.

    Args:
        q: queries, the same on every device of the ring.
        k_cache: keys; with `axis_name`, this device's shard of them, in any layout.
        v_cache: values of the same entries.
        q_segment_ids: segment of each query; 0 is padding, whose output is 0.
        cache_segment_ids: segment of each entry; 0 is an empty slot, whose content is ignored (but must be finite).
        q_positions: position of each query in its segment, from 0.
        cache_positions: position of each entry; a query sees it if this is at most the query's own position.
        scale: multiplies the scores; None is head_dim ** -0.5.
        axis_name: the mesh axis over which the cache is spread, inside `jax.shard_map`; None: all of it is here.
        return_lse: also return the log-sum-exp of every query's scores.

    Returns:
        The output in q's dtype, on every device of the ring; with `return_lse`, also the float32 log-sum-exp,
        `MASKED_LSE` where a query sees nothing.

    Raises:
        ValueError: heads is not a multiple of kv_heads.
    """
    arrays = (q, k_cache, v_cache, q_segment_ids, cache_segment_ids, q_positions, cache_positions)
    q, k_cache, v_cache, q_segment_ids, cache_segment_ids, q_positions, cache_positions = vary_like(arrays, arrays)
    sizes = make_sizes(q, k_cache, scale=scale, block_q=QUERY_BLOCK, block_k=CACHE_BLOCK)
    step = XlaStep(sizes)
    q_tokens = step.q_blocks(TokenIndex(q_positions, q_segment_ids))
    starts, k_tokens = _cache_blocks(cache_positions, cache_segment_ids)

    def fetch(j: Array) -> tuple[Array, Array]:
        block_k = k_tokens.positions.shape[-1]
        k_block, v_block = (lax.dynamic_slice_in_dim(x, starts[j], block_k, 1) for x in (k_cache, v_cache))
        return k_block.swapaxes(1, 2), v_block.swapaxes(1, 2)

    needed = needed_blocks(q_tokens, k_tokens)
    result = forward_blocks(step.pack_q(q), fetch, q_tokens, k_tokens, needed, step.sizes.scale)
    if axis_name is not None:
        result = _combine(*result, axis_name)
    out, lse = finish(step, result, q.dtype)
    return (out, lse) if return_lse else out


def _cache_blocks(positions: Array, segments: Array) -> tuple[Array, TokenBlocks]:
    """Where each block of the cache starts, and its tokens. The cache is read in place, neither padded nor copied.

    The last block is moved back to end with the cache; entries that are in the block before it count as empty.
    """
    entries = positions.shape[1]
    block = min(entries, CACHE_BLOCK)
    wanted = np.arange(0, entries, block)
    starts = np.minimum(wanted, entries - block)
    index = starts[:, None] + np.arange(block)
    fresh = jnp.asarray(index >= wanted[:, None])[None]
    segments = jnp.where(fresh, segments[:, index], 0)
    return jnp.asarray(starts, jnp.int32), TokenBlocks(positions[:, index].swapaxes(0, 1), segments.swapaxes(0, 1))


def _combine(out: Array, lse: Array, axis_name: str) -> tuple[Array, Array]:
    """Join the devices' partial results: one maximum and one sum over the ring."""
    highest = lax.pmax(lse, axis_name)
    weight = jnp.exp(lse - highest)[..., None]
    total = lax.psum(jnp.concatenate([out * weight, weight], axis=-1), axis_name)
    return total[..., :-1] / total[..., -1:], highest + jnp.log(total[..., -1])
