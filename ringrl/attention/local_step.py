"""The local step: one device's queries against one shard of keys and values; an implementation for each platform.

`blockwise_attention` takes it once, `ring_attention` once a hop. Here is what the implementations share;
`ringrl.attention.kernels` chooses one.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Float32, Int32

from ringrl.attention.block_attention import SEES_ALL
from ringrl.attention.tiling import Cut

ATTENTION_NAMES = ("attention_out", "attention_lse")
"""Checkpoint names of what the backward pass needs beside q, k and v. With both kept, no attention is recomputed."""

Queries = Float[Array, "batch queries heads head_dim"]
Keys = Float[Array, "batch keys kv_heads head_dim"]
Output = Float32[Array, "batch queries heads head_dim"]
RowValues = Float32[Array, "batch queries heads"]
KeyGradients = Float32[Array, "batch keys kv_heads head_dim"]

Partial = tuple[Float32[Array, "*rows head_dim"], Float32[Array, "*rows"]]
"""Output and log-sum-exp over some of the keys, in the order in which the implementation keeps its rows."""


class TokenIndex(NamedTuple):
    """What masks are made of. A key is visible where its position <= the query's and the segments are equal."""

    positions: Int32[Array, "batch_or_1 length"]  # or NEVER_SEEN, SEES_ALL, SEES_NONE of `block_attention`
    segments: Int32[Array, "batch length"] | None  # 0 is padding; None: one segment


class Rows(NamedTuple):
    """What the backward pass needs of the queries, packed."""

    q: Array
    d_out: Array  # gradient of the output over all keys, in q's dtype
    lse: Array  # log-sum-exp over all keys, float32
    delta: Array  # rowsum(d_out * out) - d_lse, float32: what dP = d_out V^T is lessened by (FlashAttention, eq. 4)


def check_inputs(q: Array, k: Array, v: Array, segment_ids: Array | None) -> None:
    """ValueError where arrays do not go together; the message names them."""
    if k.shape != v.shape or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]) or 0 in (*q.shape, *k.shape):
        raise ValueError(
            f"q {q.shape}, k {k.shape} and v {v.shape} do not go together: [batch, length, heads, head_dim] may differ "
            "in the heads of q alone, and none may be 0"
        )
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"q, k and v must have one dtype, not {q.dtype}, {k.dtype} and {v.dtype}")
    if segment_ids is not None and (segment_ids.shape != q.shape[:2] or segment_ids.dtype != jnp.int32):
        raise ValueError(f"segment_ids must be int32 {q.shape[:2]}, not {segment_ids.dtype} {segment_ids.shape}")


@dataclass(frozen=True)
class Sizes:
    """What is static about a local step."""

    q: Cut
    k: Cut
    kv_heads: int
    scale: float


@runtime_checkable
class LocalStep(Protocol):
    """Attention of packed queries to packed keys and values, and its derivative. Hashable, as `jax.custom_vjp` needs.

    Arrays are packed once and not once a shard: keys and values are sent packed. `pack` and `unpack`
    turn the user's arrays, [batch, length, heads, head_dim], into the implementation's own and back; in these a row of
    numbers (the log-sum-exp) has the shape of the output without its last axis.
    """

    @property
    def sizes(self) -> Sizes:
        """What is static."""
        ...

    @property
    def blocks(self) -> tuple[int, int]:
        """Queries and keys of a block that the forward pass computes whole, or leaves out."""
        ...

    def pack_q(self, x: Float[Array, "batch length heads head_dim"]) -> Array:
        """Queries, or anything of their shape."""
        ...

    def unpack_q(self, x: Array) -> Float[Array, "batch length heads head_dim"]:
        """Undo `pack_q`."""
        ...

    def pack_k(self, x: Float[Array, "batch keys kv_heads head_dim"]) -> Array:
        """Keys or values."""
        ...

    def unpack_k(self, x: Array) -> Float[Array, "batch keys kv_heads head_dim"]:
        """Undo `pack_k`."""
        ...

    def forward(self, q: Array, k: Array, v: Array, q_tokens: TokenIndex, k_tokens: TokenIndex) -> Any:
        """A `Partial`: float32 output, and log-sum-exp; 0 and MASKED_LSE for a query that sees none of these keys."""
        ...

    def backward(
        self, rows: Rows, k: Array, v: Array, q_tokens: TokenIndex, k_tokens: TokenIndex, dq: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """dq of other keys (None: of none) and these, and the queries' share of dk and dv, all packed and float32."""
        ...


def add_share(dq: Array | None, gradients: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """`LocalStep.backward` of an implementation that computes these keys' share of dq alone."""
    share, dk, dv = gradients
    return share if dq is None else dq + share, dk, dv


@runtime_checkable
class _Ordered(Protocol):
    """A local step on a platform where the order of transfers must be fixed by dependencies."""

    def after(self, x: Array, token: Array) -> Array:
        """`x`, not before `token` is computed."""
        ...


def in_order(step: LocalStep, x: Array, token: Array) -> Array:
    """`x`, to be sent; not before `token` is computed on platforms where the order must be fixed."""
    return step.after(x, token) if isinstance(step, _Ordered) else x


def _pack_rows(step: LocalStep, x: Float32[Array, "batch heads length"]) -> Array:
    """One number a query, packed."""
    return step.pack_q(x.swapaxes(1, 2)[..., None])[..., 0]


def _unpack_rows(step: LocalStep, x: Array) -> Float32[Array, "batch heads length"]:
    """Undo `_pack_rows`."""
    return step.unpack_q(x[..., None])[..., 0].swapaxes(1, 2)


def merge(a: Partial, b: Partial) -> Partial:
    """Join two partial results of the same queries over disjoint keys.

    lse = log(e^lse_a + e^lse_b), out = e^(lse_a - lse) out_a + e^(lse_b - lse) out_b, all in float32 (Ring Attention,
    arXiv 2310.01889, section 3; FlashAttention-2, arXiv 2307.08691, section 3.1).
    """
    (out_a, lse_a), (out_b, lse_b) = a, b
    highest = jnp.maximum(lse_a, lse_b)
    weight_a, weight_b = jnp.exp(lse_a - highest), jnp.exp(lse_b - highest)
    total = weight_a + weight_b
    out = (out_a * weight_a[..., None] + out_b * weight_b[..., None]) / total[..., None]
    return out, highest + jnp.log(total)


def finish(step: LocalStep, result: Partial, dtype: Any) -> tuple[Array, Array]:
    """The user's output [batch, length, heads, head_dim] in `dtype`, and log-sum-exp [batch, heads, length].

    Both are named, so that a rematerialisation policy can keep them (`ATTENTION_NAMES`).
    """
    out, lse = result
    named = zip((step.unpack_q(out).astype(dtype), _unpack_rows(step, lse)), ATTENTION_NAMES, strict=True)
    out, lse = (checkpoint_name(x, name) for x, name in named)
    return out, lse


def backward_rows(
    step: LocalStep,
    q: Float[Array, "batch length heads head_dim"],
    out: Float[Array, "batch length heads head_dim"],
    lse: Float32[Array, "batch heads length"],
    d_out: Float[Array, "batch length heads head_dim"],
    d_lse: Float32[Array, "batch heads length"] | None,
) -> Rows:
    """Pack what the backward pass needs of the queries."""
    delta = jnp.einsum("bqhd,bqhd->bhq", out, d_out, preferred_element_type=jnp.float32)
    return Rows(
        q=step.pack_q(q),
        d_out=step.pack_q(d_out),
        lse=_pack_rows(step, lse),
        delta=_pack_rows(step, delta if d_lse is None else delta - d_lse),
    )


def query_tokens(positions: Int32[Array, "1 length"], segments: Array | None, causal: bool) -> TokenIndex:
    """The queries' tokens; without causality a query sees keys at any position."""
    return TokenIndex(positions if causal else jnp.full_like(positions, SEES_ALL), segments)
