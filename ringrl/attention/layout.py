"""Which device of the ring stores which tokens.

A global sequence of n tokens is put into *ring order*, so that a plain split over the mesh axis gives every device its
tokens. Three layouts:

- `contiguous`: device i stores the i-th run of n / ring tokens (Liu et al., Ring Attention, arXiv 2310.01889). Under a
  causal mask the last device computes almost twice the mean.
- `striped`: device i stores the tokens i, i + ring, i + 2 ring, ... (Brandon et al., Striped Attention,
  arXiv 2311.09431).
- `zigzag`: the sequence is cut into 2 ring chunks; device i stores the chunks i and 2 ring - 1 - i (Llama 3,
  arXiv 2407.21783, section 3.3.2).
"""

from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

Layout = Literal["contiguous", "striped", "zigzag"]

_Array = TypeVar("_Array", np.ndarray, jax.Array)


def runs_per_shard(ring_size: int, layout: str) -> int:
    """How many runs a shard consists of within which positions increase by a constant step: 2 for zigzag, else 1."""
    if layout not in get_args(Layout):
        raise ValueError(f"layout {layout!r} is unknown: choose one of {', '.join(get_args(Layout))}")
    return 2 if layout == "zigzag" and ring_size > 1 else 1


def ring_positions(
    shard_index: int | Int[Array, ""], shard_length: int, ring_size: int, layout: str
) -> Int32[Array, " {shard_length}"]:
    """Global positions of the tokens of one shard, in the order of the shard.

    Args:
        shard_index: index of the device on the ring; may be traced (`jax.lax.axis_index`).
        shard_length: tokens a device.
        ring_size: devices on the ring.
        layout: `contiguous`, `striped` or `zigzag`.

    Raises:
        ValueError: the layout is unknown, or zigzag's shard has an odd length.
    """
    runs = runs_per_shard(ring_size, layout)
    if shard_length % runs:
        raise ValueError(
            f"{layout}: a shard of {shard_length} tokens does not divide into {runs} chunks; the length of the whole "
            f"sequence must be a multiple of {runs * ring_size} for a ring of {ring_size}"
        )
    steps = jnp.arange(shard_length, dtype=jnp.int32)
    index = jnp.asarray(shard_index, jnp.int32)
    if layout == "striped":
        return steps * ring_size + index
    if runs == 1:
        return steps + index * shard_length
    half = shard_length // 2
    early, late = index * half, (2 * ring_size - 1 - index) * half
    return jnp.concatenate([steps[:half] + early, steps[:half] + late])


def _permutation(length: int, ring_size: int, layout: str) -> np.ndarray:
    """Global position of every token in ring order. ValueError when the length does not divide."""
    runs = runs_per_shard(ring_size, layout)
    if ring_size < 1 or length % (ring_size * runs):
        raise ValueError(
            f"{layout}: a sequence of {length} tokens cannot be spread over a ring of {ring_size}; "
            f"its length must be a multiple of {ring_size * runs}"
        )
    positions = np.arange(length)
    if layout == "striped":
        return positions.reshape(-1, ring_size).T.reshape(-1)
    if runs == 1:
        return positions
    pieces = positions.reshape(2 * ring_size, -1)
    return np.stack([pieces[:ring_size], pieces[: ring_size - 1 : -1]], axis=1).reshape(-1)


def to_ring_order(x: _Array, ring_size: int, layout: str, axis: int = 1) -> _Array:
    """Reorder a global array so that splitting `axis` evenly over the ring gives each device its tokens.

    Args:
        x: NumPy or JAX array [..., length, ...] of any rank and dtype.
        ring_size: devices on the ring; 1 leaves every layout as it is.
        layout: `contiguous`, `striped` or `zigzag`.
        axis: the sequence axis.

    Raises:
        ValueError: the layout is unknown, or the length does not divide; the message names the divisor.
    """
    return x.take(_permutation(x.shape[axis], ring_size, layout), axis=axis)


def from_ring_order(x: _Array, ring_size: int, layout: str, axis: int = 1) -> _Array:
    """Undo `to_ring_order`: put tokens in ring order back into the order of their positions.

    Arguments and errors are those of `to_ring_order`.
    """
    return x.take(np.argsort(_permutation(x.shape[axis], ring_size, layout)), axis=axis)
