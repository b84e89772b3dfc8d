"""Rotary position embedding, with angles that are right at any position an int32 can count."""

from decimal import Decimal, localcontext
from functools import lru_cache
from math import pi

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int32, UInt32

_PI = Decimal("3.14159265358979323846264338327950288419717")


def rotate(
    x: Float[Array, "batch length heads head_dim"], positions: Int32[Array, "batch length"], base: float
) -> Float[Array, "batch length heads head_dim"]:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864, equation 34), computed in float32.

        y_i = x_i cos(p w_i) - x_{i+D/2} sin(p w_i),  y_{i+D/2} = x_{i+D/2} cos(p w_i) + x_i sin(p w_i)

    with w_i = base^(-2 i / D): feature i is paired with feature i + D/2, as in GPT-NeoX, not with i + 1.
    """
    half = x.shape[-1] // 2
    angle = angles(positions, half, base)[:, :, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    left, right = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def angles(positions: Int32[Array, "batch length"], half: int, base: float) -> Float32[Array, "batch length half"]:
    """The angles p base^(-i / half) less whole turns, in [-pi, pi]; right to 1e-6 for every p from 0 to 2^31 - 1.

    A product in float32 has 24 bits, of which whole turns take all from some million positions on. So the product is
    one of integers: a frequency in turns is a fraction of 64 bits, and the upper word of p times it, modulo 2^32, is
    the angle in turns of which the whole ones have left by overflow.
    """
    upper, lower = (jnp.asarray(word)[None, None, :] for word in _turns(half, base))
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
