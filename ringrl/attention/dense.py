"""The oracle: softmax(scale Q K^T) V (Vaswani et al., arXiv 1706.03762, equation 1) with all scores in memory.

Slow and plain; tests compare every other implementation with it.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.block_attention import MASKED_LSE, group_size


def dense_attention(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    *,
    segment_ids: Int32[Array, "batch length"] | None = None,
    causal: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
) -> (
    Float[Array, "batch length heads head_dim"]
    | tuple[Float[Array, "batch length heads head_dim"], Float32[Array, "batch heads length"]]
):
    """Attention with every step written out and computed in float32 at the highest matmul precision.

    Args:
        q: queries.
        k: keys; heads must be a multiple of kv_heads (grouped queries: query head h reads key head h // group).
        v: values.
        segment_ids: tokens attend only to equal ids; 0 is padding, whose output is 0. None: one segment.
        causal: a token sees only itself and earlier tokens.
        scale: multiplies the scores; None is head_dim ** -0.5.
        return_lse: also return the log-sum-exp of every query's scores.

    Returns:
        The output in q's dtype; with `return_lse`, also the log-sum-exp, `MASKED_LSE` where a query sees nothing.
        Gradients are finite everywhere and 0 for what a query does not see.
    """
    batch, length, heads, head_dim = q.shape
    group = group_size(heads, k.shape[2])
    factor = head_dim**-0.5 if scale is None else scale
    qf = q.astype(jnp.float32)
    kf = jnp.repeat(k.astype(jnp.float32), group, axis=2)
    vf = jnp.repeat(v.astype(jnp.float32), group, axis=2)

    visible = jnp.ones((batch, length, length), bool)
    if causal:
        visible &= jnp.tril(jnp.ones((length, length), bool))[None]
    if segment_ids is not None:
        visible &= (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, :, None] != 0)
    visible = visible[:, None]  # [batch, 1, query, key]

    scores = jnp.einsum("bqhd,bkhd->bhqk", qf, kf, precision=lax.Precision.HIGHEST) * factor
    scores = jnp.where(visible, scores, MASKED_LSE)
    highest = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.where(visible, jnp.exp(scores - highest), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    seen = total > 0
    # The inner where keeps 1 / 0 and log(0) out of the gradient of rows that see nothing.
    total = jnp.where(seen, total, 1.0)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights / total, vf, precision=lax.Precision.HIGHEST).astype(q.dtype)
    if not return_lse:
        return out
    lse = jnp.where(seen, highest + jnp.log(total), MASKED_LSE)
    return out, lse[..., 0]
