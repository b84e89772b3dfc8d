"""Attention to a KV cache on TPUs, as a Pallas kernel: a layer is read where it lies, as far as each row is filled.

FlashAttention's forward (see `tpu`) over a grid (rows of the batch, blocks of queries, blocks of slots). The layer and
the rows' lengths are prefetched, so the index maps pick blocks out of the stacked cache of all layers: no layer is
sliced off first, and the slots behind a row's length are not fetched.

A block of slots has the heads side by side in its lanes, and is worked on in tiles of 128 lanes or of one wider head.
Several queries share a product: a step's few tokens, and the query heads that read one key head, are its rows.
Where heads are narrower than 128, a tile has several of them: a query is then zero in the other heads' lanes, so that
one product gives each head its own scores, and no lanes are moved.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.block_attention import NEVER_SEEN, SEES_NONE, group_size, result_like, vary_like
from ringrl.attention.kernels.block_ranges import LOG2_E, dot
from ringrl.attention.kernels.tpu import Softmax
from ringrl.attention.kernels.tpu_blocks import LANES
from ringrl.attention.kernels.tpu_cache_write import in_hbm, write
from ringrl.attention.kv_cache import Stored
from ringrl.attention.local_step import TokenIndex

__all__ = ["attend", "missing", "write"]

_BLOCK_BYTES = 2**21
"""Of a block of keys; two of keys and two of values are in vector memory."""

_LONGEST_BLOCK = 1024

_ROWS = 1024
"""Rows of queries in vector memory, over all tiles; longer prompts are cut into blocks of queries."""


def missing(q: Array, stored: Stored) -> str | None:
    """Why the kernel cannot attend these queries to this cache; None where it can."""
    slots, lanes, dim = *stored.k.shape[2:], q.shape[-1]
    tile = _tile(lanes, dim)
    if lanes % tile or tile % dim or (dim > LANES and dim % LANES):
        return f"heads of {dim} numbers, {lanes // dim} of them, do not fill tiles of {LANES}"
    if slots % LANES:
        return f"{slots} slots are no multiple of {LANES}"
    if LANES * lanes * stored.k.dtype.itemsize > _BLOCK_BYTES:
        return f"{LANES} slots of {lanes} numbers are more than its vector memory has room for"
    return None


@dataclass(frozen=True)
class _Cut:
    """How queries become rows of products: [batch, blocks, tiles, rows, lanes of a tile]."""

    queries: int  # of a row of the batch
    blocks: int
    tokens: int  # queries of a block
    tiles: int
    share: int  # key heads of a tile
    group: int  # query heads that read one key head
    rows: int  # of a tile: share * group * tokens, and padding to whole registers
    dim: int  # of a head

    @property
    def used(self) -> int:
        """Rows that are no padding; ordered by key head, query head of its group, token."""
        return self.share * self.group * self.tokens

    def split(self, x: Array, fill: int = 0) -> Array:
        """[batch, queries, ...] -> [batch, blocks, tokens, ...]."""
        padding = [(0, 0)] * x.ndim
        padding[1] = (0, self.blocks * self.tokens - self.queries)
        padded = jnp.pad(x, padding, constant_values=fill)
        return padded.reshape(x.shape[0], self.blocks, self.tokens, *x.shape[2:])

    def pack(self, q: Array) -> Array:
        """Queries as rows, zero outside their own head's lanes."""
        x = self.split(q).reshape(q.shape[0], self.blocks, self.tokens, self.tiles, self.share, self.group, self.dim)
        x = x.transpose(0, 1, 3, 4, 5, 2, 6)
        own = jnp.eye(self.share, dtype=q.dtype).reshape(1, 1, 1, self.share, 1, 1, self.share, 1)
        x = (x[..., None, :] * own).reshape(q.shape[0], self.blocks, self.tiles, self.used, self.share * self.dim)
        return jnp.pad(x, [(0, 0)] * 3 + [(0, self.rows - self.used), (0, 0)])

    def pack_ids(self, positions: Array, segments: Any) -> Array:
        """Position and segment of each row, int32 [batch, blocks, rows, 2]; those of segment 0 see nothing."""
        positions = jnp.where(segments == 0, jnp.int32(SEES_NONE), positions)
        columns = []
        for x, fill in ((positions, SEES_NONE), (segments, 0)):
            split = self.split(x, fill)[:, :, None]
            rows = jnp.broadcast_to(split, (*split.shape[:2], self.share * self.group, self.tokens))
            rows = rows.reshape(*split.shape[:2], self.used)
            columns.append(jnp.pad(rows, [(0, 0), (0, 0), (0, self.rows - self.used)], constant_values=fill))
        return jnp.stack(columns, axis=-1)

    def unpack(self, x: Array) -> Array:
        """Rows [batch, blocks, tiles, rows, lanes or 1] -> [batch, queries, heads, head_dim or 1]."""
        batch, own = x.shape[0], self.share if x.shape[-1] > 1 else 1
        x = x[:, :, :, : self.used]
        x = x.reshape(batch, self.blocks, self.tiles, self.share, self.group, self.tokens, own, -1)
        if own > 1:
            x = jnp.stack([x[:, :, :, head, :, :, head] for head in range(own)], axis=3)
        x = x.reshape(batch, self.blocks, self.tiles, self.share, self.group, self.tokens, -1)
        x = x.transpose(0, 1, 5, 2, 3, 4, 6).reshape(batch, self.blocks * self.tokens, -1, x.shape[-1])
        return x[:, : self.queries]


def _tile(lanes: int, dim: int) -> int:
    return min(max(dim, LANES), lanes)


def _cut(q: Array, lanes: int) -> _Cut:
    _, queries, heads, dim = q.shape
    tile, group = _tile(lanes, dim), group_size(heads, lanes // dim)
    blocks = -(-queries // max(_ROWS // heads, 1))
    tokens, share, whole = -(-queries // blocks), tile // dim, 32 // q.dtype.itemsize
    rows = -(-share * group * tokens // whole) * whole
    return _Cut(queries, blocks, tokens, lanes // tile, share, group, rows, dim)


def _block(slots: int, lanes: int, itemsize: int) -> int:
    """Slots of a block: a power of 2 from 128 to 1024 that divides them."""
    block = _LONGEST_BLOCK
    while slots % block or (block > LANES and block * lanes * itemsize > _BLOCK_BYTES):
        block //= 2
    return block


def attend(
    q: Float[Array, "batch queries heads head_dim"],
    stored: Stored,
    layer: Int32[Array, ""],
    q_tokens: TokenIndex,
    tokens: TokenIndex,
    filled: Int32[Array, " batch"],
    *,
    scale: float,
    interpret: Any = False,
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
        interpret: run without a TPU, slowly; also Pallas's InterpretParams.

    Returns:
        Output and log-sum-exp; 0 and `MASKED_LSE` for a query that sees nothing.

    Raises:
        ValueError: heads is not a multiple of kv_heads.
    """
    arrays = (q, stored, layer, q_tokens, tokens, filled)
    q, stored, layer, q_tokens, tokens, filled = vary_like(arrays, arrays)
    batch, (slots, lanes) = q.shape[0], stored.k.shape[2:]
    cut, block = _cut(q, lanes), _block(slots, lanes, stored.k.dtype.itemsize)
    rows, tile = (cut.tiles, cut.rows), cut.share * cut.dim
    cache, index = _cache_specs(stored, block, batch, cut.blocks)
    ids = jax.tree.map(lambda x: x[:, None], tokens)
    width = jnp.maximum(pl.cdiv(jnp.max(filled), block), 1)

    def query(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda b, i, j, *_: (b, i, *(0 for _ in shape)))

    out, lse = pl.pallas_call(
        functools.partial(_kernel, cut=cut, block=block, factor=scale * LOG2_E),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, cut.blocks, width),
            in_specs=[query(*rows, tile), query(cut.rows, 2), index, cache],
            out_specs=[query(*rows, tile), query(*rows, 1)],
            scratch_shapes=[Softmax(*(pltpu.VMEM((*rows, n), jnp.float32) for n in (tile, LANES, LANES)))],
        ),
        out_shape=[result_like((batch, cut.blocks, *rows, n), q) for n in (tile, 1)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="cache_attention",
    )(layer[None], filled, cut.pack(q), cut.pack_ids(*q_tokens), ids, stored if interpret else in_hbm(stored))
    return cut.unpack(out), cut.unpack(lse)[..., 0]


def _cache_specs(stored: Stored, block: int, batch: int, q_blocks: int) -> tuple[Stored, TokenIndex]:
    """Blocks of the cache, and of the slots' ids, each [batch, 1, slots].

    A row that is done has the block in memory with which the next begins, so its fetching is not waited for.
    """

    def block_at(b: Array, i: Array, j: Array, filled: Any) -> tuple[Array, Array]:
        reads = j * block < filled[b]
        after = jnp.where(i + 1 < q_blocks, b, jnp.minimum(b + 1, batch - 1))
        return jnp.where(reads, b, after), jnp.where(reads, j, 0)

    def tokens(b: Array, i: Array, j: Array, layer: Any, filled: Any) -> tuple:
        return layer[0], *block_at(b, i, j, filled), 0

    def scales(b: Array, i: Array, j: Array, layer: Any, filled: Any) -> tuple:
        row, at = block_at(b, i, j, filled)
        return layer[0], row, 0, at

    def slot_ids(b: Array, i: Array, j: Array, layer: Any, filled: Any) -> tuple:
        row, at = block_at(b, i, j, filled)
        return row, 0, at

    array: Any = pl.BlockSpec((None, None, block, stored.k.shape[3]), tokens)
    scale: Any = None
    if stored.k_scale is not None:
        scale = pl.BlockSpec((None, None, stored.k_scale.shape[2], block), scales)
    ids: Any = pl.BlockSpec((None, 1, block), slot_ids)
    return Stored(array, array, scale, scale), TokenIndex(ids, ids)


def _kernel(
    layer: Any,
    filled: Any,
    q_ref: Any,
    q_ids: Any,
    ids: Any,
    cache: Any,
    out_ref: Any,
    lse_ref: Any,
    softmax: Softmax,
    *,
    cut: _Cut,
    block: int,
    factor: float,
) -> None:
    """One block of queries against one block of slots. Scores are to base 2; `factor` is scale * log2(e)."""
    del layer  # the index maps read it
    end, step = filled[pl.program_id(0)], pl.program_id(2)
    tiles = [Softmax(*(x.at[tile] for x in softmax)) for tile in range(cut.tiles)]

    @pl.when(step == 0)
    def _start() -> None:
        for tile in tiles:
            tile.start()

    @pl.when(step * block < end)
    def _visit() -> None:
        slot = step * block + lax.broadcasted_iota(jnp.int32, (1, block), 1)
        positions = jnp.where(slot < end, ids.positions[...], NEVER_SEEN)
        shape = (cut.rows, block)
        down = [jnp.broadcast_to(q_ids[:, n : n + 1], shape) for n in range(2)]
        mask = jnp.broadcast_to(positions, shape) <= down[0]
        mask &= jnp.broadcast_to(ids.segments[...], shape) == down[1]
        for n, tile in enumerate(tiles):
            lanes = pl.ds(n * cut.share * cut.dim, cut.share * cut.dim)
            k, v = (x[:, lanes].astype(q_ref.dtype) for x in (cache.k, cache.v))
            scores = dot(q_ref[n], k, 1, 1) * factor
            if cache.k_scale is not None:
                scores *= _scales(cache.k_scale, n, cut, block)
            scales = None if cache.v_scale is None else _scales(cache.v_scale, n, cut, block)
            tile.add(jnp.where(mask, scores, -jnp.inf), v, scales)

    @pl.when(step == pl.num_programs(2) - 1)
    def _finish() -> None:
        for n, tile in enumerate(tiles):
            lse_ref[n] = tile.finish(out_ref.at[n])[:, :1]


def _scales(ref: Any, tile: int, cut: _Cut, block: int) -> Array:
    """An int8 block's scales for each row of a tile, [rows, block]."""
    shape, first = (cut.rows, block), tile * cut.share
    row = lax.broadcasted_iota(jnp.int32, shape, 0)
    found = jnp.broadcast_to(ref[first : first + 1], shape)
    for head in range(1, cut.share):
        own = jnp.broadcast_to(ref[first + head : first + head + 1], shape)
        found = jnp.where(row >= head * cut.group * cut.tokens, own, found)
    return found
