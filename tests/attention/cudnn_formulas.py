"""cuDNN's two calls as plain formulas, for machines without its GPUs."""

import jax
import jax.numpy as jnp
from jax import lax

from ringrl.attention.block_attention import MASKED_LSE

HIGHEST = lax.Precision.HIGHEST


def weights_of(q, k, lse, seen, scale):
    """Float32 weights [batch, heads, queries, keys] and scores; lse None: the scores' own."""
    k = jnp.repeat(k.astype(jnp.float32), q.shape[2] // k.shape[2], axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q.astype(jnp.float32), k, precision=HIGHEST) * scale
    scores = jnp.where(seen[None, None], scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=-1) if lse is None else lse
    return jnp.exp(scores - jnp.where(lse > MASKED_LSE / 2, lse, jnp.inf)[..., None]), lse


def attend(q, k, v, seen, scale):
    """Output in q's dtype and log-sum-exp [batch, heads, queries], as cuDNN gives them."""
    p, lse = weights_of(q, k, None, seen, scale)
    v = jnp.repeat(v.astype(jnp.float32), q.shape[2] // v.shape[2], axis=2)
    return jnp.einsum("bhqk,bkhd->bqhd", p, v, precision=HIGHEST).astype(q.dtype), lse


def differentiate(q, k, v, lse, out, d_out, seen, scale, d_lse=None):
    """The formulas of FlashAttention's algorithm 4, given the log-sum-exp; results in the inputs' dtype."""
    p, _ = weights_of(q, k, lse, seen, scale)
    kv_heads, group = k.shape[2], q.shape[2] // k.shape[2]
    qf, kf, vf, out, d_out = (x.astype(jnp.float32) for x in (q, k, v, out, d_out))
    kf, vf = jnp.repeat(kf, group, axis=2), jnp.repeat(vf, group, axis=2)
    delta = jnp.einsum("bqhd,bqhd->bhq", out, d_out)
    if d_lse is not None:
        delta = delta - d_lse
    dp = jnp.einsum("bqhd,bkhd->bhqk", d_out, vf, precision=HIGHEST)
    ds = p * (dp - delta[..., None]) * scale
    dq = jnp.einsum("bhqk,bkhd->bqhd", ds, kf, precision=HIGHEST)
    dk = jnp.einsum("bhqk,bqhd->bkhd", ds, qf, precision=HIGHEST)
    dv = jnp.einsum("bhqk,bqhd->bkhd", p, d_out, precision=HIGHEST)
    shared = lambda x: x.reshape(*x.shape[:2], kv_heads, group, -1).sum(3)  # noqa: E731
    return dq.astype(q.dtype), shared(dk).astype(k.dtype), shared(dv).astype(v.dtype)


def top_left(q, k, causal):
    """cuDNN's causal mask begins in the corner of row 0 and key 0, for any lengths."""
    full = jnp.ones((q.shape[1], k.shape[1]), bool)
    return jnp.tril(full) if causal else full
