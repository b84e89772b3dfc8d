"""The KV cache: keys and values of all layers, written in place, read as far as it is filled, spread over the ring.

Every row of the batch has its own length, so trials may begin and end at any time. Over a ring of N stations each of
them keeps some of a row's tokens, in the order in which they came: the tokens of one call go to the station that has
the fewest of that row. So the stations' shares differ by one call's tokens at most, for any lengths of the calls.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax, vmap
from jaxtyping import Array, Float, Float32, Int32

_SMALL, _LARGE, _FEW = 128, 1024, 8192


class Stored(NamedTuple):
    """Keys and values as a kernel reads and writes them; a pytree. Heads lie side by side in the last axis."""

    k: Array  # float32, bfloat16 or int8 [layers, batch, slots, kv_heads * head_dim]
    v: Array
    k_scale: Array | None  # float32 [layers, batch, kv_heads, slots]: what an int8 key is multiplied by; else None
    v_scale: Array | None


SLOT_AXES = (0, 0, 1, 1)
"""The axis of slots, or of new tokens, of each array of `Stored`, behind those of layers and rows."""


def each_array(f: Callable[[Array, int], Any], of: Stored) -> Stored:
    """`f(array, its axis of slots or tokens)` of each array; None stays None."""
    results: list[Any] = [None if x is None else f(x, axis) for x, axis in zip(of, SLOT_AXES, strict=True)]
    return Stored(*results)


class KVCache(NamedTuple):
    """Keys and values, and which tokens they are of; a pytree.

    A call that appends T tokens writes T slots of every row, from the row's length on, and a row may keep fewer of
    them. So there must be T free slots in all rows; see `slots_for`.

    Attributes:
        stored: keys and values.
        positions: int32 [batch, slots], of each token in its segment.
        segment_ids: int32 [batch, slots]; 0: no token.
        filled: int32 [batch, stations], slots filled, of each row on each station of the ring.
    """

    stored: Stored
    positions: Array
    segment_ids: Array
    filled: Array


class Slots(NamedTuple):
    """Where this device keeps the tokens of one call."""

    at: Array  # int32 [batch], the first of them
    filled: Array  # int32 [batch], slots that are filled after the call


def slots_for(capacity: int, tokens: int, stations: int = 1) -> int:
    """Slots on each station that rows need.

    Args:
        capacity: tokens of the longest row.
        tokens: of the longest call.
        stations: devices of the ring.
    """
    needed = -(-capacity // stations) + tokens * (1 if stations == 1 else 2)  # shares differ by one call's tokens
    whole = _LARGE if needed > _FEW else _SMALL  # kernels read whole blocks
    return -(-needed // whole) * whole


def empty_cache(
    layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: Any, *, stations: int = 1
) -> KVCache:
    """A cache without tokens.

    Args:
        layers: of the model.
        batch: rows.
        slots: of all stations together, a multiple of `stations`; see `slots_for`.
        kv_heads: key and value heads.
        head_dim: width of a head.
        dtype: float32, bfloat16, or int8 with a scale for each token and head.
        stations: devices of the ring.
    """
    shape, scales = (layers, batch, slots, kv_heads * head_dim), (layers, batch, kv_heads, slots)
    quantised = jnp.dtype(dtype) == jnp.int8

    # An array each: a caller donates the cache, and one buffer cannot be given twice.
    def scale() -> Array | None:
        return jnp.zeros(scales, jnp.float32) if quantised else None

    stored = Stored(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), scale(), scale())
    positions, segment_ids = (jnp.zeros((batch, slots), jnp.int32) for _ in range(2))
    return KVCache(stored, positions, segment_ids, jnp.zeros((batch, stations), jnp.int32))


def append_tokens(
    cache: KVCache,
    positions: Int32[Array, "batch tokens"],
    segment_ids: Int32[Array, "batch tokens"],
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[KVCache, Slots]:
    """The cache with the tokens' positions and segments; their keys and values are written layer by layer.

    A row keeps its tokens up to the last that has a segment: so one call can append different numbers to the rows,
    and none to some.

    Args:
        cache: with `axis_name`, this device's shard of it.
        positions: of the tokens in their segments.
        segment_ids: 0 for padding.
        axis_name: mesh axes of the ring, inside `jax.shard_map`; None: all of the cache is here.
    """
    tokens, stations = positions.shape[1], cache.filled.shape[1]
    kept = jnp.max(jnp.where(segment_ids != 0, jnp.arange(1, tokens + 1, dtype=jnp.int32)[None], 0), axis=1)
    owner = jnp.argmin(cache.filled, axis=1)
    owned = jnp.arange(stations)[None] == owner[:, None]
    filled = cache.filled + jnp.where(owned, kept[:, None], 0)
    here = jnp.zeros((), jnp.int32) if axis_name is None else lax.axis_index(axis_name)
    at = lax.dynamic_index_in_dim(cache.filled, here, 1, keepdims=False)
    put = vmap(lambda row, new, start: lax.dynamic_update_slice(row, new, (start,)))
    cache = cache._replace(
        positions=put(cache.positions, positions, at),
        segment_ids=put(cache.segment_ids, segment_ids, at),
        filled=filled,
    )
    return cache, Slots(at, lax.dynamic_index_in_dim(filled, here, 1, keepdims=False))


def store(
    k: Float[Array, "batch tokens kv_heads head_dim"], v: Float[Array, "batch tokens kv_heads head_dim"], dtype: Any
) -> Stored:
    """New keys and values as the cache keeps them, without the leading axis of layers."""
    if jnp.dtype(dtype) == jnp.int8:
        (k, k_scale), (v, v_scale) = quantise(k), quantise(v)
        return Stored(_flat(k), _flat(v), k_scale.swapaxes(1, 2), v_scale.swapaxes(1, 2))
    return Stored(_flat(k.astype(dtype)), _flat(v.astype(dtype)), None, None)


def quantise(x: Float[Array, "*rows head_dim"]) -> tuple[Array, Float32[Array, "*rows"]]:
    """int8 numbers and their scale, absmax / 127 of a token's head: x is nearly numbers * scale[..., None]."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127.0
    divisor = jnp.where(scale > 0, scale, 1.0)[..., None]
    return jnp.round(x / divisor).astype(jnp.int8), scale


def _flat(x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1)
