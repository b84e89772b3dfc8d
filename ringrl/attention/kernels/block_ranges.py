"""What the Pallas kernels for TPUs and GPUs share: the ids that masks are made of, and their ranges, a block at a time.

The mask is data: it follows from the positions and segment ids of two shards that meet at a traced hop of the ring. So
everything that decides about a pair of blocks is derived from a few numbers a *block*: the lowest and highest position
and segment id.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

from ringrl.attention.block_attention import NEVER_SEEN, SEES_NONE

LOG2_E = 1.4426950408889634
"""The kernels' exponentials are to base 2, which the hardware has; the scale of the scores absorbs this factor."""

_INT32 = jnp.iinfo(jnp.int32)


class Ids(NamedTuple):
    """Positions and segments of the queries or of the keys, or references to them; segments are None where unused."""

    positions: Any
    segments: Any


class Range(NamedTuple):
    """Lowest and highest position and segment id of every block; int32 [rows, blocks], rows being 1 or the batch."""

    low: Ids
    high: Ids


def _make_ids(
    positions: Int32[Array, "batch_or_1 length"], segments: Int32[Array, "batch length"] | None, hidden: int
) -> Ids:
    """Ids, each [batch_or_1, 1, length], in which padding (segment 0) takes the position `hidden`.

    So no kernel looks for 0: a query at `SEES_NONE` sees nothing, and no query sees a key at `NEVER_SEEN`.
    """
    if segments is None:
        return Ids(positions[:, None], None)
    positions = jnp.broadcast_to(positions, segments.shape)
    return Ids(jnp.where(segments == 0, jnp.int32(hidden), positions)[:, None], segments[:, None])


def make_q_ids(positions: Array, segments: Array | None) -> Ids:
    """`_make_ids` of queries."""
    return _make_ids(positions, segments, SEES_NONE)


def make_k_ids(positions: Array, segments: Array | None) -> Ids:
    """`_make_ids` of keys."""
    return _make_ids(positions, segments, NEVER_SEEN)


def block_range(ids: Ids, block: int) -> Range:
    """The ranges of ids, each [batch_or_1, 1, length], in blocks of `block` tokens; padding has no segment."""
    positions = ids.positions.reshape(ids.positions.shape[0], -1, block)
    low, high = positions.min(-1), positions.max(-1)
    if ids.segments is None:
        return Range(Ids(low, None), Ids(high, None))
    segments = ids.segments.reshape(ids.segments.shape[0], -1, block)
    segment_low = jnp.where(segments == 0, _INT32.max, segments).min(-1)
    segment_high = jnp.where(segments == 0, _INT32.min, segments).max(-1)
    return Range(Ids(low, segment_low), Ids(high, segment_high))


def needed_pairs(q: Range, k: Range) -> Bool[Array, "rows q_blocks k_blocks"]:
    """Pairs of blocks in which something may be visible; in all others nothing is."""
    needed = q.high.positions[:, :, None] >= k.low.positions[:, None, :]
    if q.low.segments is not None:
        overlap = q.low.segments[:, :, None] <= k.high.segments[:, None, :]
        needed &= overlap & (k.low.segments[:, None, :] <= q.high.segments[:, :, None])
    return needed


def dot(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """Matrix product of two blocks, accumulated in float32; float32 operands are not rounded to bfloat16 or TF32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dimensions = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
