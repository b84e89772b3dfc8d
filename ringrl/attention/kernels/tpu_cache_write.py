"""New tokens into a KV cache on TPUs, where it lies, as a Pallas kernel.

XLA's own update in place may choose another layout for the scales of an int8 cache, and then copies all of them twice
a layer (seen on v5p with libtpu 0.0.42); a kernel's arrays have one layout. The few aligned windows of slots that the
tokens fall into are read, changed and written back; the result is the cache's own memory.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32

from ringrl.attention.block_attention import result_like, vary_like
from ringrl.attention.kernels.tpu_blocks import LANES
from ringrl.attention.kv_cache import SLOT_AXES, Stored, each_array

_WINDOW = 32
"""Slots of a window of keys or values: as many as one tile of int8 has; windows of scales have `LANES`."""


def write(
    stored: Stored, new: Stored, layer: Int32[Array, ""], at: Int32[Array, " batch"], *, interpret: Any = False
) -> Stored:
    """Put new tokens into a layer, in place where the caller has given `stored` away.

    Args:
        stored: keys and values of all layers.
        new: of the tokens, in the same dtype: k and v [batch, tokens, kv_heads * head_dim], scales
            [batch, kv_heads, tokens].
        layer: which.
        at: each row's first slot; there must be room for all tokens after it.
        interpret: run without a TPU, slowly; also Pallas's InterpretParams.
    """
    arrays = (stored, new, layer, at)
    stored, new, layer, at = vary_like(arrays, arrays)
    batch, tokens = new.k.shape[:2]
    windows = -(-(tokens - 1) // _WINDOW) + 1
    padded = each_array(_pad, new)
    caches = each_array(functools.partial(_spec, tokens=tokens), stored)
    rows = jax.tree.map(lambda x: pl.BlockSpec((None, *x.shape[1:]), lambda b, w, *_: (b, 0, 0)), padded)
    before = 2 + len(jax.tree.leaves(padded))
    return pl.pallas_call(
        functools.partial(_kernel, tokens=tokens),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, windows),
            in_specs=[rows, caches],
            out_specs=[caches],  # a list, so that the kernel gets it as one
        ),
        out_shape=[jax.tree.map(lambda x: result_like(x.shape, x, x.dtype), stored)],
        input_output_aliases={before + n: n for n in range(len(jax.tree.leaves(stored)))},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="cache_write",
    )(layer[None], at, padded, stored if interpret else in_hbm(stored))[0]


def in_hbm(stored: Stored) -> Stored:
    """The cache for a kernel to take from HBM: XLA copies an argument to vector memory if all its layers fit there."""
    return jax.tree.map(lambda x: pltpu.with_memory_space_constraint(x, pltpu.HBM), stored)


def _window(axis: int) -> int:
    return LANES if axis else _WINDOW


def _pad(x: Array, axis: int) -> Array:
    """float32, which has all numbers of bfloat16 and int8; a window long at least, and of whole registers."""
    whole = LANES if axis else 8
    length = max(_window(axis), -(-x.shape[1 + axis] // whole) * whole)
    padding = [(0, 0)] * x.ndim
    padding[1 + axis] = (0, length - x.shape[1 + axis])
    return jnp.pad(x.astype(jnp.float32), padding)


def _spec(x: Array, axis: int, tokens: int) -> pl.BlockSpec:
    """The row's windows that have new tokens; the last of them again where another row has more."""
    window = _window(axis)

    def index(b: Array, w: Array, layer: Any, at: Any) -> tuple:
        which = _which(at[b], w, window, tokens)
        return (layer[0], b, 0, which) if axis else (layer[0], b, which, 0)

    shape = (x.shape[2], window) if axis else (window, x.shape[3])
    return pl.BlockSpec((None, None, *shape), index)


def _which(at: Array, w: Array, window: int, tokens: int) -> Array:
    return jnp.minimum(at // window + w, (at + tokens - 1) // window)


def _kernel(layer: Any, at: Any, new: Stored, before: Stored, after: Stored, *, tokens: int) -> None:
    """One window of a row. The same window may come twice in sequence: its result is the same both times."""
    del layer  # the index maps read it
    first, w = at[pl.program_id(0)], pl.program_id(1)
    for axis, values, old, out in zip(SLOT_AXES, new, before, after, strict=True):
        if values is None or old is None or out is None:
            continue
        window, length = _window(axis), values.shape[axis]
        start = _which(first, w, window, tokens) * window
        shift = jnp.where(first >= start, first - start, first - start + length)
        moved = pltpu.roll(values[...], shift, axis)
        moved = moved[:, :window] if axis else moved[:window]
        token = start - first + lax.broadcasted_iota(jnp.int32, moved.shape, axis)
        mask = (token >= 0) & (token < tokens)
        out[...] = jnp.where(mask, moved, old[...].astype(jnp.float32)).astype(out.dtype)
