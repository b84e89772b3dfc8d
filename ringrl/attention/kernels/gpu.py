"""The local step on NVIDIA GPUs: cuDNN's fused attention, by the custom calls that JAX ships for it.

cuDNN masks nothing or the upper triangle, and knows no positions. That is enough: against any shard of the same layout
a device's queries see one of a few rectangles (`gpu_rectangles`), each one cuDNN call. Which one follows at run time
from the positions, so that what no query sees is not computed. A zigzag shard against itself is one causal call;
against an earlier shard all queries see the first half of the keys, against a later one the second half of the queries
sees all.

Backward, cuDNN recomputes the weights from a log-sum-exp and delta from an output, both of which are arguments
(FlashAttention, arXiv 2205.14135, algorithm 4). Given those over all keys of the ring it returns one shard's shares.

**Precision.** Inside, cuDNN accumulates in float32; what it stores, output and gradients alike, has the inputs' dtype:
its fused attention offers no other, nor does JAX's call. So a hop's partial results are rounded to bfloat16 before they
are merged and summed in float32, each by at most 2^-9 of itself. Sums and log-sum-exp are never rounded, so this does
not pile up along the ring as in zhuzilin/ring-flash-attention#42: for a ring of 8 the roundings of all hops and of the
result together come to 1.2 to 1.8 times the result's alone (simulated: tests/attention/test_gpu_kernel.py).

**Not run on hardware.** That the calls lower for CUDA, and everything around them, is tested; cuDNN's own arithmetic
and speed with these arguments are not. The calls are private to JAX; `supported` says where they are missing.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jaxtyping import Array, Float, Int32

from ringrl.attention.block_attention import MASKED_LSE, vary_like
from ringrl.attention.kernels.gpu_rectangles import Rectangle, rectangles, which_rectangle
from ringrl.attention.local_step import KeyGradients, Keys, Output, Queries, RowValues, merge

_PRIMITIVES = "_dot_product_attention_fwd_p_wrapper", "_dot_product_attention_bwd_p_wrapper"


def supported(q: Any, k: Any, segmented: bool) -> str | None:
    """Why cuDNN cannot compute this step on this machine, in words; None where it can.

    Args:
        q: queries [batch, queries, heads, head_dim], or anything with their shape and dtype.
        k: keys [batch, keys, kv_heads, head_dim], likewise.
        segmented: whether there are segment ids.
    """
    if segmented:
        return "cuDNN's fused attention does not mask by segment ids"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN's fused attention takes bfloat16 and float16, not {q.dtype}"
    if missing := [name for name in _PRIMITIVES if not hasattr(cudnn, name)]:
        return f"this version of JAX has no {' and no '.join(missing)}"
    if not cudnn.check_compute_capability("8.0"):
        return "cuDNN's fused attention needs an NVIDIA GPU of compute capability 8.0 or later"
    if q.shape[-1] > 128 and cudnn.check_compute_capability("10.0"):
        return f"cuDNN's backward pass takes a head_dim of at most 128 on Blackwell, not {q.shape[-1]}"
    layout = cudnn.AttentionLayout.BTNH
    try:
        cudnn.check_layout(q, k, k, None, None, None, None, None, None, None, layout)
        cudnn.check_is_flash_attention(q, k, k, layout.value, cudnn.check_cudnn_version(), False, True)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"cuDNN's fused attention: {error}"
    return None


def forward(
    q: Queries,
    k: Keys,
    v: Keys,
    q_positions: Int32[Array, "1 queries"],
    k_positions: Int32[Array, "1 keys"],
    *,
    scale: float,
    q_chunks: int = 1,
    k_chunks: int = 1,
    k_split: int | None = None,
) -> tuple[Output, RowValues]:
    """Attention of a shard's queries to the keys of one shard, or of several, one after the other.

    Args:
        q: queries, bfloat16 or float16; query head h reads key head h // (heads / kv_heads).
        k: keys.
        v: values.
        q_positions: a query sees the keys at its position and before it; `SEES_ALL`: every key.
        k_positions: the keys' positions, increasing within a shard.
        scale: multiplies the scores.
        q_chunks: runs of tokens in a shard: 2 if it is zigzag, otherwise 1.
        k_chunks: runs of tokens in the keys: q_chunks for each shard of keys.
        k_split: keys before which, or from which on, positions may all be `NEVER_SEEN`; None: half of a shard's.

    Returns:
        float32 output (rounded by cuDNN to q's dtype, see above) and log-sum-exp; 0 and `MASKED_LSE` for a query that
        sees nothing. NaN where the positions make no rectangle that cuDNN can mask, which no layout does.

    Raises:
        ValueError: k_chunks is not a multiple of q_chunks, or the runs of queries or keys are not equally long.
    """
    shards = _key_shards(q.shape[1], k.shape[1], q_chunks, k_chunks)
    q, k, v, q_positions, k_positions = vary_like(x := (q, k, v, q_positions, k_positions), x)
    size = k.shape[1] // shards
    choices = rectangles(q.shape[1], size, q_chunks, size // 2 if k_split is None else k_split)

    def constant(out: float, lse: float, *_: Array) -> tuple[Array, Array]:
        return vary_like((jnp.full(q.shape, out, jnp.float32), jnp.full(q.shape[:-1], lse, jnp.float32)), q)

    def attend(k: Array, v: Array, k_positions: Array) -> tuple[Array, Array]:
        branches = [partial(constant, 0.0, MASKED_LSE)]
        branches += [partial(_forward_rectangle, seen, scale) for seen in choices]
        branches += [partial(constant, jnp.nan, jnp.nan)]
        return lax.switch(which_rectangle(choices, q_positions[0], k_positions[0]), branches, q, k, v)

    if shards == 1:
        return attend(k, v, k_positions)

    def shard(result: tuple[Array, Array], keys: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        return merge(result, attend(*keys)), None

    keys = _split(k, shards), _split(v, shards), _split(k_positions, shards)
    return lax.scan(shard, constant(0.0, MASKED_LSE), keys)[0]


def backward(
    q: Queries,
    out: Queries,
    d_out: Queries,
    lse: RowValues,
    k: Keys,
    v: Keys,
    q_positions: Int32[Array, "1 queries"],
    k_positions: Int32[Array, "1 keys"],
    *,
    scale: float,
    q_chunks: int = 1,
    k_chunks: int = 1,
    k_split: int | None = None,
    d_lse: RowValues | None = None,
) -> tuple[Output, KeyGradients, KeyGradients]:
    """These keys' share of dq, and the queries' share of dk and dv.

    Args:
        q: queries, bfloat16 or float16.
        out: output over *all* keys, also those that are not here, in q's dtype.
        d_out: gradient of `out`, in q's dtype.
        lse: log-sum-exp over all keys.
        k: keys.
        v: values.
        q_positions: as in `forward`, and so on.
        k_positions: positions of the keys.
        scale: multiplies the scores.
        q_chunks: runs of tokens in a shard.
        k_chunks: runs of tokens in the keys.
        k_split: where a shard's keys may be hidden from or to.
        d_lse: gradient of `lse`; it costs a second call. None: the log-sum-exp was not used.

    Returns:
        dq, dk, dv in float32, each shard's rounded by cuDNN to its input's dtype. NaN as in `forward`.

    Raises:
        ValueError: as `forward`.
    """
    shards = _key_shards(q.shape[1], k.shape[1], q_chunks, k_chunks)
    arrays = q, k, v, q_positions, k_positions, out, d_out, lse, d_lse
    q, k, v, q_positions, k_positions, *rows = vary_like(arrays, arrays)
    size = k.shape[1] // shards
    choices = rectangles(q.shape[1], size, q_chunks, size // 2 if k_split is None else k_split)

    def constant(value: float, q: Array, k: Array, v: Array, *_: Array | None) -> tuple[Array, Array, Array]:
        dq, dk, dv = (jnp.full(x.shape, value, jnp.float32) for x in (q, k, v))
        return vary_like((dq, dk, dv), q)

    def differentiate(k: Array, v: Array, k_positions: Array) -> tuple[Array, Array, Array]:
        branches = [partial(constant, 0.0)]
        branches += [partial(_backward_rectangle, seen, scale) for seen in choices]
        branches += [partial(constant, jnp.nan)]
        return lax.switch(which_rectangle(choices, q_positions[0], k_positions[0]), branches, q, k, v, *rows)

    if shards == 1:
        return differentiate(k, v, k_positions)

    def shard(dq: Array, keys: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        more, dk, dv = differentiate(*keys)
        return dq + more, (dk, dv)

    keys = _split(k, shards), _split(v, shards), _split(k_positions, shards)
    dq, (dk, dv) = lax.scan(shard, constant(0.0, q, k, v)[0], keys)
    return dq, _join(dk), _join(dv)


def _key_shards(queries: int, keys: int, q_chunks: int, k_chunks: int) -> int:
    if k_chunks % q_chunks or queries % q_chunks or keys % k_chunks:
        raise ValueError(
            f"{queries} queries in {q_chunks} runs and {keys} keys in {k_chunks} do not make shards: the runs of keys "
            "must be a multiple of the runs of queries, and the lengths multiples of their runs"
        )
    return k_chunks // q_chunks


def _split(x: Array, shards: int) -> Array:
    """[batch, keys, ...] -> [shards, batch, keys a shard, ...]."""
    return x.reshape(x.shape[0], shards, -1, *x.shape[2:]).swapaxes(0, 1)


def _join(x: Array) -> Array:
    """Undo `_split`."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])


def _forward_rectangle(seen: Rectangle, scale: float, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    keys = slice(seen.start, seen.end)
    out, lse = _cudnn_forward(q[:, seen.first :], k[:, keys], v[:, keys], seen.causal, scale)
    unseen = ((0, 0), (seen.first, 0), (0, 0))
    lse = jnp.pad(lse.swapaxes(1, 2), unseen, constant_values=MASKED_LSE)
    return jnp.pad(out.astype(jnp.float32), (*unseen, (0, 0))), lse


def _backward_rectangle(
    seen: Rectangle,
    scale: float,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    d_out: Array,
    lse: Array,
    d_lse: Array | None,
) -> tuple[Array, Array, Array]:
    rows, keys, keys_in_all = slice(seen.first, None), slice(seen.start, seen.end), k.shape[1]
    q, k, v, out, d_out, lse = q[:, rows], k[:, keys], v[:, keys], out[:, rows], d_out[:, rows], lse[:, rows]
    lse = lse.swapaxes(1, 2)
    gradients = _cudnn_backward(q, k, v, lse, out, d_out, seen.causal, scale)
    dq, dk, dv = (x.astype(jnp.float32) for x in gradients)
    if d_lse is not None:
        # d(lse)/d(scores) = p, so its share of the scores' gradient is p * d_lse. That is p * (dp - delta) for an
        # output of 0 (delta = 0), values of 1 and an output gradient that sums to d_lse (dp = d_lse).
        terms = _exact_terms(d_lse[:, rows], q)
        ones = jnp.zeros_like(v).at[..., : terms.shape[-1]].set(1)
        spread = jnp.zeros_like(d_out).at[..., : terms.shape[-1]].set(terms)
        gradients = _cudnn_backward(q, k, ones, lse, jnp.zeros_like(out), spread, seen.causal, scale)
        dq, dk = dq + gradients[0].astype(jnp.float32), dk + gradients[1].astype(jnp.float32)
    unseen = ((0, 0), (seen.start, keys_in_all - seen.end), (0, 0), (0, 0))
    return jnp.pad(dq, ((0, 0), (seen.first, 0), (0, 0), (0, 0))), jnp.pad(dk, unseen), jnp.pad(dv, unseen)


def _exact_terms(x: RowValues, like: Array) -> Float[Array, "batch queries heads 3"]:
    """Three numbers of `like`'s dtype that sum to x: bfloat16 has 8 bits of float32's 24."""
    terms = []
    for _ in range(3):
        terms.append(x.astype(like.dtype))
        x = x - terms[-1].astype(jnp.float32)
    return jnp.stack(terms, -1)


def _cudnn_forward(q: Array, k: Array, v: Array, causal: bool, scale: float) -> tuple[Array, Array]:
    """Output [batch, queries, heads, head_dim] in q's dtype, and float32 log-sum-exp [batch, heads, queries]."""
    out, lse = cudnn._dot_product_attention_fwd_p_wrapper.bind(
        q, k, v, *_unused(q, 7), is_training=True, **_parameters(causal, scale)
    )
    return out, lse


def _cudnn_backward(
    q: Array, k: Array, v: Array, lse: Array, out: Array, d_out: Array, causal: bool, scale: float
) -> tuple[Array, Array, Array]:
    """dq, dk, dv in the inputs' dtype."""
    dq, dk, dv = cudnn._dot_product_attention_bwd_p_wrapper.bind(
        q, k, v, *_unused(q, 7), lse, out, d_out, **_parameters(causal, scale)
    )
    return dq, dk, dv


def _unused(q: Array, count: int) -> list[Array]:
    """Empty arrays in place of bias, lengths, offsets and page tables."""
    return [jnp.zeros(0, q.dtype)] * count


def _parameters(causal: bool, scale: float) -> dict[str, Any]:
    return {
        "scale": scale,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),  # no bias, no gradient of one
        "mask_type": cudnn.MaskType.CAUSAL if causal else cudnn.MaskType.NO_MASK,
        "layout": cudnn.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }
