"""Exact attention over a mesh axis by gathering all keys and values on every device (context parallelism of Llama 3).

One all-gather forward; one all-gather and one reduce-scatter backward. A device stores the keys and values of the whole
axis while it computes, so memory grows with the whole sequence; for short contexts a few large transfers cost less than
many hops that are too short to hide theirs (Llama 3, arXiv 2407.21783, section 3.3.2).
"""

from functools import partial

import jax
from jax import lax
from jaxtyping import Array

from ringrl.attention.local_step import TokenIndex, backward_rows, finish, in_order
from ringrl.attention.shards import Shards


def _primal(shards: Shards, q: Array, k: Array, v: Array, segments: Array | None) -> tuple[Array, Array]:
    return _forward(shards, q, k, v, segments)[0]


def _forward(shards: Shards, q: Array, k: Array, v: Array, segments: Array | None) -> tuple[tuple, tuple]:
    step = shards.step
    q_data, keys, q_tokens, k_tokens = _gather(shards, q, k, v, segments)
    out, lse = finish(step, step.forward(step.pack_q(q_data), *keys, q_tokens, k_tokens), q.dtype)
    return (out, lse), (q, k, v, segments, out, lse)


def _backward(shards: Shards, residuals: tuple, gradients: tuple[Array, Array]) -> tuple:
    step = shards.step
    q, k, v, segments, out, lse = residuals
    d_out, d_lse = gradients
    q_data, keys, q_tokens, k_tokens = _gather(shards, q, k, v, segments)
    rows = backward_rows(step, q_data, out, lse, d_out, d_lse if shards.return_lse else None)
    dq, dk, dv = step.backward(rows, *keys, q_tokens, k_tokens)
    scatter = partial(lax.psum_scatter, axis_name=shards.axis_name, scatter_dimension=1, tiled=True)
    # Without the barrier, XLA moves the rounding to k's dtype before the sum.
    dk = scatter(step.unpack_k(dk))
    dk, dv = lax.optimization_barrier((dk, scatter(in_order(step, step.unpack_k(dv), dk))))
    return step.unpack_q(dq).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


attend_gathered = jax.custom_vjp(_primal, nondiff_argnums=(0,))
"""(shards, q, k, v, segment_ids) of this device -> its output and log-sum-exp. Nothing gathered is kept."""
attend_gathered.defvjp(_forward, _backward)


def _gather(
    shards: Shards, q: Array, k: Array, v: Array, segments: Array | None
) -> tuple[Array, tuple[Array, Array], TokenIndex, TokenIndex]:
    """The queries, the packed keys and values of all devices, and the tokens of both."""
    index, segments, q, k, v = shards.tie(segments, q, k, v)
    gather = partial(lax.all_gather, axis_name=shards.axis_name, axis=1, tiled=True)
    k = gather(k)
    v = gather(in_order(shards.step, v, k))
    all_segments = None if segments is None else gather(in_order(shards.step, segments, v))
    keys = shards.step.pack_k(k), shards.step.pack_k(v)
    return q, keys, shards.q_tokens(index, segments), shards.all_k_tokens(all_segments)
