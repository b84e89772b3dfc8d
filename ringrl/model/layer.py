"""One layer of the decoder, as one device computes it on its own tokens, inside `jax.shard_map` or alone.

Pre-norm (RMSNorm), rotary positions within the segment, grouped-query attention, GELU or SwiGLU MLP computed
block by block. Shapes: B batch, S tokens, W width, H query heads, K key-value heads, D head_dim, G groups of heads.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from ringrl.attention.local_step import ATTENTION_NAMES
from ringrl.config import ModelConfig
from ringrl.model.rotary import rotate, token_angles
from ringrl.model.token_blocks import blockwise
from ringrl.model_config import rope_base_for

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]  # (q, k, v, segment_ids) -> out
Sum = Callable[[jax.Array], jax.Array]  # over the devices that share a token's heads and hidden width (tensor)


class LayerInput(NamedTuple):
    """The tokens that a layer computes on; a pytree."""

    x: jax.Array  # [B, S, W], the residual stream
    positions: jax.Array  # int32 [B, S], within the segment
    segment_ids: jax.Array  # int32 [B, S]; 0 is padding
    trials: jax.Array | None = None  # int32 [B, S], of the context; None: tokens are not rotated by them


class QKVProjection(nnx.Module):
    """RMSNorm and the projections to queries, keys and values (Vaswani et al. 2017, section 3.2.2), without biases."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        linear = _linear(config, rngs)
        self.head_dim, self.rope_base = config.width // config.heads, config.rope_base or rope_base_for(0)
        self.rotated = config.position_encoding == "rotary"
        self.norm = nnx.RMSNorm(config.width, dtype=jnp.dtype(config.compute_dtype), rngs=rngs)
        self.query = linear(config.width, config.heads * self.head_dim)
        self.key = linear(config.width, config.kv_heads * self.head_dim)
        self.value = linear(config.width, config.kv_heads * self.head_dim)

    def __call__(
        self, x: jax.Array, positions: jax.Array, trials: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q [B, S, H, D] and k, rotated if positions are encoded, and v [B, S, K, D], of the local heads."""
        x = self.norm(x)
        q, k, v = (f(x).reshape(*x.shape[:2], -1, self.head_dim) for f in (self.query, self.key, self.value))
        if not self.rotated:
            return q, k, v
        angle = token_angles(positions, trials, self.head_dim // 2, self.rope_base)
        return rotate(q, angle), rotate(k, angle), v


class OutputAndMLP(nnx.Module):
    """The projection of attention's output and the MLP, each added to the residual stream (Vaswani et al. 2017).

    x <- x + out(heads),    x <- x + down(gelu(up(norm(x))))    or, for SwiGLU (Shazeer 2020, arXiv 2002.05202),
    x <- x + down(silu(gate(norm(x))) * up(norm(x)))
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        linear, hidden = _linear(config, rngs), config.hidden or 4 * config.width
        # Outputs into the residual stream start small, so that its variance does not grow with depth (GPT-2).
        small = nnx.initializers.variance_scaling(0.5 / config.layers, "fan_in", "normal")
        self.out = linear(config.width, config.width, kernel_init=small)
        self.norm = nnx.RMSNorm(config.width, dtype=jnp.dtype(config.compute_dtype), rngs=rngs)
        self.up = linear(config.width, hidden)
        self.gate = linear(config.width, hidden) if config.activation == "swiglu" else None
        self.down = linear(hidden, config.width, kernel_init=small)

    def __call__(self, x: jax.Array, heads: jax.Array, total: Sum) -> jax.Array:
        """The residual stream [B, S, W] after the layer; `heads` [G, B, S, H/G * D] is attention's output."""
        kernel = self.out.kernel[...].astype(x.dtype).reshape(heads.shape[0], heads.shape[-1], -1)
        heads = heads.reshape(heads.shape[0], -1, heads.shape[-1])  # tokens on one axis: see `_token_dot`
        x = x + total(jnp.einsum("gtd,gdw->tw", heads, kernel).reshape(x.shape))
        normed = self.norm(x)
        hidden = jax.nn.gelu(self.up(normed)) if self.gate is None else jax.nn.silu(self.gate(normed)) * self.up(normed)
        return x + total(self.down(hidden))


def _token_dot(
    x: Float[Array, "*rows inputs"], kernel: Float[Array, "inputs outputs"], dimensions: Any, **options: Any
) -> Float[Array, "*rows outputs"]:
    """`lax.dot_general` of the last axis and the first, for `nnx.Linear`, with all rows on one axis.

    The kernel's gradient is a sum over all axes of rows. Over two of them, batch and tokens, XLA's CPU backend first
    copies both factors into another order, element by element: longer work than the product.
    """
    del dimensions
    y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return y.reshape(*x.shape[:-1], -1)


def _linear(config: ModelConfig, rngs: nnx.Rngs) -> Callable[..., nnx.Linear]:
    dtype = jnp.dtype(config.compute_dtype)
    return partial(nnx.Linear, use_bias=False, dtype=dtype, param_dtype=jnp.float32, dot_general=_token_dot, rngs=rngs)


class Layer(nnx.Module):
    """A pre-norm layer: y = x + attention(norm(x)), then y + MLP(norm(y)) (Xiong et al. 2020, arXiv 2002.04745).

    The two modules are called `before` and `after` (attention) in the paths of parameters in checkpoints.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.before = QKVProjection(config, rngs=rngs)
        self.after = OutputAndMLP(config, rngs=rngs)

    def __call__(self, tokens: LayerInput, attend: Attend, total: Sum) -> jax.Array:
        """The residual stream [B, S, W] after the layer."""
        return self.output_and_mlp(tokens.x, self.attention(tokens, attend), total)

    def output_and_mlp(self, x: jax.Array, heads: jax.Array, total: Sum) -> jax.Array:
        """`OutputAndMLP` for one block of tokens after the other (with remat `none`, for all at once): [B, S, W]."""
        graph, weights = nnx.split(self.after)

        def after(weights: Any, parts: tuple[jax.Array, jax.Array], _: None) -> jax.Array:
            return nnx.merge(graph, weights)(*parts, total)

        return blockwise(after, weights, (x, heads), self._block(x), axes=(1, 2))

    def _block(self, x: jax.Array) -> int:
        return x.shape[1] if self.config.remat == "none" else self.config.feed_forward_block

    def attention(self, tokens: LayerInput, attend: Attend) -> Float[Array, "groups batch length width"]:
        """Attention's output of all local heads, for `head_groups` groups of them one after the other.

        Queries, keys, values, their gradients and what the ring sends are then in memory for one group at a time; the
        group's projections are recomputed in the backward pass, attention itself is not.
        """
        groups = self.config.head_groups
        graph, weights = nnx.split(self.before)

        def before(weights: Any, x: jax.Array, where: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, ...]:
            return nnx.merge(graph, weights)(x, *where)

        block = tokens.x.shape[1] if groups == 1 else self._block(tokens.x)

        def group(weights: Any) -> jax.Array:
            q, k, v = blockwise(before, weights, tokens.x, block, constants=(tokens.positions, tokens.trials))
            out = attend(q, k, v, tokens.segment_ids)
            return out.reshape(*out.shape[:2], -1)

        if groups == 1:
            return group(weights)[None]

        def split(w: jax.Array) -> jax.Array:
            if w.ndim == 1:
                return jnp.broadcast_to(w[None], (groups, *w.shape))
            return jnp.moveaxis(w.reshape(w.shape[0], groups, -1), 1, 0)

        keep = jax.checkpoint_policies.save_only_these_names(*ATTENTION_NAMES)
        return lax.map(jax.checkpoint(group, policy=keep, prevent_cse=False), jax.tree.map(split, weights))
