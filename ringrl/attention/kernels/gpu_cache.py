"""Attention to a KV cache on NVIDIA GPUs, in Pallas's Triton: a layer is read where it lies, as far as a row is filled.

A few queries against a long cache are one row of work, and a GPU has a hundred processors. So the filled slots of every
row are cut into even stretches, each of which a program of the grid attends to with an online softmax of its own; one
combination of their (output, log-sum-exp) joins them (Flash-Decoding, Dao et al. 2023; the same that joins the devices
of a ring in `decode`). The stretches follow from the row's length at run time: what is not filled is not read.

The queries that read one key head, of all new tokens, are the rows of one product.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.block_attention import MASKED_LSE, SEES_NONE, group_size, result_like, vary_like
from ringrl.attention.kernels.block_ranges import LOG2_E, dot
from ringrl.attention.kernels.gpu_blocks import padded_head_dim, read
from ringrl.attention.kernels.gpu_cache_write import write
from ringrl.attention.kv_cache import Stored
from ringrl.attention.local_step import TokenIndex

__all__ = ["attend", "missing", "write"]

_PROGRAMS = 512
"""Programs of the grid at least, if the cache is long enough: a few for each processor of an H100 or a B200."""

_ALIGNMENT = 64
"""Slots are a multiple of this, which every block divides."""


def missing(q: Array, stored: Stored) -> str | None:
    """Why the kernel cannot attend these queries to this cache; None where it can."""
    if stored.k.shape[2] % _ALIGNMENT:
        return f"{stored.k.shape[2]} slots are no multiple of {_ALIGNMENT}"
    if q.dtype == jnp.float16:
        return "a cache is float32, bfloat16 or int8, not float16"
    if stored.k.dtype == jnp.int8 and 2**31 < stored.k.size <= 2**32:
        return "Pallas counts the numbers of such a cache in 32 bits with a sign"  # jax 0.10.2, by bytes, not numbers
    return None


class _Split(NamedTuple):
    """How queries and slots are cut into programs."""

    group: int  # query heads that read one key head
    used: int  # rows of queries of a key head: group * queries
    rows: int  # of a program, a power of two
    tiles: int  # of rows
    splits: int  # of a row's filled slots
    block: int  # slots of a product

    def pack(self, x: Array, kv_heads: int) -> Array:
        """[batch, queries, heads, ...] -> [batch, kv_heads, tiles * rows, ...], rows ordered by query, head."""
        batch, queries, rest = x.shape[0], x.shape[1], x.shape[3:]
        x = jnp.moveaxis(x.reshape(batch, queries, kv_heads, self.group, *rest), 2, 1)
        return self._pad(x.reshape(batch, kv_heads, self.used, *rest), 2, 0)

    def pack_ids(self, tokens: TokenIndex) -> tuple[Array, Array]:
        """Position and segment of each row, [batch, tiles * rows]; those of segment 0 see nothing."""
        assert tokens.segments is not None  # of a cache there are always segments
        positions = jnp.where(tokens.segments == 0, jnp.int32(SEES_NONE), tokens.positions)
        positions, segments = (jnp.repeat(x, self.group, axis=1) for x in (positions, tokens.segments))
        return self._pad(positions, 1, SEES_NONE), self._pad(segments, 1, 0)

    def unpack(self, x: Array) -> Array:
        """[batch, kv_heads, tiles * rows, ...] -> [batch, queries, heads, ...]."""
        batch, kv_heads, rest = x.shape[0], x.shape[1], x.shape[3:]
        x = x[:, :, : self.used].reshape(batch, kv_heads, -1, self.group, *rest)
        return jnp.moveaxis(x, 1, 2).reshape(batch, -1, kv_heads * self.group, *rest)

    def _pad(self, x: Array, axis: int, fill: int) -> Array:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, self.tiles * self.rows - self.used)
        return jnp.pad(x, padding, constant_values=fill)


def _split(q: Array, stored: Stored) -> _Split:
    batch, queries, heads, dim = q.shape
    slots, kv_heads = stored.k.shape[2], stored.k.shape[3] // dim
    group = group_size(heads, kv_heads)
    used, (longest, block) = group * queries, _tile(dim, q.dtype.itemsize)
    rows = min(max(pl.next_power_of_2(used), 16), longest)  # at least 16, for the matrix units
    tiles = pl.cdiv(used, rows)
    splits = min(pl.cdiv(_PROGRAMS, batch * kv_heads * tiles), slots // block)
    return _Split(group, used, rows, tiles, splits, block)


def _tile(dim: int, itemsize: int) -> tuple[int, int]:
    """Rows and slots of a product: none spills registers (tests/attention/test_gpu_cache.py), none was timed."""
    if itemsize == 2:
        return (64, 64) if dim <= 128 else (32, 32)
    return (64, 32) if dim <= 128 else (16, 16)


def attend(
    q: Float[Array, "batch queries heads head_dim"],
    stored: Stored,
    layer: Int32[Array, ""],
    q_tokens: TokenIndex,
    tokens: TokenIndex,
    filled: Int32[Array, " batch"],
    *,
    scale: float,
    interpret: bool = False,
) -> tuple[Float32[Array, "batch queries heads head_dim"], Float32[Array, "batch queries heads"]]:
    """Attend queries to the filled slots of a layer that are of their segment and not after their positions.

    Args:
        q: queries, float32 or bfloat16. Products are computed in this type, also of an int8 cache.
        stored: keys and values of all layers. See `missing` for what it must be.
        layer: which.
        q_tokens: positions and segments of the queries, [batch, queries].
        tokens: of the slots, [batch, slots].
        filled: slots of each row that are filled.
        scale: multiplies the scores.
        interpret: run without a GPU, slowly.

    Returns:
        Output and log-sum-exp; 0 and `MASKED_LSE` for a query that sees nothing.

    Raises:
        ValueError: heads is not a multiple of kv_heads.
    """
    arrays = (q, stored, layer, q_tokens, tokens, filled)
    q, stored, layer, q_tokens, tokens, filled = vary_like(arrays, arrays)
    (batch, _, _, dim), (layers, _, slots, lanes) = q.shape, stored.k.shape
    split, kv_heads, width = _split(q, stored), lanes // dim, padded_head_dim(dim)
    k, v = (x.reshape(layers, batch, slots, kv_heads, dim) for x in (stored.k, stored.v))
    in_specs, result = _specs(split, kv_heads, slots, width, stored.k_scale is not None, layers)
    rows = (batch, kv_heads, split.splits, split.tiles * split.rows)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, factor=scale * LOG2_E, split=split, kv_heads=kv_heads, head_dim=dim),
        grid=(split.tiles, kv_heads * split.splits, batch),
        in_specs=in_specs,
        out_specs=[result(width), result()],
        out_shape=[result_like((*rows, width), q), result_like(rows, q)],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="cache_attention",
    )(layer[None], filled, split.pack(q, kv_heads), split.pack_ids(q_tokens), tuple(tokens), (k, v, *stored[2:]))
    out, lse = _join(out[..., :dim], lse)
    return split.unpack(out), split.unpack(lse)


def _specs(
    split: _Split, kv_heads: int, slots: int, width: int, scaled: bool, layers: int
) -> tuple[list[Any], Callable[..., pl.BlockSpec]]:
    """Of the arguments, and of results with these last axes, over a grid (tiles, stretches and key heads, batch)."""

    def spec(shape: tuple[int | None, ...], index: Callable[..., tuple]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda tile, program, row: index(tile, program % kv_heads, row))

    def result(*last: int) -> pl.BlockSpec:
        zeros = (0,) * len(last)
        place = lambda tile, program, row: (row, program % kv_heads, program // kv_heads, tile, *zeros)  # noqa: E731
        return pl.BlockSpec((None, None, None, split.rows, *last), place)

    keys = spec((layers, None, slots, None, width), lambda tile, head, row: (0, row, 0, head, 0))
    scales = spec((layers, None, None, slots), lambda tile, head, row: (0, row, head, 0)) if scaled else None
    arguments = [
        spec((1,), lambda tile, head, row: (0,)),
        spec((1,), lambda tile, head, row: (row,)),
        spec((None, None, split.rows, width), lambda tile, head, row: (row, head, tile, 0)),
        (spec((None, split.rows), lambda tile, head, row: (row, tile)),) * 2,
        (spec((None, slots), lambda tile, head, row: (row, 0)),) * 2,
        (keys, keys, scales, scales),
    ]
    return arguments, result


def _join(out: Array, lse: Array) -> tuple[Array, Array]:
    """The stretches' results, which lie along axis 2, as one."""
    highest = lse.max(axis=2)
    weight = jnp.exp(lse - highest[:, :, None])
    weight = jnp.where(lse == MASKED_LSE, 0.0, weight)
    total = weight.sum(axis=2)
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    out = jnp.einsum("bhsrd,bhsr->bhrd", out, weight, precision=lax.Precision.HIGHEST) / total[..., None]
    return out, jnp.where(seen, highest + jnp.log(total), MASKED_LSE)


def _kernel(
    layer_ref: Any,
    filled_ref: Any,
    q_ref: Any,
    q_ids_ref: Any,
    ids_ref: Any,
    stored_ref: Any,
    out_ref: Any,
    lse_ref: Any,
    *,
    factor: float,
    split: _Split,
    kv_heads: int,
    head_dim: int,
) -> None:
    """One tile of queries against one stretch of a row's filled slots. Scores are to base 2."""
    (k_ref, v_ref, k_scale_ref, v_scale_ref), layer, filled = stored_ref, layer_ref[0], filled_ref[0]
    q, q_ids = read(q_ref, head_dim), tuple(ref[...] for ref in q_ids_ref)
    blocks = pl.cdiv(filled, split.block)
    number = pl.program_id(1) // kv_heads
    first, after = number * blocks // split.splits, (number + 1) * blocks // split.splits

    def load(ref: Any, start: Array) -> Array:
        return read(ref.at[layer, pl.ds(start, split.block)], head_dim).astype(q.dtype)

    def scaled(x: Array, ref: Any, start: Array) -> Array:
        return x if ref is None else x * ref[layer, pl.ds(start, split.block)][None]

    def compute(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        acc, highest, total = carry
        start = index * split.block
        s = scaled(dot(q, load(k_ref, start), 1, 1) * factor, k_scale_ref, start)
        s = jnp.where(_visible(q_ids, ids_ref, start, split.block, filled), s, -jnp.inf)
        # A hidden score is -inf and `higher` is finite, so its weight is 0 also where nothing has been seen yet.
        higher = jnp.maximum(highest, s.max(axis=1))
        p, shrink = jnp.exp2(s - higher[:, None]), jnp.exp2(highest - higher)
        weights = scaled(p, v_scale_ref, start).astype(q.dtype)
        acc = acc * shrink[:, None] + dot(weights, load(v_ref, start), 1, 0)
        return acc, higher, total * shrink + p.sum(axis=1)

    empty = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(split.rows, MASKED_LSE, jnp.float32),
        jnp.zeros(split.rows, jnp.float32),
    )
    acc, highest, total = lax.fori_loop(first, after, compute, empty)
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    out_ref[...] = acc / total[:, None]
    lse_ref[...] = jnp.where(seen, highest * (1 / LOG2_E) + jnp.log(total), MASKED_LSE)


def _visible(q_ids: tuple[Array, ...], ids_ref: Any, start: Array, block: int, filled: Array) -> Array:
    """Which slots of a block the rows see, bool [rows, block]."""
    (q_positions, q_segments), (positions, segments) = q_ids, (ref[pl.ds(start, block)] for ref in ids_ref)
    there = start + jnp.arange(block, dtype=jnp.int32) < filled
    return (q_segments[:, None] == segments[None]) & (q_positions[:, None] >= positions[None]) & there[None]
