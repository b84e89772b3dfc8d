"""The local step in plain XLA: blocked loops, on any platform."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float, Int32

from ringrl.attention.block_attention import (
    NEVER_SEEN,
    SEES_NONE,
    TokenBlocks,
    backward_blocks,
    forward_blocks,
    needed_blocks,
)
from ringrl.attention.local_step import Rows, Sizes, TokenIndex, add_share
from ringrl.attention.tiling import Cut


@dataclass(frozen=True)
class XlaStep:
    """`LocalStep` on blocks, [blocks, batch, kv_heads, rows, head_dim]; see `ringrl.attention.block_attention`."""

    sizes: Sizes

    @property
    def blocks(self) -> tuple[int, int]:
        """Those that arrays are cut into."""
        return self.sizes.q.block, self.sizes.k.block

    def pack_q(self, x: Float[Array, "batch length heads dim"]) -> Float[Array, "blocks batch kv_heads rows dim"]:
        """Blocks of queries; the heads that share a key head lie in one axis of rows."""
        return _split_heads(self.sizes.q, x, self.sizes.kv_heads)

    def unpack_q(self, x: Float[Array, "blocks batch kv_heads rows dim"]) -> Float[Array, "batch length heads dim"]:
        """Undo `pack_q`."""
        return _join_heads(self.sizes.q, x)

    def pack_k(self, x: Float[Array, "batch length kv_heads dim"]) -> Float[Array, "blocks batch kv_heads block dim"]:
        """Blocks of keys or values."""
        return _split_heads(self.sizes.k, x, self.sizes.kv_heads)

    def unpack_k(self, x: Float[Array, "blocks batch kv_heads block dim"]) -> Float[Array, "batch length kv_heads dim"]:
        """Undo `pack_k`."""
        return _join_heads(self.sizes.k, x)

    def q_blocks(self, tokens: TokenIndex) -> TokenBlocks:
        """The queries' tokens in blocks; padding sees nothing."""
        return _token_blocks(self.sizes.q, tokens, SEES_NONE)

    def k_blocks(self, tokens: TokenIndex) -> TokenBlocks:
        """The keys' tokens in blocks; no query sees padding."""
        return _token_blocks(self.sizes.k, tokens, NEVER_SEEN)

    def forward(self, q: Array, k: Array, v: Array, q_tokens: TokenIndex, k_tokens: TokenIndex) -> tuple[Array, Array]:
        """Output [blocks, batch, kv_heads, rows, head_dim] and log-sum-exp, float32."""
        q_blocks, k_blocks = self.q_blocks(q_tokens), self.k_blocks(k_tokens)
        needed = needed_blocks(q_blocks, k_blocks)
        return forward_blocks(q, lambda j: (k[j], v[j]), q_blocks, k_blocks, needed, self.sizes.scale)

    def backward(
        self, rows: Rows, k: Array, v: Array, q_tokens: TokenIndex, k_tokens: TokenIndex, dq: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """dq with these keys' share, dk and dv, float32."""
        q_blocks, k_blocks = self.q_blocks(q_tokens), self.k_blocks(k_tokens)
        needed = needed_blocks(q_blocks, k_blocks)
        return add_share(dq, backward_blocks(*rows, k, v, q_blocks, k_blocks, needed, self.sizes.scale))


def _token_blocks(cut: Cut, tokens: TokenIndex, never: int) -> TokenBlocks:
    positions, segments = tokens
    split: Any = None if segments is None else _split_ids(cut, segments, 0)
    return TokenBlocks(_split_ids(cut, positions, never), split)


def _split_ids(cut: Cut, ids: Int32[Array, "rows length"], fill: int) -> Int32[Array, "blocks rows block"]:
    return cut.split(ids, fill).swapaxes(0, 1)


def _split_heads(cut: Cut, x: Array, kv_heads: int) -> Array:
    batch, _, heads, dim = x.shape
    x = cut.split(x)
    blocks = x.shape[1]
    x = x.reshape(batch, blocks, cut.block, kv_heads, heads // kv_heads, dim).transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(blocks, batch, kv_heads, heads // kv_heads * cut.block, dim)


def _join_heads(cut: Cut, x: Array) -> Array:
    blocks, batch, kv_heads, rows, dim = x.shape
    group = rows // cut.block
    x = x.reshape(blocks, batch, kv_heads, group, cut.block, dim).transpose(1, 0, 4, 2, 3, 5)
    return cut.join(x.reshape(batch, blocks, cut.block, kv_heads * group, dim))
