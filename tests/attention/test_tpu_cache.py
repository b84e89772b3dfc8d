"""The TPU kernel of the KV cache: interpreted on CPU against plain attention, and compiled by the real TPU compiler."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from ringrl.attention import empty_cache, kernels
from ringrl.attention.kernels import tpu_cache, xla_cache
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
from tests.planner.compilers import needs_libtpu, optimised

kernel = partial(jax.jit, static_argnames=("interpret",), compiler_options=QUICK)(
    partial(tpu_cache.attend, scale=SCALE)
)


def check(interpret=True, **options):
    check_attend(partial(kernel, interpret=interpret), **options)


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param({}, id="a step's tokens"),
        pytest.param({"queries": 1, "heads": 6, "kv_heads": 2}, id="grouped heads"),
        pytest.param({"dim": 64, "heads": 8, "kv_heads": 4, "queries": 3}, id="two heads a tile"),
        pytest.param({"dim": 32, "heads": 4, "kv_heads": 4}, id="four heads a tile"),
        pytest.param({"dim": 64, "heads": 3, "kv_heads": 1}, id="one narrow head"),
        pytest.param({"dim": 256, "heads": 2, "kv_heads": 1}, id="a head of two tiles"),
        pytest.param({"slots": 640, "batch": 4}, id="blocks of 128"),
        pytest.param({"batch": 1}, id="one row"),
    ],
)
def test_against_plain_attention(shapes):
    check(**shapes)


@pytest.mark.parametrize("dim, kv_heads", [(128, 2), (64, 4)])
def test_int8_of_float32_queries(dim, kv_heads):
    check(cache=jnp.int8, dim=dim, heads=2 * kv_heads, kv_heads=kv_heads, atol=1e-4)


@pytest.mark.parametrize("cache", [jnp.bfloat16, jnp.int8])
def test_bfloat16(cache):
    check(dtype=jnp.bfloat16, cache=cache, heads=4, atol=3e-2)


def test_a_prompt_is_cut_into_blocks_of_queries(monkeypatch):
    monkeypatch.setattr(tpu_cache, "_ROWS", 64)
    assert tpu_cache._cut(jnp.zeros((1, 37, 4, 64)), 128).blocks == 3
    jax.clear_caches()
    check(queries=37, dim=64, heads=4, kv_heads=2)


def test_emulated_memory_and_transfers(capfd):
    """Pallas's emulator fills memory with NaN until it is written, and prints reads that race with transfers."""
    check(cache=jnp.int8, interpret=pltpu.InterpretParams(detect_races=True), atol=1e-4)
    assert "RACE" not in capfd.readouterr().out.upper()


@pytest.mark.parametrize(
    "queries, at, cache",
    [
        (4, (0, 126, 508), jnp.int8),
        (1, (31, 32, 511), jnp.bfloat16),
        (70, (100, 442, 28), jnp.int8),
        (200, (56, 0, 312), jnp.float32),
    ],
)
def test_tokens_are_written_where_xla_writes_them(queries, at, cache):
    """At windows' ends, over several windows, and bit by bit; no other slot changes."""
    stored, at = inputs(cache=cache, dim=64, slots=512)[1], jnp.asarray(at, jnp.int32)
    k, v = (jax.random.normal(jax.random.key(n), (3, queries, 2, 64)) for n in range(2))
    new = store(k, v, cache)
    got = jax.jit(partial(tpu_cache.write, interpret=True), compiler_options=QUICK)(stored, new, jnp.int32(LAYER), at)
    want = jax.jit(xla_cache.write)(stored, new, jnp.int32(LAYER), at)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_blocks_that_are_fetched():
    """Rows of 300, 5, 0 and 128 slots in blocks of 128; a row that is done fetches what the next begins with."""
    prefetched, stored = (jnp.array([LAYER]), jnp.array([300, 5, 0, 128])), inputs(batch=4, dim=64)[1]
    index = tpu_cache._cache_specs(stored, 128, 4, 1)[0].k.index_map
    grid = [index(*map(jnp.int32, (b, 0, j)), *prefetched) for b in range(4) for j in range(3)]
    visits = [tuple(int(n) for n in visit[:3]) for visit in grid]
    fetched = [visit for n, visit in enumerate(visits) if n == 0 or visit != visits[n - 1]]
    assert fetched == [(LAYER, 0, 0), (LAYER, 0, 1), (LAYER, 0, 2), (LAYER, 1, 0), (LAYER, 2, 0), (LAYER, 3, 0)]


def test_what_is_not_filled_is_not_read():
    """Whole blocks behind a row's length, and other layers, may be anything."""
    q, stored, layer, q_tokens, tokens, filled = inputs(slots=640, batch=4)
    want = kernel(q, stored, layer, q_tokens, tokens, filled, interpret=True)
    block = np.arange(640)[None] // 128 * 128
    unread = (block >= np.asarray(filled)[:, None]) | (np.arange(LAYERS) != LAYER)[:, None, None]
    dirty = stored._replace(
        k=jnp.where(unread[..., None], jnp.nan, stored.k), v=jnp.where(unread[..., None], jnp.nan, stored.v)
    )
    got = kernel(q, dirty, layer, q_tokens, tokens, filled, interpret=True)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "shape, slots, message",
    [
        ((3, 48), 128, "heads of 48"),
        ((3, 64), 128, "do not fill tiles"),
        ((2, 64), 100, "100 slots"),
        ((128, 128), 128, "more"),
    ],
)
def test_what_it_cannot_do(shape, slots, message):
    heads, dim = shape
    stored = empty_cache(1, 1, slots, heads, dim, jnp.float32).stored
    assert message in tpu_cache.missing(jnp.zeros((1, 1, heads, dim)), stored)


def test_it_is_taken_where_it_can_be(monkeypatch):
    q, stored = jnp.zeros((1, 1, 2, 64)), empty_cache(1, 1, 128, 2, 64, jnp.bfloat16).stored
    narrow = jnp.zeros((1, 1, 3, 48)), empty_cache(1, 1, 128, 3, 48, jnp.float32).stored
    assert kernels.cache_kernel(q, stored, "xla") is xla_cache
    with pytest.raises(ValueError, match="kernel 'tpu' cannot be used here: it is for tpu, this is cpu"):
        kernels.cache_kernel(q, stored, "tpu")
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    monkeypatch.setattr(kernels, "_device_kind", lambda: "TPU v5 lite")
    assert kernels.cache_kernel(q, stored, None) is kernels.cache_kernel(q, stored, "tpu") is tpu_cache
    assert kernels.cache_kernel(*narrow, None) is xla_cache
    with pytest.raises(ValueError, match="kernel 'tpu' cannot be used here: heads of 48 numbers"):
        kernels.cache_kernel(*narrow, "tpu")


COMPILED = [
    pytest.param("v5e:2x2", jnp.bfloat16, jnp.bfloat16, 128, 8, 8, 4),
    pytest.param("v6e:2x2", jnp.bfloat16, jnp.int8, 64, 8, 4, 4),
    *(
        pytest.param(chip, dtype, cache, dim, heads, kv_heads, queries, marks=pytest.mark.slow)
        for chip in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
        for dtype, cache, dim, heads, kv_heads, queries in (
            (jnp.bfloat16, jnp.int8, 128, 8, 8, 512),
            (jnp.bfloat16, jnp.bfloat16, 64, 16, 16, 512),
            (jnp.bfloat16, jnp.bfloat16, 128, 32, 32, 4),
            (jnp.float32, jnp.float32, 128, 8, 2, 1),
            (jnp.float32, jnp.int8, 32, 8, 8, 5),
            (jnp.float32, jnp.float32, 256, 2, 1, 8),
        )
    ),
]


@needs_libtpu
@pytest.mark.parametrize("chip, dtype, cache_dtype, dim, heads, kv_heads, queries", COMPILED)
def test_compiles_and_copies_no_layer(chip, dtype, cache_dtype, dim, heads, kv_heads, queries):
    """By the real compiler, on a ring, under check_vma: written in place, and nothing as large as a layer is made."""
    with optimised():
        compiled = lower_step(find_devices(chip), dtype, cache_dtype, dim, heads, kv_heads, queries).compile()
    text = check_in_place(compiled, cache_dtype, dim, kv_heads)
    assert "%cache_attention" in text and "%cache_write" in text
    for shape in (rf"\w+\[(?:4,)?3,65536,{kv_heads * dim}\]", r"f32\[.*65536\]"):
        made = re.findall(rf"= {shape}\S* ([\w\-]+)\(", text)
        assert set(made) <= {"get-tuple-element", "parameter"}, made
