"""Rotary position embedding, with angles that are right at any position an int32 can count."""

from decimal import Decimal, localcontext
from functools import lru_cache
from math import pi

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int32, UInt32

TRIAL_BASE = 10_000.0
_PI = Decimal("3.14159265358979323846264338327950288419717")


def rotate(
    x: Float[Array, "batch length heads head_dim"], angle: Float32[Array, "batch length half"]
) -> Float[Array, "batch length heads head_dim"]:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864, equation 34), computed in float32.

        y_i = x_i cos(angle_i) - x_{i+D/2} sin(angle_i),  y_{i+D/2} = x_{i+D/2} cos(angle_i) + x_i sin(angle_i)

    Feature i is paired with feature i + D/2, as in GPT-NeoX, not with i + 1.
    """
    half = x.shape[-1] // 2
    cos, sin = (f(angle)[:, :, None, :] for f in (jnp.cos, jnp.sin))
    left, right = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def token_angles(
    positions: Int32[Array, "batch length"], trials: Int32[Array, "batch length"] | None, half: int, base: float
) -> Float32[Array, "batch length half"]:
    """The angles p base^(-i / half) of tokens at positions p, less whole turns.

    Where `trials` are given, the slowest quarter of the pairs turn with the trial in the context instead: of n pairs,
    pair j by trial TRIAL_BASE^(-j / n). A score then depends on how many trials ago a token was, not on which it was.
    """
    quarter = 0 if trials is None else trial_pairs(half)
    by_position = angles(positions, half, base, half - quarter)
    if trials is None:
        return by_position
    return jnp.concatenate([by_position, angles(trials, quarter, TRIAL_BASE)], axis=-1)


def trial_pairs(half: int) -> int:
    """How many of a head's `half` pairs of features turn with the trial."""
    return max(half // 4, 1)


def angles(
    positions: Int32[Array, "batch length"], half: int, base: float, count: int | None = None
) -> Float32[Array, "batch length count"]:
    """The angles p base^(-i / half), i < count, less whole turns, in [-pi, pi]; right to 1e-6 for p from 0 to 2^31 - 1.

    `count` is `half` by default.

    A product in float32 has 24 bits, of which whole turns take all from some million positions on. So the product is
    one of integers: a frequency in turns is a fraction of 64 bits, and the upper word of p times it, modulo 2^32, is
    the angle in turns of which the whole ones have left by overflow.
    """
    upper, lower = (jnp.asarray(word[:count])[None, None, :] for word in _turns(half, base))
    p = positions.astype(jnp.uint32)[:, :, None]
    turns = lax.bitcast_convert_type(p * upper + _upper_word(p, lower), jnp.int32)
    return turns.astype(jnp.float32) * jnp.float32(2 * pi / 2**32)


def _upper_word(a: UInt32[Array, "#b #n #k"], b: UInt32[Array, "#b #n #k"]) -> UInt32[Array, "b n k"]:
    """a b / 2^32, by halves of 16 bits; too small by 2 at most, which is 3e-9 of an angle."""
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    return a1 * b1 + ((a1 * b0) >> 16) + ((a0 * b1) >> 16)


@lru_cache
def _turns(half: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """Turns a position, base^(-i / half) / (2 pi), as fractions of 2^64: their upper and lower words, uint32 [half]."""
    with localcontext(prec=40):
        each = [Decimal(base) ** (Decimal(-i) / half) / (2 * _PI) for i in range(half)]
        words = [divmod(int(turns * 2**64), 2**32) for turns in each]
    upper, lower = np.asarray(words, np.uint32).T
    return upper, lower
