"""The GPU kernel of the KV cache: interpreted on CPU against plain attention, compiled by the real CUDA compiler."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringrl.attention import empty_cache, kernels
from ringrl.attention.kernels import gpu_cache, xla_cache
from ringrl.attention.kv_cache import store
from ringrl.planner.topology import find_devices
from tests.attention.cache_problems import (
    LAYER,
    LAYERS,
    QUICK,
    SCALE,
    check_attend,
    check_in_place,
    inputs,
    lower_step,
)
from tests.attention.gpu_compiler import compile_kernels
from tests.planner.compilers import needs_cuda_compiler

kernel = jax.jit(partial(gpu_cache.attend, scale=SCALE, interpret=True), compiler_options=QUICK)
check = partial(check_attend, kernel)


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param({}, id="a step's tokens"),
        pytest.param({"queries": 1, "heads": 6, "kv_heads": 2}, id="grouped heads"),
        pytest.param({"dim": 8, "heads": 4, "kv_heads": 4}, id="heads narrower than a product"),
        pytest.param({"dim": 48, "heads": 4, "kv_heads": 2}, id="heads that are no power of two"),
        pytest.param({"dim": 256, "heads": 2, "kv_heads": 1}, id="wide heads"),
        pytest.param({"queries": 37, "dim": 64, "heads": 4, "kv_heads": 1}, id="a prompt of three tiles"),
        pytest.param({"slots": 192, "batch": 4}, id="few blocks"),
        pytest.param({"batch": 1}, id="one row"),
    ],
)
def test_against_plain_attention(shapes):
    check(**shapes)


def test_int8_of_float32_queries():
    check(cache=jnp.int8, dim=48, heads=4, atol=1e-4)


@pytest.mark.parametrize("cache", [jnp.bfloat16, jnp.int8])
def test_bfloat16(cache):
    check(dtype=jnp.bfloat16, cache=cache, heads=4, atol=3e-2)


@pytest.mark.parametrize("programs", [1, 6, 40])
def test_any_number_of_stretches_gives_the_same(programs, monkeypatch):
    """One program a row and head; two of them, of which a short row fills one; more than blocks."""
    monkeypatch.setattr(gpu_cache, "_PROGRAMS", programs)
    jax.clear_caches()
    check()


def test_what_is_not_filled_is_not_read():
    """Whole blocks behind a row's length, and other layers, may be anything."""
    q, stored, layer, q_tokens, tokens, filled = inputs(slots=640, batch=4)
    want = kernel(q, stored, layer, q_tokens, tokens, filled)
    size = gpu_cache._tile(128, 4)[1]
    block = np.arange(640)[None] // size * size
    unread = (block >= np.asarray(filled)[:, None]) | (np.arange(LAYERS) != LAYER)[:, None, None]
    dirty = stored._replace(
        k=jnp.where(unread[..., None], jnp.nan, stored.k), v=jnp.where(unread[..., None], jnp.nan, stored.v)
    )
    for a, b in zip(kernel(q, dirty, layer, q_tokens, tokens, filled), want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "queries, at, kv_heads, cache",
    [
        (4, (0, 126, 508), 2, jnp.int8),
        (1, (31, 32, 511), 3, jnp.bfloat16),
        (70, (100, 442, 28), 3, jnp.int8),
        (200, (56, 0, 312), 2, jnp.float32),
    ],
)
def test_tokens_are_written_where_xla_writes_them(queries, at, kv_heads, cache):
    """Bit by bit; no other slot changes."""
    stored = inputs(cache=cache, dim=64, heads=kv_heads, kv_heads=kv_heads)[1]
    k, v = (jax.random.normal(jax.random.key(n), (3, queries, kv_heads, 64)) for n in range(2))
    arguments = stored, store(k, v, cache), jnp.int32(LAYER), jnp.asarray(at, jnp.int32)
    got = jax.jit(partial(gpu_cache.write, interpret=True), compiler_options=QUICK)(*arguments)
    jax.tree.map(np.testing.assert_array_equal, got, jax.jit(xla_cache.write)(*arguments))


def test_it_is_taken_where_it_can_be(monkeypatch):
    q, stored = jnp.zeros((1, 1, 2, 64)), empty_cache(1, 1, 128, 2, 64, jnp.bfloat16).stored
    uneven = empty_cache(1, 1, 100, 2, 64, jnp.float32).stored
    with pytest.raises(ValueError, match="kernel 'gpu' cannot be used here: it is for gpu, this is cpu"):
        kernels.cache_kernel(q, stored, "gpu")
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(kernels, "_device_kind", lambda: "NVIDIA H100")
    assert kernels.cache_kernel(q, stored, None) is kernels.cache_kernel(q, stored, "gpu") is gpu_cache
    assert kernels.cache_kernel(q, uneven, None) is xla_cache
    with pytest.raises(ValueError, match="kernel 'gpu' cannot be used here: 100 slots are no multiple of 64"):
        kernels.cache_kernel(q, uneven, "gpu")
    assert "not float16" in gpu_cache.missing(q.astype(jnp.float16), stored)


def test_a_cache_that_pallas_cannot_count_is_refused():
    """Of int8, beyond 2^31 numbers: offsets are of 32 bits up to 2^32 bytes, and of 64 bits from there on."""
    q = jnp.zeros((1, 1, 16, 64), jnp.bfloat16)
    for slots, refused in ((2**17, False), (2**17 + 64, True), (2**18, True), (2**18 + 64, False)):
        stored = jax.eval_shape(partial(empty_cache, 16, 1, slots, 16, 64, jnp.int8)).stored
        assert bool(gpu_cache.missing(q, stored)) == refused, slots


COMPILED = [
    pytest.param("h100", jnp.bfloat16, jnp.bfloat16, 128, 8, 8, 4),
    *(
        pytest.param(chip, *rest, marks=pytest.mark.slow)
        for chip in ("a100", "h100", "b200")
        for rest in (
            (jnp.bfloat16, jnp.int8, 64, 8, 4, 4),
            (jnp.bfloat16, jnp.int8, 128, 8, 8, 512),
            (jnp.bfloat16, jnp.bfloat16, 96, 32, 4, 4),
            (jnp.bfloat16, jnp.bfloat16, 256, 4, 2, 512),
            (jnp.float32, jnp.float32, 128, 8, 2, 1),
            (jnp.float32, jnp.int8, 32, 8, 8, 5),
            (jnp.float32, jnp.float32, 256, 2, 1, 512),
        )
    ),
]


@needs_cuda_compiler
@pytest.mark.parametrize("chip, dtype, cache_dtype, dim, heads, kv_heads, queries", COMPILED)
def test_compiles_without_spills_and_copies_no_layer(tmp_path, chip, dtype, cache_dtype, dim, heads, kv_heads, queries):
    """By the real compiler, on a ring, under check_vma: the kernels, written in place, no sum left to chance."""
    lowered = lower_step(find_devices(f"{chip}:4"), dtype, cache_dtype, dim, heads, kv_heads, queries)
    found = compile_kernels(lowered, tmp_path)
    assert set(found.launches) == {"cache_attention", "cache_write"}
    assert "tf32" not in found.ptx and not re.search(r"^\s*(@%\w+ )?(atom|red)\.", found.ptx, re.MULTILINE)
    text = check_in_place(found.compiled, cache_dtype, dim, kv_heads)
    made = re.findall(rf"= \w+\[(?:4,)?3,65536,(?:{kv_heads * dim}|{kv_heads},{dim})\]\S* ([\w\-]+)\(", text)
    assert set(made) <= {"get-tuple-element", "parameter", "bitcast"}, made
