"""New tokens into a KV cache on NVIDIA GPUs, where it lies: one launch a layer, for all rows and tokens of a call."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Int32

from ringrl.attention.block_attention import result_like, vary_like
from ringrl.attention.kv_cache import SLOT_AXES, Stored, each_array


def write(
    stored: Stored, new: Stored, layer: Int32[Array, ""], at: Int32[Array, " batch"], *, interpret: bool = False
) -> Stored:
    """Put new tokens into a layer, in place where the caller has given `stored` away.

    Args:
        stored: keys and values of all layers.
        new: of the tokens, in the same dtype: k and v [batch, tokens, kv_heads * head_dim], scales
            [batch, kv_heads, tokens].
        layer: which.
        at: each row's first slot; there must be room for all tokens after it.
        interpret: run without a GPU, slowly.
    """
    arrays = (stored, new, layer, at)
    stored, new, layer, at = vary_like(arrays, arrays)
    batch, tokens, _ = new.k.shape
    kv_heads = 0 if new.k_scale is None else new.k_scale.shape[1]
    before = 2 + len(jax.tree.leaves(new))
    caches = each_array(_spec, stored)
    return pl.pallas_call(
        functools.partial(_kernel, lanes=stored.k.shape[3], kv_heads=kv_heads, slots=stored.k.shape[2]),
        grid=(tokens, batch),
        in_specs=[
            pl.BlockSpec((1,), lambda t, b: (0,)),
            pl.BlockSpec((1,), lambda t, b: (b,)),
            each_array(_spec_of_new, new),
            caches,
        ],
        out_specs=[caches],  # a list, so that the kernel gets it as one
        out_shape=[jax.tree.map(lambda x: result_like(x.shape, x, x.dtype), stored)],
        input_output_aliases={before + n: n for n in range(len(jax.tree.leaves(stored)))},
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="cache_write",
    )(layer[None], at, new, stored)[0]


def _spec(x: Array, axis: int) -> pl.BlockSpec:
    """All layers of a row of the cache; a side that is no power of two is padded, not in memory but in registers."""
    layers, _, *sides = x.shape
    sides[1 - axis] = pl.next_power_of_2(sides[1 - axis])
    return pl.BlockSpec((layers, None, *sides), lambda t, b: (0, b, 0, 0))


def _spec_of_new(x: Array, axis: int) -> pl.BlockSpec:
    """One new token of a row."""
    if axis:
        return pl.BlockSpec((None, pl.next_power_of_2(x.shape[1]), None), lambda t, b: (b, 0, t))
    return pl.BlockSpec((None, None, pl.next_power_of_2(x.shape[2])), lambda t, b: (b, t, 0))


def _kernel(
    layer_ref: Any, at_ref: Any, new: Any, _: Any, after: Any, *, lanes: int, kv_heads: int, slots: int
) -> None:
    """One token of a row. Nothing is read of the cache, whose memory the result is."""
    layer, slot = layer_ref[0], at_ref[0] + pl.program_id(0)
    there = slot < slots
    for values, out, axis in zip(new, after, SLOT_AXES, strict=True):
        if values is None or out is None:
            continue
        everything, numbers = pl.ds(0, values.shape[0]), kv_heads if axis else lanes
        place = out.at[layer, everything, slot] if axis else out.at[layer, slot, everything]
        mask = (jnp.arange(values.shape[0]) < numbers) & there
        plgpu.store(place, plgpu.load(values, mask=mask), mask=mask)
