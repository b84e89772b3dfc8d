"""Exact attention of a set of query blocks to a set of key blocks, forward and backward; no hidden block is computed.

This is the local step in plain XLA, for every platform (`kernels.xla`), and what `decode_attention` reads a cache with.
Arrays here are blocked: a block's index comes first, so that a loop reads contiguous memory, and the heads that share a
key head lie side by side in one axis of rows, so that a grouped query is a larger matrix product and keys are never
repeated:

    queries      [q_blocks, batch, kv_heads, rows, head_dim]     rows = group * block_q, group-major
    keys, values [k_blocks, batch, kv_heads, block_k, head_dim]

Forward is the online softmax (Milakov & Gimelshein, arXiv 1805.02867; Rabe & Staats, arXiv 2112.05682), backward
recomputes the weights from the log-sum-exp (Dao et al., FlashAttention, arXiv 2205.14135, algorithm 4).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int32

MASKED_LSE = -1e30
"""The log-sum-exp of a query that sees nothing: finite, so that merging two such results makes no NaN."""

NEVER_SEEN = jnp.iinfo(jnp.int32).max
"""The position of a key that no query may see (padding of a block)."""

SEES_ALL = NEVER_SEEN - 1
"""The position of a query that causality does not bind."""

SEES_NONE = -1
"""The position of a query that only fills a block."""

QueryBlocks = Float[Array, "q_blocks batch kv_heads rows head_dim"]
KeyBlocks = Float[Array, "k_blocks batch kv_heads block_k head_dim"]
OutputBlocks = Float32[Array, "q_blocks batch kv_heads rows head_dim"]
RowBlocks = Float32[Array, "q_blocks batch kv_heads rows"]

Tree = TypeVar("Tree")


class TokenBlocks(NamedTuple):
    """What masks are made of. A key is visible where its position <= the query's and the segments are equal."""

    positions: Int32[Array, "blocks batch_or_1 block"]  # or NEVER_SEEN, SEES_ALL, SEES_NONE
    segments: Int32[Array, "blocks batch block"] | None  # 0 is padding; None: one segment


def group_size(heads: int, kv_heads: int) -> int:
    """Query heads that share a key head. ValueError when they do not divide."""
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads: the first must be a multiple")
    return heads // kv_heads


def needed_blocks(q_tokens: TokenBlocks, k_tokens: TokenBlocks) -> Bool[Array, "q_blocks k_blocks"]:
    """Which pairs of blocks contain a visible pair of tokens. Exactly these are computed, in every row of the batch.

    A pair is needed where, in some row, the highest position of the queries is at least the lowest of the keys and the
    ranges of segment ids (padding left out) overlap. Other pairs contain nothing visible: leaving them out is exact.
    """
    needed = q_tokens.positions.max(-1)[:, None] >= k_tokens.positions.min(-1)[None]
    if q_tokens.segments is not None and k_tokens.segments is not None:
        q_low, q_high = _segment_range(q_tokens.segments)
        k_low, k_high = _segment_range(k_tokens.segments)
        overlap = (q_low[:, None] <= k_high[None]) & (k_low[None] <= q_high[:, None])
        needed = jnp.broadcast_to(needed, overlap.shape) & overlap
    return needed.any(-1)


def _segment_range(segments: Int32[Array, "blocks batch block"]) -> tuple[Array, Array]:
    limits = jnp.iinfo(jnp.int32)
    low = jnp.where(segments == 0, limits.max, segments).min(-1)
    high = jnp.where(segments == 0, limits.min, segments).max(-1)
    return low, high


def visible(q_tokens: TokenBlocks, k_tokens: TokenBlocks) -> Bool[Array, "batch_or_1 block_q block_k"]:
    """The mask of one block of queries against one block of keys (tokens without their leading block axis)."""
    mask = q_tokens.positions[:, :, None] >= k_tokens.positions[:, None, :]
    if q_tokens.segments is not None and k_tokens.segments is not None:
        ids = q_tokens.segments[:, :, None]
        same = (ids == k_tokens.segments[:, None, :]) & (ids != 0)
        mask = jnp.broadcast_to(mask, same.shape) & same
    return mask


def forward_blocks(
    q: QueryBlocks,
    fetch: Callable[[Array], tuple[Array, Array]],
    q_tokens: TokenBlocks,
    k_tokens: TokenBlocks,
    needed: Bool[Array, "q_blocks k_blocks"],
    scale: float,
) -> tuple[OutputBlocks, RowBlocks]:
    """Attend every query block to the key blocks it needs.

    Args:
        q: blocked queries.
        fetch: block index -> that block's keys and values, each [batch, kv_heads, block_k, head_dim].
        q_tokens: positions and segments of the queries.
        k_tokens: positions and segments of the keys.
        needed: from `needed_blocks`; other pairs are not computed.
        scale: multiplies the scores.

    Returns:
        Normalised float32 output and log-sum-exp; 0 and `MASKED_LSE` for rows that see nothing.
    """
    following = _following(needed)
    like = (q, *fetch(jnp.int32(0)), following)

    def query_block(_: None, row: tuple) -> tuple[None, tuple[Array, Array]]:
        q_i, tokens_i, following_i = row

        def key_block(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            acc, highest, total = state
            k_j, v_j = fetch(j)
            s = _hide(_dot(q_i, k_j, 3, 3) * scale, visible(tokens_i, _block(k_tokens, j)))
            new_highest = jnp.maximum(highest, s.max(-1))
            p = jnp.exp(s - new_highest[..., None])
            shrink = jnp.exp(highest - new_highest)
            total = total * shrink + p.sum(-1)
            acc = acc * shrink[..., None] + _dot(p.astype(v_j.dtype), v_j, 3, 2)
            return acc, new_highest, total

        empty = jnp.zeros(q_i.shape, jnp.float32), jnp.full(q_i.shape[:-1], MASKED_LSE), jnp.zeros(q_i.shape[:-1])
        acc, highest, total = _visit(following_i, key_block, vary_like(empty, like))
        seen = total > 0
        total = jnp.where(seen, total, 1.0)
        return None, (acc / total[..., None], jnp.where(seen, highest + jnp.log(total), MASKED_LSE))

    return lax.scan(query_block, None, (q, q_tokens, following))[1]


def backward_blocks(
    q: QueryBlocks,
    d_out: QueryBlocks,
    lse: RowBlocks,
    delta: RowBlocks,
    k: KeyBlocks,
    v: KeyBlocks,
    q_tokens: TokenBlocks,
    k_tokens: TokenBlocks,
    needed: Bool[Array, "q_blocks k_blocks"],
    scale: float,
) -> tuple[OutputBlocks, Float32[Array, "..."], Float32[Array, "..."]]:
    """Gradients of the pairs of blocks that `needed` names, all in float32.

    Args:
        q: blocked queries.
        d_out: gradient of the whole output, in q's dtype.
        lse: log-sum-exp over *all* keys, also those that are not here.
        delta: rowsum(d_out * out), less the gradient of the log-sum-exp.
        k: blocked keys.
        v: blocked values.
        q_tokens: positions and segments of the queries.
        k_tokens: positions and segments of the keys.
        needed: from `needed_blocks`.
        scale: multiplies the scores.

    Returns:
        This part's share of dq, and dk and dv.
    """
    following = _following(needed.T)
    like = (q, k, v, d_out, following)

    # Scores are [keys, rows] here, and dq as [head_dim, rows]: so no product needs its large operand transposed,
    # which XLA's CPU backend does three times more slowly.
    def key_block(dq: Array, column: tuple) -> tuple[Array, tuple[Array, Array]]:
        k_j, v_j, tokens_j, following_j = column
        k_j_transposed = k_j.swapaxes(2, 3)

        def query_block(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq, dk, dv = state
            scores = _dot(k_j, q[i], 3, 3) * scale
            p = jnp.exp(_hide(scores, visible(_block(q_tokens, i), tokens_j), by_keys=True) - lse[i][:, :, None])
            dp = _dot(v_j, d_out[i], 3, 3)
            ds = (p * (dp - delta[i][:, :, None])).astype(q.dtype)
            dv = dv + _dot(p.astype(q.dtype), d_out[i], 3, 2)
            dk = dk + _dot(ds, q[i], 3, 2)
            dq = dq.at[i].add(_dot(k_j_transposed, ds, 3, 2))
            return dq, dk, dv

        nothing = vary_like(jnp.zeros(k_j.shape, jnp.float32), like)
        dq, dk, dv = _visit(following_j, query_block, (dq, nothing, nothing))
        return dq, (dk * scale, dv)

    nothing = vary_like(jnp.zeros(q.swapaxes(3, 4).shape, jnp.float32), like)
    dq, (dk, dv) = lax.scan(key_block, nothing, (k, v, k_tokens, following))
    return dq.swapaxes(3, 4) * scale, dk, dv


def vary_like(x: Tree, like: Any) -> Tree:
    """Under `shard_map`'s check_vma, mark the leaves of x as varying over every mesh axis over which `like` varies."""
    axes = frozenset().union(*(_varying_axes(leaf) for leaf in jax.tree.leaves(like)))

    def vary(leaf: Array) -> Array:
        missing = tuple(sorted(axes - _varying_axes(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, x)


def result_like(shape: tuple[int, ...], like: Array, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """A kernel's result that varies, under `shard_map`'s check_vma, over the mesh axes over which `like` varies."""
    if not _varying_axes(like):
        return jax.ShapeDtypeStruct(shape, dtype)
    aval: Any = jax.typeof(like)
    axes = {"manual_axis_type": aval.mat} if hasattr(aval, "mat") else {"vma": aval.vma}
    sharding = NamedSharding(aval.sharding.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding, **axes)


def _varying_axes(x: Array) -> frozenset[str]:
    aval = jax.typeof(x)
    # jax 0.10.2 moved the set of axes from `aval.vma` into `aval.mat`.
    return aval.mat.varying if hasattr(aval, "mat") else aval.vma


def _dot(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """Batched matrix product over [batch, kv_heads], accumulated in float32."""
    contract, batch = ((a_axis,), (b_axis,)), ((0, 1), (0, 1))
    return lax.dot_general(a, b, (contract, batch), preferred_element_type=jnp.float32)


def _hide(scores: Array, mask: Array, *, by_keys: bool = False) -> Array:
    """Scores [batch, kv_heads, rows, keys], or [.., keys, rows] (`by_keys`), with -inf where the key is not visible."""
    _, block_q, block_k = mask.shape
    if by_keys:
        mask, grouped = mask.swapaxes(1, 2)[:, None, :, None], (block_k, -1, block_q)
    else:
        mask, grouped = mask[:, None, None], (-1, block_q, block_k)
    return jnp.where(mask, scores.reshape(*scores.shape[:2], *grouped), -jnp.inf).reshape(scores.shape)


def _block(tokens: TokenBlocks, index: Array) -> TokenBlocks:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), tokens)


def _following(needed: Bool[Array, "rows blocks"]) -> Int32[Array, "rows blocks_and_1"]:
    """For each row and index j, the first needed block at or after j; the number of blocks where none is left."""
    rows, blocks = needed.shape
    index = jnp.broadcast_to(jnp.arange(blocks, dtype=jnp.int32)[None], needed.shape)
    first = lax.cummin(jnp.where(needed, index, blocks), axis=1, reverse=True)
    return jnp.concatenate([first, jnp.full((rows, 1), blocks, jnp.int32)], axis=1)


def _visit(following: Int32[Array, " blocks_and_1"], body: Callable[[Array, Tree], Tree], state: Tree) -> Tree:
    """Run `body` on the needed blocks only. The loop jumps, so a skipped block costs nothing, not even a branch."""
    blocks = following.shape[0] - 1

    def step(carry: tuple[Array, Tree]) -> tuple[Array, Tree]:
        index, inner = carry
        return following[index + 1], body(index, inner)

    return lax.while_loop(lambda carry: carry[0] < blocks, step, (following[0], state))[1]
