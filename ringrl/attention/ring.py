"""Exact attention over a sequence that is spread over a ring of devices.

Every device keeps its queries. Keys, values (kv_heads only, in their own dtype) and segment ids travel around the ring;
while a device computes with one shard the next one is already under way (Liu et al., Ring Attention with Blockwise
Transformers, arXiv 2310.01889). Partial results are merged in float32 by their log-sum-exp.

Backward, the float32 gradients of a shard's keys and values travel after it, one hop behind: while a device computes
with a shard, the sums that the devices before it made for this very shard are arriving, and are added afterwards. So
nothing that is sent waits for what is being computed. A device's own keys are taken in two halves, the first while the
first shard arrives, the second while its own finished sums return: every transfer has computation to hide behind
(but for the sums' last hop, where a contiguous or striped shard is a single block and has no halves).
Keys make ring - 1 hops, their sums ring hops, back to where they belong.
"""

from functools import partial
from typing import Literal, TypedDict, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.block_attention import MASKED_LSE, Tree, vary_like
from ringrl.attention.blockwise import attend_locally
from ringrl.attention.gather import attend_gathered
from ringrl.attention.hybrid import exchange_heads
from ringrl.attention.kernels import Kernel, make_step
from ringrl.attention.layout import Layout, ring_positions, runs_per_shard
from ringrl.attention.local_step import TokenIndex, backward_rows, check_inputs, finish, in_order, merge
from ringrl.attention.shards import Shards, halves

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
    stripe: int = 1,
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
        k: this device's keys; heads must be a multiple of kv_heads. They are not repeated, and sent as they are (over a
            heads axis that they do not divide over, as often as makes them divide).
        v: this device's values.
        axis_name: the mesh axis over which the sequence is spread; or a pair (ring axis, heads axis) for the hybrid:
            the sequence, in ring order for the ring axis, is spread over both, P((ring axis, heads axis)), and over the
            heads axis a few tokens of all heads are exchanged for all tokens of a few heads.
        segment_ids: tokens attend only to equal ids; 0 is padding, whose output is 0. None: one segment.
        causal: a token sees only itself and earlier tokens of the global sequence.
        scale: multiplies the scores; None is head_dim ** -0.5.
        layout: which tokens the device stores: `zigzag` and `striped` balance causal work, `contiguous` does not.
        stripe: tokens in each stripe of `striped` (`ringrl.attention.balance` counts what which stripes cost).
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
        ValueError: arrays, heads, block sizes, the stripe, the heads axis or the shard's length do not fit together,
            or layout, exchange or kernel is unknown or cannot be used here; the message says what must change.
    """
    _check_exchange(exchange, axis_name)
    check_inputs(q, k, v, segment_ids)
    sizes: _StepOptions = {"scale": scale, "block_q": block_q, "block_k": block_k, "kernel": kernel}
    attend = partial(_attend_shards, layout, stripe, exchange, causal, return_lse, sizes)
    if isinstance(axis_name, str):
        out, lse = attend(axis_name, q, k, v, segment_ids)
    else:
        ring_axis, heads_axis = axis_name
        out, lse = exchange_heads(partial(attend, ring_axis), heads_axis, q, k, v, segment_ids)
    return (out, lse) if return_lse else out


class _StepOptions(TypedDict):
    """Arguments of `make_step` that the caller chooses."""

    scale: float | None
    block_q: int | None
    block_k: int | None
    kernel: Kernel | None


def _check_exchange(exchange: str, axis_name: str | tuple[str, str]) -> None:
    if exchange not in get_args(Exchange):
        raise ValueError(f"exchange {exchange!r} is unknown: choose one of {', '.join(get_args(Exchange))}")
    if not isinstance(axis_name, str) and len(axis_name) != 2:
        raise ValueError(f"axis_name {axis_name!r} must be a mesh axis, or a pair (ring axis, heads axis)")


def _attend_shards(
    layout: Layout,
    stripe: int,
    exchange: Exchange,
    causal: bool,
    return_lse: bool,
    options: _StepOptions,
    axis: str,
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array | None,
) -> tuple[Array, Array]:
    """Output and log-sum-exp of this device's queries over the keys of all devices of the mesh axis `axis`."""
    size, length, gathered = lax.axis_size(axis), q.shape[1], exchange == "all_gather"
    ring_positions(0, length, size, layout, stripe)  # raises where the layout does not fit
    runs, key_shards = runs_per_shard(size, layout), size if gathered else 1
    step = make_step(q, k, runs=runs, key_shards=key_shards, **options)
    arrays = vary_like((q, k, v, segment_ids), (q, k, v, segment_ids, lax.axis_index(axis)))
    if size == 1:
        return attend_locally(step, causal, return_lse, *arrays)
    shards = Shards(axis, size, layout, length, causal, return_lse, step, stripe)
    return (attend_gathered if gathered else _attend)(shards, *arrays)


def _primal(shards: Shards, q: Array, k: Array, v: Array, segments: Array | None) -> tuple[Array, Array]:
    return _forward(shards, q, k, v, segments)[0]


def _forward(shards: Shards, q: Array, k: Array, v: Array, segments: Array | None) -> tuple[tuple, tuple]:
    step, hops = shards.step, shards.size - 1
    index, own_segments, q_tied, k_tied, v_tied = shards.tie(segments, q, k, v)
    queries, q_tokens = step.pack_q(q_tied), shards.q_tokens(index, own_segments)

    def attend(hop: Array | int, keys: tuple) -> tuple[Array, Array]:
        k_shard, v_shard, k_segments = keys
        return step.forward(queries, k_shard, v_shard, q_tokens, shards.k_tokens(index - hop, k_segments))

    def hop(carry: tuple, number: Array) -> tuple[tuple, None]:
        partial_result, keys = carry
        arriving = _pass_on(shards, keys, partial_result[0])
        return (merge(partial_result, attend(number, keys)), arriving), None

    keys = (step.pack_k(k_tied), step.pack_k(v_tied), own_segments)
    nothing = jnp.zeros(queries.shape, jnp.float32), jnp.full(queries.shape[:-1], MASKED_LSE)
    (result, keys), _ = lax.scan(hop, (vary_like(nothing, queries), keys), jnp.arange(hops, dtype=jnp.int32))
    out, lse = finish(step, merge(result, attend(hops, keys)), q.dtype)
    return (out, lse), (q, k, v, segments, out, lse)


def _backward(shards: Shards, residuals: tuple, gradients: tuple[Array, Array]) -> tuple:
    step, last = shards.step, shards.size - 1
    q, k, v, segments, out, lse = residuals
    d_out, d_lse = gradients
    index, own_segments, q_tied, k_tied, v_tied, d_out = shards.tie(segments, q, k, v, d_out)
    q_tokens = shards.q_tokens(index, own_segments)
    rows = backward_rows(step, q_tied, out, lse, d_out, d_lse if shards.return_lse else None)

    def differentiate(keys: tuple, k_tokens: TokenIndex, dq: Array | None) -> tuple[Array, tuple[Array, Array]]:
        dq, dk, dv = step.backward(rows, keys[0], keys[1], q_tokens, k_tokens, dq)
        return dq, (dk, dv)

    def hop(carry: tuple, number: Array | int) -> tuple[tuple, None]:
        # A hop begins when the one before it has ended, so that what it sends hides behind what it computes itself.
        dq, keys, sums = lax.optimization_barrier(carry)
        if isinstance(number, int) and number == last:
            arriving_keys, arriving_sums = keys, _pass_on(shards, sums, dq)
        else:
            arriving_keys, arriving_sums = _pass_on(shards, (keys, sums), dq)
        dq, local = differentiate(keys, shards.k_tokens(index - number, keys[2]), dq)
        return (dq, arriving_keys, _add(arriving_sums, local)), None

    own = (step.pack_k(k_tied), step.pack_k(v_tied), own_segments)
    early, late = halves(shards.k_tokens(index, own_segments), step.sizes.k)
    arriving = _pass_on(shards, own, rows.delta)
    dq, sums = differentiate(own, early, None)
    carry, _ = hop((dq, arriving, sums), 1)
    if last > 1:
        carry, _ = lax.scan(hop, carry, jnp.arange(2, last, dtype=jnp.int32))
        carry, _ = hop(carry, last)
    dq, _, sums = carry
    # The second half of the own keys waits for the finished sums, or it would run before there is anything to hide.
    sums, late = lax.optimization_barrier((sums, late))
    home = _pass_on(shards, sums, dq)
    dq, own_late = differentiate(own, late, dq)
    dk, dv = _add(home, own_late)
    dq, dk, dv = step.unpack_q(dq), step.unpack_k(dk), step.unpack_k(dv)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_attend.defvjp(_forward, _backward)


def _pass_on(shards: Shards, x: Tree, begin: Array) -> Tree:
    """Send every leaf to the next device of the ring once `begin` is computed; receive the previous device's.

    XLA's CPU runtime starts transfers in the order in which they become ready on a device, and each blocks until all
    devices take part: devices that disagree never end. This was seen with the C++ step on CPUs, not with the XLA
    step. So there every transfer depends on the one before it.
    """
    neighbours = [(i, (i + 1) % shards.size) for i in range(shards.size)]
    leaves, tree = jax.tree.flatten(x)
    arrived = []
    for leaf in leaves:
        leaf = in_order(shards.step, leaf, arrived[-1] if arrived else begin)
        arrived.append(lax.ppermute(leaf, shards.axis_name, neighbours))
    return jax.tree.unflatten(tree, arrived)


def _add(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(jnp.add, a, b)
