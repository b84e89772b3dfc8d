"""Attention to a KV cache in plain XLA, for every platform: blocks are read one by one, as far as any row is filled."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from ringrl.attention.block_attention import MASKED_LSE, group_size, vary_like
from ringrl.attention.kv_cache import Stored
from ringrl.attention.local_step import TokenIndex

_SCORES = 2**22
"""Scores in memory at a time, all rows and heads together, if that leaves blocks of 64 slots or more."""

_LONGEST_BLOCK = 1024

_ZERO = np.int32(0)
"""Plain numbers are int64 where JAX_ENABLE_X64 is set, and all indices must be of one type."""


def write(stored: Stored, new: Stored, layer: Int32[Array, ""], at: Int32[Array, " batch"]) -> Stored:
    """Put new tokens into a layer, in place where the caller has given `stored` away.

    Args:
        stored: keys and values of all layers.
        new: of the tokens, in the same dtype: k and v [batch, tokens, kv_heads * head_dim], scales
            [batch, kv_heads, tokens].
        layer: which.
        at: each row's first slot; there must be room for all tokens after it.
    """

    def row(b: Array, stored: Stored) -> Stored:
        b = b.astype(jnp.int32)

        def put(into: Any, values: Any, scales: bool) -> Any:
            if into is None:
                return None
            piece = lax.dynamic_index_in_dim(values, b, 0)[None]
            slot = (_ZERO, at[b]) if scales else (at[b], _ZERO)
            return lax.dynamic_update_slice(into, piece, (layer, b, *slot))

        k, v = put(stored.k, new.k, False), put(stored.v, new.v, False)
        return Stored(k, v, put(stored.k_scale, new.k_scale, True), put(stored.v_scale, new.v_scale, True))

    return lax.fori_loop(0, at.shape[0], row, stored)


def attend(
    q: Float[Array, "batch queries heads head_dim"],
    stored: Stored,
    layer: Int32[Array, ""],
    q_tokens: TokenIndex,
    tokens: TokenIndex,
    filled: Int32[Array, " batch"],
    *,
    scale: float,
) -> tuple[Float32[Array, "batch queries heads head_dim"], Float32[Array, "batch queries heads"]]:
    """Attend queries to the filled slots of a layer that are of their segment and not after their positions.

    Args:
        q: queries.
        stored: keys and values of all layers.
        layer: which.
        q_tokens: positions and segments of the queries, [batch, queries].
        tokens: of the slots, [batch, slots].
        filled: slots of each row that are filled.
        scale: multiplies the scores.

    Returns:
        Output and log-sum-exp; 0 and `MASKED_LSE` for a query that sees nothing.

    Raises:
        ValueError: heads is not a multiple of kv_heads.
    """
    batch, queries, heads, dim = q.shape
    slots, kv_heads = stored.k.shape[2], stored.k.shape[3] // dim
    block = min(max(_SCORES // (batch * heads * queries), 64), _LONGEST_BLOCK, slots)
    grouped = q.reshape(batch, queries, kv_heads, group_size(heads, kv_heads), dim)
    visible = partial(_visible, q_tokens, tokens, filled, block)

    def read(x: Array, start: Array) -> Array:
        piece = lax.dynamic_slice(x, (layer, _ZERO, start, _ZERO), (1, batch, block, x.shape[3]))
        return piece.reshape(batch, block, kv_heads, dim).astype(q.dtype)

    def read_scale(x: Array | None, start: Array) -> Array | float:
        if x is None:
            return 1.0
        return lax.dynamic_slice(x, (layer, _ZERO, _ZERO, start), (1, batch, kv_heads, block))[0][:, :, None, None]

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        j, out, highest, total = state
        start = jnp.minimum(j * block, slots - block)  # the last block is moved back to end with the cache
        scores = jnp.einsum("btkgd,bckd->bkgtc", grouped, read(stored.k, start), preferred_element_type=jnp.float32)
        scores = scores * scale * read_scale(stored.k_scale, start)
        scores = jnp.where(visible(j * block, start), scores, -jnp.inf)
        new_highest = jnp.maximum(highest, scores.max(-1))
        weights, shrink = jnp.exp(scores - new_highest[..., None]), jnp.exp(highest - new_highest)
        total = total * shrink + weights.sum(-1)
        weights = (weights * read_scale(stored.v_scale, start)).astype(q.dtype)
        part = jnp.einsum("bkgtc,bckd->bkgtd", weights, read(stored.v, start), preferred_element_type=jnp.float32)
        return j + 1, out * shrink[..., None] + part, new_highest, total

    rows = (batch, kv_heads, heads // kv_heads, queries)
    zeros = partial(jnp.zeros, dtype=jnp.float32)
    nothing = (jnp.zeros((), jnp.int32), zeros((*rows, dim)), jnp.full(rows, MASKED_LSE, jnp.float32), zeros(rows))
    nothing = vary_like(nothing, (q, stored, layer, q_tokens, tokens, filled))
    longest = jnp.max(filled)
    _, out, highest, total = lax.while_loop(lambda state: state[0] * block < longest, step, nothing)
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    out, lse = out / total[..., None], jnp.where(seen, highest + jnp.log(total), MASKED_LSE)
    out = jnp.moveaxis(out, 3, 1).reshape(batch, queries, heads, dim)
    return out, jnp.moveaxis(lse, 3, 1).reshape(batch, queries, heads)


def _visible(
    q_tokens: TokenIndex, tokens: TokenIndex, filled: Array, block: int, first: Array, start: Array
) -> Bool[Array, "batch 1 1 queries block"]:
    """Which slots of the block that begins at `start` the queries see; those before `first` were in another block."""
    q_segments, all_segments = q_tokens.segments, tokens.segments
    assert q_segments is not None and all_segments is not None  # of a cache there are always segments
    index = start + jnp.arange(block, dtype=jnp.int32)[None]
    positions, segments = (lax.dynamic_slice_in_dim(x, start, block, 1) for x in (tokens.positions, all_segments))
    there = (index >= first) & (index < filled[:, None]) & (segments != 0)
    same = q_segments[:, :, None] == segments[:, None]
    return (there[:, None] & same & (positions[:, None] <= q_tokens.positions[:, :, None]))[:, None, None]
