"""The heads axis of the hybrid: few tokens of all heads are exchanged for all tokens of few heads, and back.

DeepSpeed-Ulysses (Jacobs et al., arXiv 2309.14509) inside, a ring outside: USP (Fang & Zhao, arXiv 2405.07719).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ringrl.attention.block_attention import group_size


def exchange_heads(
    attend: Callable[[Array, Array, Array, Array | None], tuple[Array, Array]],
    axis_name: str,
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array | None,
) -> tuple[Array, Array]:
    """Output and log-sum-exp of this device's tokens; `attend` sees the tokens of the whole heads axis, and some heads.

    Raises:
        ValueError: the heads do not divide over the axis.
    """
    size = lax.axis_size(axis_name)
    group_size(q.shape[2], k.shape[2])
    if q.shape[2] % size:
        raise ValueError(
            f"{q.shape[2]} query heads cannot be exchanged over the {size} devices of the heads axis {axis_name!r}: "
            "heads must be a multiple of them"
        )
    k, v = (_repeat_for(size, q.shape[2], x) for x in (k, v))
    gather = lambda x: lax.all_to_all(x, axis_name, split_axis=2, concat_axis=1, tiled=True)  # noqa: E731
    if segment_ids is not None:
        segment_ids = lax.all_gather(segment_ids, axis_name, axis=1, tiled=True)
    out, lse = attend(gather(q), gather(k), gather(v), segment_ids)
    out = lax.all_to_all(out, axis_name, split_axis=1, concat_axis=2, tiled=True)
    return out, lax.all_to_all(lse, axis_name, split_axis=2, concat_axis=1, tiled=True)


def _repeat_for(size: int, heads: int, x: Array) -> Array:
    """Keys or values with every head repeated just often enough that the axis can share them out evenly.

    Where a device's queries read a single key head, that one is all that it gets.
    """
    kv_heads = x.shape[2]
    times = next(n for n in range(1, heads // kv_heads + 1) if kv_heads * n % size == 0 and heads % (kv_heads * n) == 0)
    return jnp.repeat(x, times, axis=2) if times > 1 else x
