"""What cuDNN can mask: the few rectangles that a device's queries see of a shard of keys, and which one it is.

cuDNN knows no positions. But in each layout, and for each pair of shards, the visible pairs of tokens are all pairs of
a rectangle, or those of its lower triangle; `which_rectangle` finds at run time, from the positions, which one.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32


class Rectangle(NamedTuple):
    """What is seen of a shard: queries from `first` on see keys from `start` to `end`, all or (`causal`) row i to i."""

    first: int
    start: int
    end: int
    causal: bool = False


def rectangles(queries: int, keys: int, runs: int, middle: int) -> list[Rectangle]:
    """The rectangles that occur against a shard of keys, apart from the empty one."""
    found = [Rectangle(0, 0, keys), Rectangle(0, 0, keys, True)]
    if runs == 2:  # zigzag: keys of an earlier shard, and of a later one
        found += [Rectangle(0, 0, keys // 2), Rectangle(queries // 2, 0, keys)]
    else:  # striped: keys of a later stripe, of which row i sees those before i
        found.append(Rectangle(1, 0, keys - 1, True))
    # A ring's backward pass hides one half of its own keys, then the other (`shards.halves`).
    found += [
        Rectangle(0, 0, middle, True),
        Rectangle(middle, middle, keys, True),
        Rectangle(0, 0, middle),
        Rectangle(0, middle, keys),
    ]

    def possible(seen: Rectangle) -> bool:
        rows, columns = queries - seen.first, seen.end - seen.start
        return columns > 0 and rows >= (columns if seen.causal else 1)

    return [seen for seen in dict.fromkeys(found) if possible(seen)]


def which_rectangle(
    choices: list[Rectangle], q: Int32[Array, " queries"], k: Int32[Array, " keys"]
) -> Int32[Array, ""]:
    """0: nothing is seen; i: the i-th rectangle; one more: none of them."""
    kinds = [q.max() < k.min(), *(_matches(seen, q, k) for seen in choices), jnp.full_like(q[0], True, jnp.bool_)]
    return jnp.argmax(jnp.stack(kinds)).astype(jnp.int32)


def _matches(seen: Rectangle, q: Int32[Array, " queries"], k: Int32[Array, " keys"]) -> Bool[Array, ""]:
    """Whether exactly this rectangle is seen."""
    rows, keys = q[seen.first :], k[seen.start : seen.end]
    if seen.causal:
        count = len(keys)
        conditions = [(rows[:count] >= keys).all(), (rows[: count - 1] < keys[1:]).all()]
        rows = rows[count:]
    else:
        conditions = []
    if len(rows):
        conditions.append(rows.min() >= keys.max())
    if seen.first > 0:
        conditions.append(q[: seen.first].max() < k.min())
    conditions += [q.max() < hidden.min() for hidden in (k[: seen.start], k[seen.end :]) if len(hidden)]
    return jnp.stack(conditions).all()
