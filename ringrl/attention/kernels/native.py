"""The local step on CPUs: a kernel in C++ that XLA calls, compiled for this processor when it is first needed.

It is the blocked online softmax of FlashAttention (Dao et al., arXiv 2205.14135), with matrix products tiled for vector
registers and work shared out over XLA's own threads; see `native.cc` and the headers beside it. `native_build.py`
compiles it and keeps the library.

`RINGRL_NATIVE=0` turns it off; `CXX` names the compiler.
"""

import ctypes
import functools
import logging
import os
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from ringrl.attention.block_attention import group_size, result_like, vary_like
from ringrl.attention.kernels.native_build import build, find_compiler
from ringrl.attention.local_step import KeyGradients, Keys, Output, Queries, RowValues
from ringrl.errors import UserError

_FORWARD, _BACKWARD, _AFTER = "ringrl_native_forward", "ringrl_native_backward", "ringrl_native_after"
ATTEND_CACHE, WRITE_CACHE = "ringrl_native_attend_cache", "ringrl_native_write_cache"

NO_COMPILER = "it needs a C++ compiler (c++, g++, clang++, or pip install ziglang)"

_log = logging.getLogger(__name__)


@functools.cache
def available() -> bool:
    """Whether the kernel can be called: compiles it if need be, and registers it with XLA.

    False, with one warning in the log, where compiling fails; False without one where there is no compiler or
    RINGRL_NATIVE is 0.
    """
    if os.environ.get("RINGRL_NATIVE") == "0":
        return False
    try:
        compiler = find_compiler()
        if compiler is None:
            return False
        library = ctypes.CDLL(str(build(compiler)))
    # ValueError: CXX is badly quoted; ImportError: no fcntl (Windows).
    except (OSError, subprocess.SubprocessError, ValueError, ImportError, UserError) as error:
        _log.warning("the native attention kernel cannot be used, XLA's is: %s", _first_error(error))
        return False
    symbols = {
        _FORWARD: library.RingrlForward,
        _BACKWARD: library.RingrlBackward,
        _AFTER: library.RingrlAfter,
        ATTEND_CACHE: library.RingrlAttendCache,
        WRITE_CACHE: library.RingrlWriteCache,
    }
    for name, symbol in symbols.items():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(symbol), platform="cpu")
    return True


def forward(
    q: Queries,
    k: Keys,
    v: Keys,
    q_positions: Int32[Array, "batch_or_1 queries"],
    k_positions: Int32[Array, "batch_or_1_k keys"],
    q_segments: Int32[Array, "batch queries"] | None,
    k_segments: Int32[Array, "batch keys"] | None,
    *,
    scale: float,
    q_chunks: int = 1,
    k_chunks: int = 1,
    sharers: int = 1,
) -> tuple[Output, RowValues]:
    """Attention of queries to one shard of keys; not differentiable by itself. `available()` must be true.

    Query i sees key j where its position is not before the key's and, with segments, the ids are equal and not 0.

    Args:
        q: queries, float32 or bfloat16.
        k: keys, in q's dtype; heads must be a multiple of kv_heads.
        v: values, in q's dtype.
        q_positions: positions of the queries, the same in every row of the batch or one row each.
        k_positions: positions of the keys.
        q_segments: ids, 0 for padding; None: one segment.
        k_segments: ids; None exactly where q_segments is.
        scale: multiplies the scores.
        q_chunks: equal runs of queries, within each of which positions increase. Decides only about speed.
        k_chunks: equal runs of keys.
        sharers: simulated devices that take this step at the same time, on the same threads.

    Returns:
        Output and log-sum-exp; 0 and `MASKED_LSE` for a query that sees nothing. All arithmetic is float32.

    Raises:
        ValueError: heads is not a multiple of kv_heads, chunks do not divide their length, or only one of the two
            segments is given.
        TypeError: q is neither float32 nor bfloat16, or k or v is of another dtype than q.
    """
    tokens = q_positions, k_positions, q_segments, k_segments
    out, lse = _call(_FORWARD, (q, k, v), tokens, (q.shape, q.shape[:-1]), scale, (q_chunks, k_chunks), sharers)
    return out, lse


def backward(
    q: Queries,
    d_out: Queries,
    lse: RowValues,
    delta: RowValues,
    k: Keys,
    v: Keys,
    q_positions: Int32[Array, "batch_or_1 queries"],
    k_positions: Int32[Array, "batch_or_1_k keys"],
    q_segments: Int32[Array, "batch queries"] | None,
    k_segments: Int32[Array, "batch keys"] | None,
    *,
    scale: float,
    q_chunks: int = 1,
    k_chunks: int = 1,
    sharers: int = 1,
) -> tuple[Output, KeyGradients, KeyGradients]:
    """These keys' share of dq, and the queries' share of dk and dv (FlashAttention, algorithm 4).

    Args:
        q: queries, float32 or bfloat16.
        d_out: gradient of the whole output, in q's dtype.
        lse: log-sum-exp over *all* keys, also those that are not here.
        delta: rowsum(d_out * out), less the gradient of the log-sum-exp.
        k: keys, and so on as in `forward`.
        v: values.
        q_positions: positions of the queries.
        k_positions: positions of the keys.
        q_segments: ids or None.
        k_segments: ids or None.
        scale: multiplies the scores.
        q_chunks: equal runs of queries.
        k_chunks: equal runs of keys.
        sharers: simulated devices on the same threads.

    Returns:
        dq, dk and dv in float32; the same bits for any timing of the threads.

    Raises:
        ValueError: as in `forward`.
        TypeError: as in `forward`.
    """
    arrays, tokens = (q, d_out, lse, delta, k, v), (q_positions, k_positions, q_segments, k_segments)
    dq, dk, dv = _call(_BACKWARD, arrays, tokens, (q.shape, k.shape, k.shape), scale, (q_chunks, k_chunks), sharers)
    return dq, dk, dv


def after(x: Array, token: Array) -> Array:
    """`x` itself, but not before `token` is computed: a dependency that XLA cannot optimise away."""
    x, token = vary_like((x, token), (x, token))
    call = jax.ffi.ffi_call(
        _AFTER, result_like(x.shape, x, x.dtype), input_output_aliases={0: 0}, vmap_method="sequential"
    )
    return call(x, token)


def _call(
    target: str, arrays: tuple, tokens: tuple, shapes: tuple, scale: float, chunks: tuple[int, int], sharers: int
) -> tuple[Array, ...]:
    """Call the library, whose results, of these shapes, are all float32."""
    q_chunks, k_chunks = chunks
    _check(arrays, tokens, q_chunks, k_chunks)
    arrays, tokens = vary_like((arrays, tokens), (arrays, tokens))
    results = tuple(result_like(shape, arrays[0]) for shape in shapes)
    # Read as: no segments.
    nothing = vary_like(jnp.zeros((0, 0), jnp.int32), arrays)
    ids = (nothing if x is None else x for x in tokens)
    call = jax.ffi.ffi_call(target, results, vmap_method="sequential")
    return tuple(call(*arrays, *ids, scale=np.float32(scale), q_chunks=q_chunks, k_chunks=k_chunks, sharers=sharers))


def _check(arrays: tuple, tokens: tuple, q_chunks: int, k_chunks: int) -> None:
    """ValueError or TypeError where shapes or dtypes do not fit: the library reads memory by them, unchecked."""
    q, k = arrays[0], arrays[-2]
    batch, queries, heads, dim = q.shape
    keys, kv_heads = k.shape[1:3]
    group_size(heads, kv_heads)
    if queries % q_chunks or keys % k_chunks:
        raise ValueError(f"{q_chunks} chunks of {queries} queries or {k_chunks} of {keys} keys would not be equal")
    if (tokens[2] is None) != (tokens[3] is None):
        raise ValueError("queries and keys must both have segments, or neither")
    of_queries, of_keys = (batch, queries, heads, dim), (batch, keys, kv_heads, dim)
    between = () if len(arrays) == 3 else (of_queries, of_queries[:-1], of_queries[:-1])
    shapes = tuple(x.shape for x in arrays)
    if shapes != (of_queries, *between, of_keys, of_keys):
        raise ValueError(f"arrays of shapes {shapes} do not belong together")
    q_rows, k_rows = (x.shape[0] for x in tokens[:2])
    lengths = (q_rows, queries), (k_rows, keys), (batch, queries), (batch, keys)
    if {q_rows, k_rows} - {1, batch} or any(
        x is not None and x.shape != y for x, y in zip(tokens, lengths, strict=True)
    ):
        raise ValueError(f"positions or segments do not belong to {batch} rows of {queries} queries and {keys} keys")
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        raise TypeError(f"the native kernel takes float32 or bfloat16, not {q.dtype}")
    for x in arrays:
        if x.ndim == 4 and x.dtype != q.dtype:
            raise TypeError(f"{x.dtype} does not go with queries of {q.dtype}")


def _first_error(error: Exception) -> str:
    """One line: the compiler's first that contains `error`, or the exception's first."""
    lines = error.stderr.splitlines() if isinstance(error, subprocess.CalledProcessError) else []
    return next((line for line in lines if "error" in line), next(iter([*lines, str(error)])))
