"""New tokens against a cache of keys and values, which may be spread over the ring.

The cache never moves: every device attends to its local shard, and one combination of (output, log-sum-exp) over the
ring joins the results (Shyam et al., Tree Attention, arXiv 2408.04093). What is sent is a query's output,
for any length of the cache.
"""

from types import ModuleType

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.kernels import CacheKernel, cache_kernel
from ringrl.attention.kv_cache import KVCache, Slots, Stored, store
from ringrl.attention.local_step import TokenIndex, merge


def cached_attention(
    q: Float[Array, "batch tokens heads head_dim"],
    k: Float[Array, "batch tokens kv_heads head_dim"],
    v: Float[Array, "batch tokens kv_heads head_dim"],
    cache: KVCache,
    layer: Int32[Array, ""],
    slots: Slots,
    *,
    positions: Int32[Array, "batch tokens"],
    segment_ids: Int32[Array, "batch tokens"],
    prompt: KVCache | None = None,
    scale: float | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    kernel: CacheKernel | None = None,
) -> tuple[Float[Array, "batch tokens heads head_dim"], Stored]:
    """Put the tokens' keys and values into a layer of the cache, and attend their queries to it.

    A token sees the entries of its own segment at or before its position, itself and those of the same call included.
    Forward only: it has no reverse-mode derivative.

    Args:
        q: queries, the same on every device of the ring.
        k: keys of the same tokens.
        v: values.
        cache: after `append_tokens`; with `axis_name`, this device's shard of it.
        layer: which layer of the cache.
        slots: from `append_tokens`.
        positions: of the tokens in their segments.
        segment_ids: of the tokens; 0 is padding, whose output is 0.
        prompt: a cache of one row that all rows of the batch see as well, where the segments are equal.
        scale: multiplies the scores; None is head_dim ** -0.5.
        axis_name: mesh axes over which both caches are spread, inside `jax.shard_map`; None: all is here.
        kernel: which implementation; None takes the best that the platform has.

    Returns:
        The output in q's dtype, on every device of the ring; and the cache's keys and values.

    Raises:
        ValueError: heads is not a multiple of kv_heads, or `kernel` cannot be used here.
    """
    module = cache_kernel(q, cache.stored, kernel)
    stored = module.write(cache.stored, store(k, v, cache.stored.k.dtype), layer, slots.at)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    queries, entries = TokenIndex(positions, segment_ids), TokenIndex(cache.positions, cache.segment_ids)
    result = module.attend(q, stored, layer, queries, entries, slots.filled, scale=factor)
    if prompt is not None:
        result = merge(result, _attend_prompt(module, q, prompt, layer, queries, factor, axis_name))
    if axis_name is not None:
        result = _combine(result[0], result[1], axis_name)
    return result[0].astype(q.dtype), stored


def _attend_prompt(
    module: ModuleType,
    q: Array,
    prompt: KVCache,
    layer: Array,
    queries: TokenIndex,
    scale: float,
    axis_name: str | tuple[str, ...] | None,
) -> tuple[Array, Array]:
    """All rows' queries to the one row of the prompt, which is read once for all of them."""
    here = jnp.zeros((), jnp.int32) if axis_name is None else lax.axis_index(axis_name)
    filled = lax.dynamic_index_in_dim(prompt.filled, here, 1, keepdims=False)
    entries = TokenIndex(prompt.positions, prompt.segment_ids)
    assert queries.segments is not None
    joined = TokenIndex(queries.positions.reshape(1, -1), queries.segments.reshape(1, -1))
    one = q.reshape(1, -1, *q.shape[2:])
    out, lse = module.attend(one, prompt.stored, layer, joined, entries, filled, scale=scale)
    return out.reshape(q.shape), lse.reshape(q.shape[:-1])


def _combine(
    out: Float32[Array, "*rows head_dim"], lse: Float32[Array, "*rows"], axis_name: str | tuple[str, ...]
) -> tuple[Array, Array]:
    """Join the devices' partial results: one maximum and one sum over the ring."""
    highest = lax.pmax(lse, axis_name)
    weight = jnp.exp(lse - highest)[..., None]
    total = lax.psum(jnp.concatenate([out * weight, weight], axis=-1), axis_name)
    return total[..., :-1] / total[..., -1:], highest + jnp.log(total[..., -1])
