"""The TPU kernel of the KV cache: interpreted on CPU against plain attention, and compiled by the real TPU compiler."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ringrl.attention import MASKED_LSE, append_tokens, cached_attention, empty_cache, kernels
from ringrl.attention.kernels import tpu_cache, xla_cache
from ringrl.attention.kv_cache import KVCache, Stored, store
from ringrl.attention.local_step import TokenIndex
from ringrl.planner.topology import find_devices
from tests.planner.compilers import needs_libtpu

SCALE, LAYERS, LAYER = 0.3, 3, 1
QUICK = {"xla_llvm_disable_expensive_passes": True}
kernel = partial(jax.jit, static_argnames=("interpret",), compiler_options=QUICK)(
    partial(tpu_cache.attend, scale=SCALE)
)
plain = jax.jit(partial(xla_cache.attend, scale=SCALE), compiler_options=QUICK)


def inputs(batch=3, queries=4, heads=2, kv_heads=2, dim=128, slots=512, dtype=jnp.float32, cache=None, seed=0):
    """(q, stored, layer, q_tokens, tokens, filled): rows of different lengths, of several segments with padding."""
    rng = np.random.default_rng(seed)
    q = jnp.asarray(rng.standard_normal((batch, queries, heads, dim)), dtype)
    k, v = (jnp.asarray(rng.standard_normal((LAYERS * batch, slots, kv_heads, dim)), dtype) for _ in range(2))
    shape = (LAYERS, batch, slots, -1), (LAYERS, batch, kv_heads, slots)
    flat = store(k, v, cache or dtype)
    scales = (None if x is None else x.reshape(shape[1]) for x in flat[2:])
    stored = Stored(flat.k.reshape(shape[0]), flat.v.reshape(shape[0]), *scales)
    segments = np.sort(rng.integers(1, 4, (batch, slots)), axis=1)
    segments[:, ::7] = 0
    positions = np.tile(np.arange(slots), (batch, 1))
    filled = np.resize([slots - 130, 5, slots, 0], batch)
    q_segments = rng.integers(1, 4, (batch, queries))
    q_segments[0, 0] = 0
    q_positions = rng.integers(slots // 2, slots, (batch, queries))
    q_positions, q_segments, positions, segments, filled = (
        jnp.asarray(x, jnp.int32) for x in (q_positions, q_segments, positions, segments, filled)
    )
    return q, stored, jnp.int32(LAYER), TokenIndex(q_positions, q_segments), TokenIndex(positions, segments), filled


def reference(q, stored, layer, q_tokens, tokens, filled):
    """Every formula written out, in float64."""
    (batch, _, heads, dim), slots = q.shape, stored.k.shape[2]
    kv_heads = stored.k.shape[3] // dim

    def whole(x, scale):
        x = np.asarray(x[layer].astype(jnp.float32), np.float64).reshape(batch, slots, kv_heads, dim)
        x = x if scale is None else x * np.moveaxis(np.asarray(scale[layer], np.float64), 1, 2)[..., None]
        return np.repeat(x, heads // kv_heads, axis=2)

    k, v = whole(stored.k, stored.k_scale), whole(stored.v, stored.v_scale)
    scores = np.einsum("bqhd,bkhd->bqhk", np.asarray(q.astype(jnp.float32), np.float64), k) * SCALE
    mask = (np.asarray(tokens.segments)[:, None] == np.asarray(q_tokens.segments)[..., None]) & (
        np.asarray(tokens.positions)[:, None] <= np.asarray(q_tokens.positions)[..., None]
    )
    mask &= (np.asarray(q_tokens.segments) != 0)[..., None] & (np.arange(slots) < np.asarray(filled)[:, None, None])
    scores = np.where(mask[:, :, None], scores, -np.inf)
    seen = mask.any(-1)[..., None]
    highest = np.where(seen, scores.max(-1), 0.0)
    weights = np.exp(scores - highest[..., None])
    total = np.where(seen, weights.sum(-1), 1.0)
    out = np.einsum("bqhk,bkhd->bqhd", weights / total[..., None], v)
    return out, np.where(seen, highest + np.log(total), MASKED_LSE)


def check(atol=2e-5, interpret=True, **shapes):
    arguments = inputs(**shapes)
    out, lse = kernel(*arguments, interpret=interpret)
    assert out.dtype == lse.dtype == jnp.float32
    for name, other in (("written out", reference(*arguments)), ("xla", plain(*arguments))):
        np.testing.assert_allclose(out, other[0], atol=atol, rtol=atol, err_msg=name)
        np.testing.assert_allclose(lse, other[1], atol=atol, rtol=atol, err_msg=name)
    blind = np.asarray(reference(*arguments)[1]) == MASKED_LSE
    assert blind.any() and (np.asarray(lse)[blind] == MASKED_LSE).all() and (np.asarray(out)[blind] == 0).all()


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


def step(layers, q, k, v, cache, positions, segments):
    """All layers of an agent step, as the model takes them: each appends and attends."""
    cache, slots = append_tokens(cache, positions, segments, "seq")

    def layer(carry, index):
        x, stored = carry
        here = cache._replace(stored=stored)
        ids = {"positions": positions, "segment_ids": segments, "axis_name": "seq"}
        out, stored = cached_attention(x, k, v, here, index, slots, **ids)
        return (out, stored), None

    (out, stored), _ = jax.lax.scan(layer, (q, cache.stored), jnp.arange(layers, dtype=jnp.int32))
    return out, cache._replace(stored=stored)


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
    devices = find_devices(chip)
    mesh = Mesh(np.array(devices), ("seq",), axis_types=(AxisType.Auto,))
    batch, local_slots, layers = 3, 65536, 4
    slots = local_slots * len(devices)
    tokens, scales = P(None, None, "seq"), P(None, None, None, "seq")
    scale = scales if cache_dtype == jnp.int8 else None
    specs = KVCache(Stored(tokens, tokens, scale, scale), P(None, "seq"), P(None, "seq"), P())
    shapes = jax.eval_shape(
        lambda: empty_cache(layers, batch, slots, kv_heads, dim, cache_dtype, stations=len(devices))
    )

    def argument(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    def new(n):
        return argument(jax.ShapeDtypeStruct((batch, queries, n, dim), dtype), P())

    ids = argument(jax.ShapeDtypeStruct((batch, queries), jnp.int32), P())
    local = jax.shard_map(
        partial(step, layers),
        mesh=mesh,
        in_specs=(P(), P(), P(), specs, P(), P()),
        out_specs=(P(), specs),
        check_vma=True,
    )
    lowered = jax.jit(local, donate_argnums=3).lower(
        new(heads), new(kv_heads), new(kv_heads), jax.tree.map(argument, shapes, specs), ids, ids
    )
    compiled = lowered.compile()
    text = compiled.as_text()
    assert "%cache_attention" in text and "%cache_write" in text
    layer_bytes = batch * local_slots * kv_heads * dim * jnp.dtype(cache_dtype).itemsize
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * layers * layer_bytes
    assert memory.temp_size_in_bytes < layer_bytes
    for shape in (rf"\w+\[(?:{layers},)?{batch},{local_slots},{kv_heads * dim}\]", rf"f32\[.*{local_slots}\]"):
        made = re.findall(rf"= {shape}\S* ([\w\-]+)\(", text)
        assert set(made) <= {"get-tuple-element", "parameter"}, made
