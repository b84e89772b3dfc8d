"""Which device of the ring stores which tokens.

A global sequence of n tokens is put into *ring order*, so that a plain split over the mesh axis gives every device its
tokens. Three layouts:

- `contiguous`: device i stores the i-th run of n / ring tokens (Liu et al., Ring Attention, arXiv 2310.01889). Under a
  causal mask the last device computes almost twice the mean.
- `striped`: the sequence is cut into stripes of a few tokens; device i stores the stripes i, i + ring, i + 2 ring, ...
  (Brandon et al., Striped Attention, arXiv 2311.09431, whose stripes are one token).
- `zigzag`: the sequence is cut into 2 ring chunks; device i stores the chunks i and 2 ring - 1 - i (Llama 3,
  arXiv 2407.21783, section 3.3.2).
"""

from typing import TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from ringrl.choices import Layout

_Array = TypeVar("_Array", np.ndarray, jax.Array)

_PIECES = {"contiguous": "one chunk", "striped": "stripes of {}", "zigzag": "2 chunks"}


def runs_per_shard(ring_size: int, layout: str) -> int:
    """How many runs a shard consists of within which positions increase by a constant step: 2 for zigzag, else 1."""
    if layout not in get_args(Layout):
        raise ValueError(f"layout {layout!r} is unknown: choose one of {', '.join(get_args(Layout))}")
    return 2 if layout == "zigzag" and ring_size > 1 else 1


def ring_positions(
    shard_index: int | Int[Array, ""], shard_length: int, ring_size: int, layout: str, stripe: int = 1
) -> Int32[Array, " {shard_length}"]:
    """Global positions of the tokens of one shard, in the order of the shard.

    Args:
        shard_index: index of the device on the ring; may be traced (`jax.lax.axis_index`).
        shard_length: tokens a device.
        ring_size: devices on the ring.
        layout: `contiguous`, `striped` or `zigzag`.
        stripe: tokens in each stripe of `striped`.

    Raises:
        ValueError: the layout is unknown, or the shard's length is no multiple of the stripe, or of 2 for zigzag.
    """
    runs, unit = runs_per_shard(ring_size, layout), pieces(ring_size, layout, stripe)
    if shard_length * ring_size % unit:
        raise ValueError(
            f"{layout}: a shard of {shard_length} tokens does not divide into {_PIECES[layout].format(stripe)}; the "
            f"length of the whole sequence must be a multiple of {unit} for a ring of {ring_size}"
        )
    steps = jnp.arange(shard_length, dtype=jnp.int32)
    index = jnp.asarray(shard_index, jnp.int32)
    if layout == "striped":
        return (steps // stripe * ring_size + index) * stripe + steps % stripe
    if runs == 1:
        return steps + index * shard_length
    half = shard_length // 2
    early, late = index * half, (2 * ring_size - 1 - index) * half
    return jnp.concatenate([steps[:half] + early, steps[:half] + late])


def pieces(ring_size: int, layout: str, stripe: int = 1) -> int:
    """What the length of a sequence must be a multiple of.

    Raises:
        ValueError: the layout is unknown, or a stripe has no token.
    """
    if stripe < 1:
        raise ValueError(f"a stripe of {stripe} tokens: it must have at least 1")
    return ring_size * (stripe if layout == "striped" else runs_per_shard(ring_size, layout))


def _permutation(length: int, ring_size: int, layout: str, stripe: int) -> np.ndarray:
    """Global position of every token in ring order. ValueError when the length does not divide."""
    if ring_size < 1 or length % pieces(ring_size, layout, stripe):
        raise ValueError(
            f"{layout}: a sequence of {length} tokens cannot be spread over a ring of {ring_size}; "
            f"its length must be a multiple of {pieces(ring_size, layout, stripe)}"
        )
    runs, positions = runs_per_shard(ring_size, layout), np.arange(length)
    if layout == "striped":
        return positions.reshape(-1, ring_size, stripe).swapaxes(0, 1).reshape(-1)
    if runs == 1:
        return positions
    chunks = positions.reshape(2 * ring_size, -1)
    return np.stack([chunks[:ring_size], chunks[: ring_size - 1 : -1]], axis=1).reshape(-1)


def to_ring_order(x: _Array, ring_size: int, layout: str, axis: int = 1, *, stripe: int = 1) -> _Array:
    """Reorder a global array so that splitting `axis` evenly over the ring gives each device its tokens.

    Args:
        x: NumPy or JAX array [..., length, ...] of any rank and dtype.
        ring_size: devices on the ring; 1 leaves every layout as it is.
        layout: `contiguous`, `striped` or `zigzag`.
        axis: the sequence axis.
        stripe: positions in each stripe of `striped`.

    Raises:
        ValueError: the layout is unknown, or the length does not divide; the message names the divisor.
    """
    return x.take(_permutation(x.shape[axis], ring_size, layout, stripe), axis=axis)


def from_ring_order(x: _Array, ring_size: int, layout: str, axis: int = 1, *, stripe: int = 1) -> _Array:
    """Undo `to_ring_order`: put tokens in ring order back into the order of their positions.

    Arguments and errors are those of `to_ring_order`.
    """
    return x.take(np.argsort(_permutation(x.shape[axis], ring_size, layout, stripe)), axis=axis)
