"""Attention to a KV cache on CPUs, in C++: see `native_cache.h`. Arguments and results are those of `xla_cache`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.block_attention import group_size, result_like, vary_like
from ringrl.attention.kernels import native
from ringrl.attention.kv_cache import Stored
from ringrl.attention.local_step import TokenIndex


def missing(q: Array, stored: Stored, platform: str) -> str | None:
    """Why the kernel cannot be used on this platform, for queries and a cache of these dtypes; None where it can."""
    if platform != "cpu":
        return f"it is for cpu, this is {platform}"
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"it takes float32 and bfloat16, not {q.dtype}"
    if stored.k.dtype not in (jnp.float32, jnp.bfloat16, jnp.int8):
        return f"it takes a cache of float32, bfloat16 or int8, not {stored.k.dtype}"
    return None if native.available() else native.NO_COMPILER


def write(stored: Stored, new: Stored, layer: Int32[Array, ""], at: Int32[Array, " batch"]) -> Stored:
    """Put new tokens into a layer, in place where the caller has given `stored` away; see `xla_cache.write`.

    Raises:
        ValueError: shapes or dtypes do not belong together.
    """
    layers, batch, slots, width = stored.k.shape
    tokens, expected = new.k.shape[1], (batch, new.k.shape[1], width)
    if not new.k.shape == new.v.shape == expected or stored.v.shape != stored.k.shape or tokens > slots:
        raise ValueError(f"tokens of shapes {new.k.shape} and {new.v.shape} do not go into a cache {stored.k.shape}")
    if any(x.dtype != stored.k.dtype for x in (stored.v, new.k, new.v)) or at.shape != (batch,):
        raise ValueError(f"the cache is {stored.k.dtype}, tokens are {new.k.dtype}; first slots are {at.shape}")
    whole, pieces = (_no_none(x, (0,) * n) for x, n in ((stored, 4), (new, 3)))
    if whole[2].size and (
        whole[2].shape != whole[3].shape
        or whole[2].shape[:2] != (layers, batch)
        or any(x.shape != (batch, whole[2].shape[2], tokens) for x in pieces[2:])
    ):
        raise ValueError(f"scales {pieces[2].shape} do not go into a cache of scales {whole[2].shape}")
    arguments = vary_like((*whole, *pieces, layer, at), (stored, new, layer, at))
    results = [result_like(x.shape, x, x.dtype) for x in arguments[:4]]
    call = jax.ffi.ffi_call(
        native.WRITE_CACHE, results, input_output_aliases={i: i for i in range(4)}, vmap_method="sequential"
    )
    k, v, k_scale, v_scale = call(*arguments)
    return Stored(k, v, *((None, None) if stored.k_scale is None else (k_scale, v_scale)))


def attend(
    q: Float[Array, "batch queries heads head_dim"],
    stored: Stored,
    layer: Int32[Array, ""],
    q_tokens: TokenIndex,
    tokens: TokenIndex,
    filled: Int32[Array, " batch"],
    *,
    scale: float,
) -> tuple[Float32[Array, "batch queries heads head_dim"], Float32[Array, "batch queries heads"]]:
    """Attend queries to the filled slots of a layer; see `xla_cache.attend`.

    Raises:
        ValueError: heads is not a multiple of kv_heads, or shapes do not belong together.
    """
    batch, queries, heads, dim = q.shape
    layers, rows, slots, width = stored.k.shape
    group_size(heads, width // dim)
    indices: list[Any] = [*q_tokens, *tokens, filled]  # of a cache there are always segments
    shapes = [jnp.shape(x) for x in indices]
    if shapes != [(batch, queries)] * 2 + [(batch, slots)] * 2 + [(batch,)] or rows != batch or width % dim:
        raise ValueError(f"a cache {stored.k.shape} and tokens of shapes {shapes} do not go with queries {q.shape}")
    whole = _no_none(stored, (0,) * 4)
    of_scales = {x.shape for x in stored[2:] if x is not None}
    if stored.v.shape != stored.k.shape or of_scales - {(layers, batch, width // dim, slots)}:
        raise ValueError(f"keys {stored.k.shape}, values {stored.v.shape} and scales {of_scales} do not fit")
    # A few numbers, in float32 for any dtype: so there is one kernel for each dtype of the cache, not for each pair.
    q = q.astype(jnp.float32)
    arguments = vary_like((q, *whole, layer, *q_tokens, *tokens, filled), (q, stored, layer, q_tokens, tokens, filled))
    results = result_like(q.shape, arguments[0]), result_like(q.shape[:-1], arguments[0])
    call = jax.ffi.ffi_call(native.ATTEND_CACHE, results, vmap_method="sequential")
    sharers = max(jax.sharding.get_abstract_mesh().size, 1)
    out, lse = call(*arguments, scale=np.float32(scale), sharers=sharers)
    return out, lse


def _no_none(stored: Stored, empty: tuple[int, ...]) -> tuple[Array, ...]:
    """The arrays, with empty ones in place of scales that are not there."""
    return tuple(jnp.zeros(empty, jnp.float32) if x is None else x for x in stored)
