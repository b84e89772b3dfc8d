"""Cutting a device's tokens into blocks and putting them together again, and how long blocks are."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Shaped

_SCORES_AT_ONCE = 2**19
"""Scores (over batch and heads) that a pair of blocks of default size makes: 2 MiB of float32, to stay in cache.

Measured on XLA's CPU backend, seconds of processor forward + backward, against jax.nn.dot_product_attention:
(1, 8192, 4, 64) float32: 1.7 against 11.9; (8, 1000, 4, 32): 0.16 against 0.94. Twice as large is 10 to 40 % slower.
"""

_ALIGNMENT = 8
"""Where a length takes several blocks, they are multiples of this: a vector register on CPUs, a sublane on TPUs."""


def default_blocks(batch: int, heads: int) -> tuple[int, int]:
    """Longest blocks of queries and keys: powers of two from 64 to 1024 that make _SCORES_AT_ONCE scores, or fewer."""
    area = max(_SCORES_AT_ONCE // (batch * heads), 64 * 64)
    block_k = min(_power_of_two(math.isqrt(area)), 1024)
    return min(_power_of_two(area // block_k), 1024), block_k


def _power_of_two(limit: int) -> int:
    return 1 << (limit.bit_length() - 1)


def fit_block(length: int, longest: int, alignment: int | None = None) -> int:
    """The block length, at most `longest`, that cuts `length` into the fewest and most even blocks.

    With an `alignment`, blocks are multiples of it, also a single one, and `longest` is rounded up to one. ValueError
    when `longest` is below 1.
    """
    if longest < 1:
        raise ValueError(f"a block of {longest} tokens is too short: block_q and block_k must be at least 1")
    if alignment is not None:
        longest = _round_up(longest, alignment)
    elif length <= longest:
        return length
    even = -(-length // -(-length // longest))
    return min(_round_up(even, alignment or _ALIGNMENT), longest)


def _round_up(x: int, unit: int) -> int:
    return -(-x // unit) * unit


@dataclass(frozen=True)
class Cut:
    """How a device's tokens are cut into blocks.

    The tokens are `runs` equal stretches within which positions grow by a constant step (two in a zigzag shard). Each
    is padded to whole blocks, so that no block spans two.
    """

    length: int
    runs: int
    block: int

    @property
    def run(self) -> int:
        """Tokens in a run."""
        return self.length // self.runs

    @property
    def middle(self) -> int:
        """Tokens before the point, between two blocks, that parts them most evenly."""
        if self.runs % 2 == 0:
            return self.length // 2
        blocks = -(-self.run // self.block)
        return min(-(-blocks // 2) * self.block, self.length)

    def split(
        self, x: Shaped[Array, "batch length ..."], fill: int = 0
    ) -> Shaped[Array, "batch blocks {self.block} ..."]:
        """Tokens in blocks, padded with `fill`."""
        batch, _, *rest = x.shape
        x = x.reshape(batch, self.runs, self.run, *rest)
        padding = [(0, 0)] * x.ndim
        padding[2] = (0, -self.run % self.block)
        return jnp.pad(x, padding, constant_values=fill).reshape(batch, -1, self.block, *rest)

    def join(self, x: Shaped[Array, "batch blocks {self.block} ..."]) -> Shaped[Array, "batch {self.length} ..."]:
        """Undo `split`."""
        batch, _, _, *rest = x.shape
        return x.reshape(batch, self.runs, -1, *rest)[:, :, : self.run].reshape(batch, self.length, *rest)
