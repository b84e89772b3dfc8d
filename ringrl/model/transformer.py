"""A causal decoder for any length: scanned, rematerialised layers, exact attention, everything else block by block.

Every part is sharded over a mesh by `ringrl.model.sharding`; one layer is computed in `ringrl.model.layer`.
Shapes: B batch, S tokens, W width, H query heads, K key-value heads, D head_dim.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from ringrl.attention import (
    Exchange,
    KVCache,
    Layout,
    append_tokens,
    blockwise_attention,
    cached_attention,
    ring_attention,
)
from ringrl.attention.kv_cache import Stored
from ringrl.attention.local_step import ATTENTION_NAMES
from ringrl.config import ModelConfig
from ringrl.model.layer import Attend, Layer, LayerInput, Sum
from ringrl.model.output_heads import OutputHead, Vocabulary
from ringrl.model.sharding import GATHERED, SEQUENCE_AXES, gather, on_mesh, partitions, run_local
from ringrl.model.token_blocks import blockwise
from ringrl.model.token_ids import TokenIds
from ringrl.model.tokens import StepArrays, TokenLayout

Loss = Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array]  # (raw outputs, batch) -> float32 [B, steps]
_LAYER_INPUT = "layer_input"


def make_attend(
    mesh: Mesh | None, layout: Layout, block: int | None, exchange: Exchange = "ring", stripe: int = 1
) -> Attend:
    """Attention as a device of this mesh computes it, inside `jax.shard_map`; of whole sequences without a mesh.

    `stripe` is in tokens (`ringrl.attention.ring_attention`).
    """
    if mesh is None or mesh.shape["seq"] * mesh.shape["heads"] == 1:
        which = partial(blockwise_attention, block_q=block, block_k=block)
    else:
        axes = SEQUENCE_AXES if mesh.shape["heads"] > 1 else "seq"
        where = {"axis_name": axes, "layout": layout, "stripe": stripe, "exchange": exchange}
        which = partial(ring_attention, **where, block_q=block, block_k=block)
    local = cast(Callable[..., jax.Array], which)
    return lambda q, k, v, segment_ids: local(q, k, v, segment_ids=segment_ids)


def _all_but_gathered(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """A policy that keeps everything but gathered parameters: they would be a copy of the model on every device.

    JAX's own `save_anything_except_these_names` keeps the value that was named all the same. So gathering is refused as
    a whole, and with it reshapes and casts, which cost nothing to do again.
    """
    if primitive.name == "custom_vjp_call":
        inside = parameters["call_jaxpr"].eqns
        return not any(equation.params.get("name") == GATHERED for equation in inside)
    return primitive.name not in ("reshape", "convert_element_type")


def _rematerialise(f: Callable, remat: Literal["none", "block", "full", "offload"]) -> Callable:
    """`f` of a scan over layers, which saves for the backward pass what the policy `remat` (`ModelConfig`) names."""
    policies = jax.checkpoint_policies
    policy = {
        "none": _all_but_gathered,
        "block": policies.save_only_these_names(*ATTENTION_NAMES),
        "full": policies.nothing_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_LAYER_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[remat]
    return jax.checkpoint(f, policy=policy, prevent_cse=False)  # a scan already keeps the recomputation apart


class HeadProjection(nnx.Module):
    """RMSNorm and the linear map from features to the raw outputs of the output head."""

    def __init__(self, config: ModelConfig, head: OutputHead, action_size: int, *, rngs: nnx.Rngs):
        self.shape = (action_size, head.outputs)
        # A few outputs a token cost nothing in float32; a vocabulary does.
        self.dtype = jnp.dtype(config.compute_dtype if isinstance(head, Vocabulary) else jnp.float32)
        self.norm = nnx.RMSNorm(config.width, dtype=self.dtype, rngs=rngs)
        self.output = nnx.Linear(config.width, action_size * head.outputs, dtype=self.dtype, rngs=rngs)

    def __call__(self, features: Float[Array, "*rows width"]) -> Float[Array, "*rows action outputs"]:
        """Raw outputs, in float32 but for a vocabulary's."""
        raw = self.output(self.norm(features.astype(self.dtype)))
        return raw.reshape(*raw.shape[:-1], *self.shape)


class Transformer(nnx.Module):
    """Steps -> raw outputs of the output head. Layers are stacked on a leading axis and scanned.

    The attributes `embed`, `layers` and `read` are the first part of parameters' paths in checkpoints.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: TokenLayout | TokenIds,
        head: OutputHead,
        sizes: Mapping[str, int],
        *,
        rngs: nnx.Rngs,
    ):
        self.config, self.layout, self.head = config, layout, head
        self.embed = layout.embedder(sizes, config, rngs=rngs)
        stack = nnx.vmap(lambda layer_rngs: Layer(config, rngs=layer_rngs), in_axes=0, out_axes=0)
        self.layers = stack(rngs.split(config.layers))
        self.read = HeadProjection(config, head, layout.predicted(sizes), rngs=rngs)

    def __call__(
        self, steps: StepArrays, attend: Attend, mesh: Mesh | None = None
    ) -> Float[Array, "batch steps action outputs"]:
        """Raw outputs at every step, for the fields of `ringrl.batch.Batch` and `make_attend`'s result for `mesh`."""
        features = self._features(steps, attend, mesh)
        return on_mesh(mesh, self.read, "read", lambda read, y: read(self.embed.read(y)), features, self.read.dtype)

    def losses(
        self, steps: StepArrays, loss: Loss, attend: Attend, mesh: Mesh | None = None
    ) -> Float[Array, "batch steps"]:
        """`loss` of each step, one block of steps after the other: raw outputs are never in memory for all."""
        block, outputs = self.config.feed_forward_block, self.read.shape[0] * self.read.shape[1]
        block = max(block * self.config.width // max(outputs, self.config.width), 1)  # no more numbers than features

        def local(read: HeadProjection, tokens: tuple[jax.Array, StepArrays]) -> jax.Array:
            graph, weights = nnx.split(read)
            each = lambda weights, y, steps: loss(nnx.merge(graph, weights)(y), steps)  # noqa: E731
            return blockwise(each, weights, self.embed.read(tokens[0]), block, constants=tokens[1])

        features = self._features(steps, attend, mesh)
        return on_mesh(mesh, self.read, "read", local, (features, dict(steps)), self.read.dtype)

    def _features(self, steps: StepArrays, attend: Attend, mesh: Mesh | None) -> Float[Array, "batch tokens width"]:
        dtype, (graph, stacked) = jnp.dtype(self.config.compute_dtype), nnx.split(self.layers)
        tokens = on_mesh(mesh, self.embed, "embed", lambda embed, steps: embed(steps), dict(steps), jnp.float32)
        specs, total = None, lambda part: part
        if mesh is not None:
            stored = partitions(stacked, mesh, "layers")
            specs = jax.tree.map(lambda spec: P(*spec[1:]), stored, is_leaf=lambda x: isinstance(x, P))
            total = partial(lax.psum, axis_name="tensor") if mesh.shape["tensor"] > 1 else total

        def compute(params: Any, tokens: LayerInput) -> jax.Array:
            params = params if mesh is None else gather(params, specs, dtype)
            return nnx.merge(graph, params)(tokens, attend, total)

        local = run_local(mesh, specs, compute)

        def step(x: jax.Array, params: Any) -> tuple[jax.Array, None]:
            return local(params, tokens._replace(x=checkpoint_name(x, _LAYER_INPUT))), None

        return lax.scan(_rematerialise(step, self.config.remat), tokens.x.astype(dtype), stacked)[0]

    def extend(
        self,
        tokens: LayerInput,
        cache: KVCache,
        *,
        prompt: KVCache | None = None,
        total: Sum = lambda part: part,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> tuple[Float[Array, "batch tokens width"], KVCache]:
        """Features of the tokens, which follow those in the cache, and the cache with theirs.

        Args:
            tokens: embedded; a row keeps them up to the last that has a segment.
            cache: with `axis_name`, this device's shard of it.
            prompt: a cache of one row that all rows see as well.
            total: the sum over the devices that share a token's heads.
            axis_name: mesh axes over which the caches are spread, inside `jax.shard_map`.
        """
        cache, slots = append_tokens(cache, tokens.positions, tokens.segment_ids, axis_name)
        graph, stacked = nnx.split(self.layers)
        where = {"positions": tokens.positions, "segment_ids": tokens.segment_ids, "axis_name": axis_name}

        def step(carry: tuple[jax.Array, Stored], inputs: tuple[jax.Array, Any]) -> tuple[Any, None]:
            (x, stored), layer = carry, nnx.merge(graph, inputs[1])
            q, k, v = layer.before(x, tokens.positions, tokens.trials)
            here = cache._replace(stored=stored)
            out, stored = cached_attention(q, k, v, here, inputs[0], slots, prompt=prompt, **where)
            return (layer.after(x, out.reshape(1, *x.shape[:2], -1), total), stored), None

        x = tokens.x.astype(jnp.dtype(self.config.compute_dtype))
        indices = jnp.arange(self.config.layers, dtype=jnp.int32)
        (x, stored), _ = lax.scan(step, (x, cache.stored), (indices, stacked))
        return x, cache._replace(stored=stored)
