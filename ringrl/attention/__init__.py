"""Exact attention: dense (the oracle), blockwise, over a ring of devices, and of new queries to a KV cache.

Arrays are [batch, length, heads, head_dim]; k and v may have fewer heads. Tokens attend to earlier ones of the same
segment id; id 0 is padding.

Example:
    >>> import jax, jax.numpy as jnp
    >>> import ringrl
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (1, 8, 2, 4)) for i in range(3))
    >>> ids = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]], jnp.int32)
    >>> exact = ringrl.attention.dense_attention(q, k, v, segment_ids=ids)
    >>> bool(jnp.allclose(ringrl.attention.blockwise_attention(q, k, v, segment_ids=ids, block_q=4), exact, atol=1e-5))
    True

Over a ring, `ring_attention` runs inside `jax.shard_map` on shards in ring order:

    >>> from functools import partial
    >>> from jax.sharding import Mesh, PartitionSpec as P
    >>> mesh, shards = Mesh(jax.devices()[:1], ("seq",)), P(None, "seq")
    >>> ring = jax.shard_map(partial(ringrl.attention.ring_attention, axis_name="seq"), mesh=mesh,
    ...     in_specs=(shards, shards, shards), out_specs=shards)
    >>> to_ring = partial(ringrl.attention.to_ring_order, ring_size=1, layout="zigzag")
    >>> out = ringrl.attention.from_ring_order(ring(*map(to_ring, (q, k, v))), 1, "zigzag")
    >>> bool(jnp.allclose(out, ringrl.attention.dense_attention(q, k, v), atol=1e-5))
    True
"""

from ringrl.attention.block_attention import MASKED_LSE
from ringrl.attention.blockwise import blockwise_attention
from ringrl.attention.decode import cached_attention
from ringrl.attention.dense import dense_attention
from ringrl.attention.kv_cache import KVCache, append_tokens, empty_cache, slots_for
from ringrl.attention.layout import Layout, from_ring_order, ring_positions, to_ring_order
from ringrl.attention.options import compiler_options
from ringrl.attention.ring import Exchange, ring_attention

__all__ = [
    "MASKED_LSE",
    "Exchange",
    "KVCache",
    "Layout",
    "append_tokens",
    "blockwise_attention",
    "cached_attention",
    "compiler_options",
    "dense_attention",
    "empty_cache",
    "from_ring_order",
    "ring_attention",
    "ring_positions",
    "slots_for",
    "to_ring_order",
]
