"""Exact attention on one device, block by block: memory grows with the length, not with its square.

Only q, k, v, the output and its log-sum-exp are kept for the backward pass, which recomputes the weights (Rabe &
Staats, arXiv 2112.05682; Dao et al., FlashAttention, arXiv 2205.14135). Blocks of which no pair of tokens is visible,
be it for causality or for segments, are not computed in either direction.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.block_attention import vary_like
from ringrl.attention.kernels import Kernel, make_step
from ringrl.attention.local_step import LocalStep, TokenIndex, backward_rows, check_inputs, finish, query_tokens


def blockwise_attention(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    *,
    segment_ids: Int32[Array, "batch length"] | None = None,
    causal: bool = True,
    scale: float | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
    kernel: Kernel | None = None,
    return_lse: bool = False,
) -> (
    Float[Array, "batch length heads head_dim"]
    | tuple[Float[Array, "batch length heads head_dim"], Float32[Array, "batch heads length"]]
):
    """Exact attention, forward and backward, in memory linear in the length.

    Args:
        q: queries.
        k: keys; heads must be a multiple of kv_heads (query head h reads key head h // group). They are not repeated.
        v: values.
        segment_ids: tokens attend only to equal ids; 0 is padding, whose output is 0. None: one segment.
        causal: a token sees only itself and earlier tokens.
        scale: multiplies the scores; None is head_dim ** -0.5.
        block_q: longest block of queries; None chooses one for the platform. Any length works: see `tiling.fit_block`.
        block_k: longest block of keys.
        kernel: implementation of the local step (`ringrl.attention.kernels`); None takes the platform's.
        return_lse: also return the log-sum-exp of every query's scores.

    Returns:
        The output in q's dtype; with `return_lse`, also the float32 log-sum-exp (differentiable), `MASKED_LSE` where a
        query sees nothing. Matrix products take their operands in q's dtype and accumulate in float32.

    Raises:
        ValueError: the arrays do not go together, heads is not a multiple of kv_heads, a block size is below 1, or the
            kernel cannot be used here; the message says which.
    """
    check_inputs(q, k, v, segment_ids)
    step = make_step(q, k, scale=scale, block_q=block_q, block_k=block_k, kernel=kernel)
    q, k, v, segment_ids = vary_like((q, k, v, segment_ids), (q, k, v, segment_ids))
    out, lse = attend_locally(step, causal, return_lse, q, k, v, segment_ids)
    return (out, lse) if return_lse else out


def attend_locally(
    step: LocalStep, causal: bool, return_lse: bool, q: Array, k: Array, v: Array, segment_ids: Array | None
) -> tuple[Array, Array]:
    """Output and log-sum-exp. The gradient of the latter counts only where `return_lse` says that it may be used."""
    return _compiled_attend(_Blockwise(step, causal, return_lse), q, k, v, segment_ids)


@dataclass(frozen=True)
class _Blockwise:
    step: LocalStep
    causal: bool
    return_lse: bool

    def tokens(self, segments: Array | None, data: Array) -> tuple[TokenIndex, TokenIndex, Array]:
        """Tokens of the queries and of the keys, and `data` unchanged.

        The barrier ties what masks are made of to the data. Otherwise, in a scan over layers, JAX's partial evaluation
        may see that masks depend on nothing differentiated and compute those of all blocks before the layers run.
        """
        start, segments, data = lax.optimization_barrier((jnp.int32(0), segments, data))
        positions = (start + jnp.arange(data.shape[1], dtype=jnp.int32))[None]
        return query_tokens(positions, segments, self.causal), TokenIndex(positions, segments), data


def _primal(config: _Blockwise, q: Array, k: Array, v: Array, segments: Array | None) -> tuple[Array, Array]:
    return _forward(config, q, k, v, segments)[0]


def _forward(config: _Blockwise, q: Array, k: Array, v: Array, segments: Array | None) -> tuple[tuple, tuple]:
    step = config.step
    q_tokens, k_tokens, q_data = config.tokens(segments, q)
    result = step.forward(step.pack_q(q_data), step.pack_k(k), step.pack_k(v), q_tokens, k_tokens)
    out, lse = finish(step, result, q.dtype)
    return (out, lse), (q, k, v, segments, out, lse)


def _backward(config: _Blockwise, residuals: tuple, gradients: tuple[Array, Array]) -> tuple:
    step = config.step
    q, k, v, segments, out, lse = residuals
    d_out, d_lse = gradients
    q_tokens, k_tokens, q_data = config.tokens(segments, q)
    rows = backward_rows(step, q_data, out, lse, d_out, d_lse if config.return_lse else None)
    dq, dk, dv = step.backward(rows, step.pack_k(k), step.pack_k(v), q_tokens, k_tokens)
    return step.unpack_q(dq).astype(q.dtype), step.unpack_k(dk).astype(k.dtype), step.unpack_k(dv).astype(v.dtype), None


_attend = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_attend.defvjp(_forward, _backward)
# Called outside of jit, the loops would otherwise be traced and compiled anew at every call.
_compiled_attend = jax.jit(_attend, static_argnums=0)
