"""Exact attention over a sequence that is spread over a ring of devices.

Every device keeps its queries. Keys, values (kv_heads only, in their own dtype) and segment ids travel around the ring;
while a device computes with one shard the next one is already under way (Liu et al., Ring Attention with Blockwise
Transformers, arXiv 2310.01889). Partial results are merged in float32 by their log-sum-exp.

Backward, the float32 gradients of a shard's keys and values travel after it, one hop behind: while a device computes
with a shard, the sums that the devices before it made for this very shard are arriving, and are added afterwards. So
nothing that is sent waits for what is being computed, and all four transfers can overlap with the computation.
"""

from functools import partial
from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.blocks import MASKED_LSE, vary_like
from ringrl.attention.blockwise import attend_locally
from ringrl.attention.gather import attend_gathered
from ringrl.attention.hybrid import exchange_heads
from ringrl.attention.kernels import Kernel, make_sizes, make_step
from ringrl.attention.layout import Layout, ring_positions, runs_per_shard
from ringrl.attention.shards import Shards
from ringrl.attention.step import backward_rows, finish, merge

Tree = TypeVar("Tree")
Exchange = Literal["ring", "all_gather"]


def ring_attention(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    *,
    axis_name: str | tuple[str, str],
    segment_ids: Int32[Array, "batch length"] | None = None,
    causal: bool = True,
    scale: float | None = None,
    layout: Layout = "zigzag",
    block_q: int | None = None,
    block_k: int | None = None,
    exchange: Exchange = "ring",
    kernel: Kernel | None = None,
    return_lse: bool = False,
) -> (
    Float[Array, "batch length heads head_dim"]
    | tuple[Float[Array, "batch length heads head_dim"], Float32[Array, "batch heads length"]]
):
    """Exact attention inside `jax.shard_map`; all arrays are this device's shard, in ring order (`to_ring_order`).

        attend = jax.shard_map(partial(ring_attention, axis_name="seq"), mesh=mesh, in_specs=spec, out_specs=spec)

    Args:
        q: this device's queries; other mesh axes may shard batch and heads.
        k: this device's keys; heads must be a multiple of kv_heads. They are neither repeated nor sent repeated.
        v: this device's values.
        axis_name: the mesh axis over which the sequence is spread; or a pair (ring axis, heads axis) for the hybrid:
            the sequence, in ring order for the ring axis, is spread over both, P((ring axis, heads axis)), and over the
            heads axis a few tokens of all heads are exchanged for all tokens of a few heads.
        segment_ids: tokens attend only to equal ids; 0 is padding, whose output is 0. None: one segment.
        causal: a token sees only itself and what stands before it in the global sequence.
        scale: multiplies the scores; None is head_dim ** -0.5.
        layout: which tokens the device holds: `zigzag` and `striped` balance causal work, `contiguous` does not.
        block_q: longest block of queries; None chooses one for the platform.
        block_k: longest block of keys.
        exchange: `ring` passes keys and values on from device to device; `all_gather` gives every device those of the
            whole ring at once: for contexts whose keys fit in memory and whose hops are too short to hide a transfer.
        kernel: implementation of the local step (`ringrl.attention.kernels`); None takes the platform's.
        return_lse: also return the log-sum-exp of every query's scores.

    Returns:
        The output in q's dtype; with `return_lse`, also the float32 log-sum-exp (differentiable), `MASKED_LSE` where a
        query sees nothing.

    Raises:
        ValueError: heads, block sizes, the heads axis or the shard's length do not fit together; the message says how
            they must.
    """
    if exchange not in get_args(Exchange):
        raise ValueError(f"exchange {exchange!r} is unknown: choose one of {', '.join(get_args(Exchange))}")
    gathered = exchange == "all_gather"

    def attend(axis: str, q: Array, k: Array, v: Array, segment_ids: Array | None) -> tuple[Array, Array]:
        size, length = lax.axis_size(axis), q.shape[1]
        ring_positions(0, length, size, layout)  # raises where the layout does not fit
        runs = runs_per_shard(size, layout)
        keys_of = size if gathered else 1
        sizes = make_sizes(q, k, scale=scale, block_q=block_q, block_k=block_k, runs=runs, key_shards=keys_of)
        step = make_step(sizes, q, segmented=segment_ids is not None, kernel=kernel)
        arrays = vary_like((q, k, v, segment_ids), (q, k, v, segment_ids, lax.axis_index(axis)))
        if size == 1:
            return attend_locally(step, causal, return_lse, *arrays)
        shards = Shards(axis, size, layout, length, causal, return_lse, step)
        return (attend_gathered if gathered else _attend)(shards, *arrays)

    if isinstance(axis_name, str):
        out, lse = attend(axis_name, q, k, v, segment_ids)
    else:
        ring_axis, heads_axis = axis_name
        out, lse = exchange_heads(partial(attend, ring_axis), heads_axis, q, k, v, segment_ids)
    return (out, lse) if return_lse else out


def _primal(shards: Shards, q: Array, k: Array, v: Array, segments: Array | None) -> tuple[Array, Array]:
    return _forward(shards, q, k, v, segments)[0]


def _forward(shards: Shards, q: Array, k: Array, v: Array, segments: Array | None) -> tuple[tuple, tuple]:
    step, hops = shards.step, shards.size - 1
    index, own_segments, q_data = shards.tie(segments, q)
    queries, q_tokens = step.pack_q(q_data), shards.q_tokens(index, own_segments)

    def attend(hop: Array | int, keys: tuple) -> tuple[Array, Array]:
        k_shard, v_shard, k_segments = keys
        return step.forward(queries, k_shard, v_shard, q_tokens, shards.k_tokens(index - hop, k_segments))

    def hop(carry: tuple, number: Array) -> tuple[tuple, None]:
        partial_result, keys = carry
        arriving = _pass_on(shards, keys)
        return (merge(partial_result, attend(number, keys)), arriving), None

    keys = (step.pack_k(k), step.pack_k(v), own_segments)
    nothing = jnp.zeros(queries.shape, jnp.float32), jnp.full(queries.shape[:-1], MASKED_LSE)
    (result, keys), _ = lax.scan(hop, (vary_like(nothing, queries), keys), jnp.arange(hops, dtype=jnp.int32))
    out, lse = finish(step, merge(result, attend(hops, keys)), q.dtype)
    return (out, lse), (q, k, v, segments, out, lse)


def _backward(shards: Shards, residuals: tuple, gradients: tuple[Array, Array]) -> tuple:
    step, hops = shards.step, shards.size - 1
    q, k, v, segments, out, lse = residuals
    d_out, d_lse = gradients
    index, own_segments, q_data = shards.tie(segments, q)
    q_tokens = shards.q_tokens(index, own_segments)
    rows = backward_rows(step, q_data, out, lse, d_out, d_lse if shards.return_lse else None)

    def differentiate(hop: Array | int, keys: tuple) -> tuple[Array, tuple[Array, Array]]:
        k_shard, v_shard, k_segments = keys
        dq, dk, dv = step.backward(rows, k_shard, v_shard, q_tokens, shards.k_tokens(index - hop, k_segments))
        return dq, (dk, dv)

    def hop(carry: tuple, number: Array) -> tuple[tuple, None]:
        dq, keys, pending = carry
        arriving_keys, arriving_sums = _pass_on(shards, (keys, pending))
        more, local = differentiate(number, keys)
        return (dq + more, arriving_keys, jax.tree.map(jnp.add, arriving_sums, local)), None

    keys = (step.pack_k(k), step.pack_k(v), own_segments)
    arriving = _pass_on(shards, keys)
    dq, pending = differentiate(0, keys)
    (dq, keys, pending), _ = lax.scan(hop, (dq, arriving, pending), jnp.arange(1, hops, dtype=jnp.int32))
    arriving_sums = _pass_on(shards, pending)
    more, local = differentiate(hops, keys)
    # The last shard a device sees is its neighbour's: one more step takes the finished sums home.
    dk, dv = _pass_on(shards, jax.tree.map(jnp.add, arriving_sums, local))
    dq, dk, dv = step.unpack_q(dq + more), step.unpack_k(dk), step.unpack_k(dv)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_attend.defvjp(_forward, _backward)


def _pass_on(shards: Shards, x: Tree) -> Tree:
    """Send every leaf to the next device of the ring; receive the previous device's."""
    neighbours = [(i, (i + 1) % shards.size) for i in range(shards.size)]
    return jax.tree.map(lambda leaf: lax.ppermute(leaf, shards.axis_name, neighbours), x)
