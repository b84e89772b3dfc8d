"""A causal decoder for any length: scanned, rematerialised layers, exact attention, blockwise feed-forward.

Pre-norm (RMSNorm), rotary positions within the segment, grouped-query attention, GELU feed-forward computed block by
block (Blockwise Parallel Transformer, Liu & Abbeel 2023; Ring Attention, section 3). Shapes: B batch, S tokens,
W width, H query heads, K key-value heads, D head_dim.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int32

from ringrl.attention import Exchange, Layout, blockwise_attention, decode_attention, ring_attention
from ringrl.config import ModelConfig
from ringrl.model.heads import Head
from ringrl.model.tokens import Steps, TokenEmbedder, TokenLayout

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]  # (q, k, v, segment_ids) -> out
Cache = dict[str, jax.Array]  # k, v [layers, B, C, K, D]; segment_ids, positions [B, C]; cursor []: tokens written
BATCH_AXES = ("data", "fsdp")
SEQUENCE_AXES = ("seq", "heads")


def make_attend(mesh: Mesh | None, layout: Layout, block: int | None, exchange: Exchange = "ring") -> Attend:
    """Attention for this mesh, of sequences that `seq` and `heads` split; of whole sequences without a mesh."""
    if mesh is None:
        alone = cast(Callable[..., jax.Array], partial(blockwise_attention, block_q=block, block_k=block))
        return lambda q, k, v, segment_ids: alone(q, k, v, segment_ids=segment_ids)
    axes = SEQUENCE_AXES if mesh.shape["heads"] > 1 else "seq"
    which = partial(ring_attention, axis_name=axes, layout=layout, exchange=exchange, block_q=block, block_k=block)
    local = cast(Callable[..., jax.Array], which)
    heads, ids = P(BATCH_AXES, SEQUENCE_AXES, "tensor", None), P(BATCH_AXES, SEQUENCE_AXES)
    return jax.shard_map(
        lambda q, k, v, segment_ids: local(q, k, v, segment_ids=segment_ids),
        mesh=mesh,
        in_specs=(heads, heads, heads, ids),
        out_specs=heads,
        check_vma=False,
    )


def rotate(
    x: Float[Array, "batch length heads head_dim"], positions: Int32[Array, "batch length"]
) -> Float[Array, "batch length heads head_dim"]:
    """Rotary position embedding (Su et al. 2021), halves convention, base 10,000; angles in float32."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    left, right = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


class Layer(nnx.Module):
    """Attention and feed-forward, each behind a norm and beside a residual stream."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype, width, hidden = jnp.dtype(config.compute_dtype), config.width, config.width * config.feed_forward
        head_dim = width // config.heads
        linear = partial(nnx.Linear, use_bias=False, dtype=dtype, param_dtype=jnp.float32, rngs=rngs)
        # Outputs into the residual stream start small, so that its variance does not grow with depth (GPT-2).
        closing = nnx.initializers.variance_scaling(0.5 / config.layers, "fan_in", "normal")
        self.attention_norm = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
        self.query = linear(width, config.heads * head_dim)
        self.key = linear(width, config.kv_heads * head_dim)
        self.value = linear(width, config.kv_heads * head_dim)
        self.out = linear(config.heads * head_dim, width, kernel_init=closing)
        self.feed_forward_norm = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
        self.up = linear(width, hidden)
        self.down = linear(hidden, width, kernel_init=closing)

    def query_key_value(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated q [B, S, H, D] and k, and v [B, S, K, D], from the residual stream [B, S, W]."""
        x = self.attention_norm(x)
        q, k, v = (
            f(x).reshape(*x.shape[:2], -1, self.config.width // self.config.heads)
            for f in (self.query, self.key, self.value)
        )
        return rotate(q, positions), rotate(k, positions), v

    def attended(self, x: jax.Array, out: jax.Array) -> jax.Array:
        """The residual stream after attention gave `out` [B, S, H, D]."""
        return x + self.out(out.reshape(*out.shape[:2], -1))

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """The feed-forward with its residual, on any [..., W]."""
        return x + self.down(jax.nn.gelu(self.up(self.feed_forward_norm(x))))


def blockwise(f: Callable[[jax.Array], jax.Array], x: jax.Array, block: int, shards: int) -> jax.Array:
    """`f` on [B, S, W] applied to `block` tokens a device at a time and recomputed in the backward pass.

    The `shards` that split S over devices stay on an axis of their own, so that each device walks its own tokens and no
    token changes place. Tokens that fill no whole block are applied to at the end.
    """
    batch, length, width = x.shape
    local = length // shards
    whole = local // block
    if whole == 0 or (whole == 1 and local == block):
        return f(x)
    y = x.reshape(batch, shards, local, width)
    f = jax.checkpoint(f)
    blocks = jnp.moveaxis(y[:, :, : whole * block].reshape(batch, shards, whole, block, width), 2, 0)
    done = jnp.moveaxis(jax.lax.map(f, blocks), 0, 2).reshape(batch, shards, whole * block, width)
    rest = [f(y[:, :, whole * block :])] if local % block else []
    return jnp.concatenate([done, *rest], axis=2).reshape(batch, length, width)


class Transformer(nnx.Module):
    """Steps -> raw action outputs. Layers are stacked on a leading axis and scanned."""

    def __init__(
        self, config: ModelConfig, layout: TokenLayout, head: Head, sizes: Mapping[str, int], *, rngs: nnx.Rngs
    ):
        self.config, self.layout, self.head = config, layout, head
        self.action_size = sizes["action"]
        self.embed = TokenEmbedder(layout, sizes, config.width, config.max_steps, config.max_trials, rngs=rngs)
        stack = nnx.vmap(lambda layer_rngs: Layer(config, rngs=layer_rngs), in_axes=0, out_axes=0)
        self.layers = stack(rngs.split(config.layers))
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.output = nnx.Linear(config.width, self.action_size * head.outputs, rngs=rngs)

    def __call__(self, steps: Steps, attend: Attend, seq_shards: int = 1) -> Float[Array, "batch steps action outputs"]:
        """Raw head outputs at every step. `steps` are `episode.Batch`'s; `seq_shards` devices share a sequence."""
        x, positions, segment_ids = self.embed(steps)
        y, _ = self._run(x, positions, segment_ids, attend, seq_shards)
        return self._read(self.embed.read(y))

    def prefill(self, steps: Steps, attend: Attend, capacity: int) -> Cache:
        """The cache after `steps`, with room for `capacity` tokens."""
        x, positions, segment_ids = self.embed(steps)
        _, (k, v) = self._run(x, positions, segment_ids, attend, 1, keep=True)
        tokens = x.shape[1]
        cache = self.empty_cache(x.shape[0], capacity)
        return cache | {
            "k": cache["k"].at[:, :, :tokens].set(k),
            "v": cache["v"].at[:, :, :tokens].set(v),
            "segment_ids": cache["segment_ids"].at[:, :tokens].set(segment_ids),
            "positions": cache["positions"].at[:, :tokens].set(positions),
            "cursor": jnp.asarray(tokens, jnp.int32),
        }

    def empty_cache(self, batch: int, capacity: int) -> Cache:
        """A KV cache for `batch` rows of up to `capacity` tokens; segment id 0 marks an empty slot."""
        c = self.config
        shape = (c.layers, batch, capacity, c.kv_heads, c.width // c.heads)
        dtype = jnp.dtype(c.compute_dtype)
        return {  # an array each: a caller donates the cache, and one buffer cannot be given twice
            "k": jnp.zeros(shape, dtype),
            "v": jnp.zeros(shape, dtype),
            "segment_ids": jnp.zeros((batch, capacity), jnp.int32),
            "positions": jnp.zeros((batch, capacity), jnp.int32),
            "cursor": jnp.zeros((), jnp.int32),
        }

    def decode(
        self, previous: Steps, current: Steps, cache: Cache
    ) -> tuple[Float[Array, "batch action outputs"], Cache]:
        """Raw outputs for the current step's action, and the cache with the step's tokens; fields are [batch, 1].

        See `TokenEmbedder.following` for which tokens those are. The caller keeps `cursor` within the capacity.
        """
        x, positions, segment_ids = self.embed.following(previous, current)
        cursor = cache["cursor"]
        seen = jax.lax.dynamic_update_slice(cache["segment_ids"], segment_ids, (0, cursor))
        where = jax.lax.dynamic_update_slice(cache["positions"], positions, (0, cursor))
        graph, stacked = nnx.split(self.layers)

        def step(carry: tuple[jax.Array, jax.Array, jax.Array], inputs: tuple[jax.Array, Any]):
            x, keys, values = carry
            index, layer = inputs[0], nnx.merge(graph, inputs[1])
            q, k, v = layer.query_key_value(x, positions)
            keys = jax.lax.dynamic_update_slice(keys, k[None], (index, 0, cursor, 0, 0))
            values = jax.lax.dynamic_update_slice(values, v[None], (index, 0, cursor, 0, 0))
            here = [jax.lax.dynamic_index_in_dim(c, index, keepdims=False) for c in (keys, values)]
            out: Any = decode_attention(
                q,
                *here,
                q_segment_ids=segment_ids,
                cache_segment_ids=seen,
                q_positions=positions,
                cache_positions=where,
            )
            return (layer.feed_forward(layer.attended(x, out)), keys, values), None

        x = x.astype(cache["k"].dtype)
        indices = jnp.arange(self.config.layers, dtype=jnp.int32)
        (x, keys, values), _ = jax.lax.scan(step, (x, cache["k"], cache["v"]), (indices, stacked))
        cache = {
            "k": keys,
            "v": values,
            "segment_ids": seen,
            "positions": where,
            "cursor": cursor + jnp.asarray(x.shape[1], jnp.int32),
        }
        return self._read(x[:, -1]), cache

    def _run(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        attend: Attend,
        shards: int,
        keep: bool = False,
    ) -> tuple[jax.Array, Any]:
        """All layers over [B, S, W], and where `keep` every layer's k and v, [layers, B, S, K, D] each."""
        graph, stacked = nnx.split(self.layers)

        def step(x: jax.Array, state: Any):
            layer = nnx.merge(graph, state)
            q, k, v = layer.query_key_value(x, positions)
            x = layer.attended(x, attend(q, k, v, segment_ids))
            return blockwise(layer.feed_forward, x, self.config.feed_forward_block, shards), (k, v) if keep else None

        if self.config.remat:
            step = jax.checkpoint(step, prevent_cse=False)  # a scan already keeps the recomputation apart
        return jax.lax.scan(step, x.astype(jnp.dtype(self.config.compute_dtype)), stacked)

    def _read(self, features: jax.Array) -> jax.Array:
        raw = self.output(self.norm(features.astype(jnp.float32)))
        return raw.reshape(*raw.shape[:-1], self.action_size, self.head.outputs)
