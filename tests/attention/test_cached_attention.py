"""Attention to a KV cache with every kernel of the platform, against formulas in float64 and the dense oracle."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringrl.attention import dense_attention
from ringrl.attention.block_attention import MASKED_LSE
from ringrl.attention.kernels import native_cache, xla_cache
from ringrl.attention.kv_cache import Stored, store
from ringrl.attention.local_step import TokenIndex
from tests.attention.cached_rows import KERNELS, LAYERS, History, Sizes, attention, compiled, new_cache, random_call

MODULES = {"xla": xla_cache, "native": native_cache}
SHAPES = [  # batch, queries, heads, kv_heads, dim, slots
    (2, 3, 4, 2, 16, 100),
    (1, 1, 3, 3, 8, 128),
    (2, 4, 6, 2, 20, 300),
    (1, 2, 2, 1, 80, 1500),
    (1, 70, 4, 2, 32, 700),
]
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}


@pytest.fixture(params=KERNELS)
def kernel(request):
    return request.param


def random_problem(rng, batch, queries, heads, kv_heads, dim, slots, dtype=jnp.float32, stored_dtype=None):
    """Arguments of `attend`, whose tokens are in no order; and the keys and values that are meant."""
    q = jnp.asarray(rng.standard_normal((batch, queries, heads, dim)), dtype)
    k, v = (jnp.asarray(rng.standard_normal((LAYERS * batch, slots, kv_heads, dim)), jnp.float32) for _ in range(2))
    stored = store(k, v, stored_dtype or dtype)
    stored = Stored(*(None if x is None else x.reshape(LAYERS, batch, *x.shape[1:]) for x in stored))

    def tokens(length):
        integers = rng.integers(0, slots, (batch, length)), rng.integers(0, 3, (batch, length))
        return TokenIndex(*(jnp.asarray(x, jnp.int32) for x in integers))

    filled = jnp.asarray(rng.integers(0, slots + 1, batch), jnp.int32)
    return q, stored, jnp.int32(1), tokens(queries), tokens(slots), filled


def meant(stored, kv_heads):
    """Keys and values of layer 1 as the cache has them, [batch, slots, kv_heads, dim] in float64."""
    for x, scale in zip(stored[:2], stored[2:], strict=True):
        x = np.asarray(x[1], np.float64)
        x = x.reshape(*x.shape[:2], kv_heads, -1)
        yield x if scale is None else x * np.asarray(scale[1], np.float64).swapaxes(1, 2)[..., None]


def expected(q, stored, _, q_tokens, tokens, filled):
    k, v = meant(stored, stored.k.shape[3] // q.shape[3])
    results = []
    for b in range(q.shape[0]):
        n = int(filled[b])
        ids = [np.asarray(x[b]) for x in q_tokens] + [np.asarray(x[b, :n]) for x in tokens]
        results.append(attention(q[b], k[b, :n], v[b, :n], *ids))
    return [np.stack(x) for x in zip(*results, strict=True)]


def attend(kernel):
    return jax.jit(MODULES[kernel].attend, static_argnames="scale")


def check(got, wanted, tolerance):
    assert got[0].dtype == got[1].dtype == jnp.float32
    np.testing.assert_allclose(got[0], wanted[0], atol=tolerance)
    np.testing.assert_allclose(got[1], wanted[1], atol=5 * tolerance, rtol=2e-6)


@pytest.mark.parametrize("stored_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_call_equals_the_formulas(kernel, shape, dtype, stored_dtype):
    rng = np.random.default_rng(0)
    problem = random_problem(rng, *shape, dtype, stored_dtype)
    got = attend(kernel)(*problem, scale=shape[4] ** -0.5)
    # The XLA kernel multiplies weights in the queries' dtype; the native one has everything in float32.
    check(got, expected(*problem), TOLERANCE["float32" if kernel == "native" else dtype])


def test_any_positions_segments_and_lengths(kernel):
    shape, call = (3, 4, 4, 2, 8, 96), attend(kernel)

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        seed=st.integers(0, 2**16),
        filled=st.lists(st.integers(0, 96), min_size=3, max_size=3),
        segments=st.integers(1, 40),
        in_order=st.booleans(),
    )
    def each(seed, filled, segments, in_order):
        rng = np.random.default_rng(seed)
        q, stored, layer, q_tokens, tokens, _ = random_problem(rng, *shape)
        ids = rng.integers(0, segments + 1, (3, 96))
        tokens = TokenIndex(tokens.positions, jnp.asarray(np.sort(ids) if in_order else ids, jnp.int32))
        problem = q, stored, layer, q_tokens, tokens, jnp.asarray(filled, jnp.int32)
        check(call(*problem, scale=8**-0.5), expected(*problem), 2e-6)

    each()


def test_what_is_not_filled_is_not_read(kernel):
    q, stored, layer, q_tokens, tokens, _ = random_problem(np.random.default_rng(0), 2, 2, 4, 2, 16, 3000)
    filled = jnp.asarray([1200, 0], jnp.int32)
    wanted = expected(q, stored, layer, q_tokens, tokens, filled)
    # The XLA kernel reads whole blocks: of 1,024 slots, as far as the longest row goes.
    nothing = jnp.where(jnp.arange(3000) >= (1200 if kernel == "native" else 2048), jnp.nan, 0.0)[None, None, :, None]
    stored = Stored(stored.k + nothing, stored.v + nothing, None, None)
    got = attend(kernel)(q, stored, layer, q_tokens, tokens, filled, scale=0.25)
    check(got, wanted, 2e-6)
    assert (got[0][1] == 0).all() and (got[1][1] == MASKED_LSE).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_writing_changes_the_named_slots_of_the_named_layer_alone(kernel, dtype):
    rng = np.random.default_rng(0)
    _, stored, *_ = random_problem(rng, 2, 1, 4, 2, 8, 64, stored_dtype=dtype)
    new = store(*(jnp.asarray(rng.standard_normal((2, 3, 2, 8)), jnp.float32) for _ in range(2)), dtype)
    got = jax.jit(MODULES[kernel].write)(stored, new, jnp.int32(1), jnp.asarray([5, 61], jnp.int32))
    for before, after, values, axis in zip(stored, got, new, (1, 1, 2, 2), strict=True):
        if before is None:
            assert after is None
            continue
        wanted = np.array(before)
        for row, at in enumerate((5, 61)):
            np.moveaxis(wanted[1, row], axis - 1, 0)[at : at + 3] = np.moveaxis(values[row], axis - 1, 0)
        np.testing.assert_array_equal(after, wanted)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_64_bit_numbers_allowed_change_nothing(kernel, dtype):
    """JAX_ENABLE_X64 makes plain indices int64, which do not go together with int32."""
    rng = np.random.default_rng(0)
    q, stored, *rest = random_problem(rng, 2, 1, 4, 2, 8, 64, stored_dtype=dtype)
    new = store(*(jnp.asarray(rng.standard_normal((2, 3, 2, 8)), jnp.float32) for _ in range(2)), dtype)
    at = jnp.asarray([5, 61], jnp.int32)

    def both():
        written = jax.jit(MODULES[kernel].write)(stored, new, rest[0], at)
        return jax.tree.leaves((written, attend(kernel)(q, stored, *rest, scale=0.25)))

    plain = both()
    with jax.enable_x64(True):
        wide = both()
    for x, y in zip(plain, wide, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("stations", [1, 2, 4])
def test_rows_that_grow_call_by_call_equal_dense_attention(kernel, stations):
    """Chunks and single tokens, trials one after the other, on one device and on rings."""
    sizes, length, rng = Sizes(), 44, np.random.default_rng(stations)
    segments = np.stack([np.arange(length) // 16 + 1, np.ones(length)])
    positions = np.stack([np.arange(length) % 16, np.arange(length)])
    whole = random_call(rng, sizes, positions, segments)
    dense = jax.jit(partial(dense_attention, return_lse=False))
    wanted = np.stack([dense(*x, segment_ids=jnp.asarray(whole.segments)) for x in zip(*whole[:3], strict=True)])
    cache, step = new_cache(sizes, length, 20, stations=stations), compiled(kernel, stations)
    begin = 0
    for size in (20, 4, 4, 1, 1, 4, 1, 4, 4, 1):
        part = slice(begin, begin + size)
        call = whole._replace(**{n: getattr(whole, n)[:, :, part] for n in "qkv"})
        call = call._replace(positions=call.positions[:, part], segments=call.segments[:, part])
        out, cache = step(call, cache, None)
        np.testing.assert_allclose(out, wanted[:, :, part], atol=2e-6)
        begin += size
    assert begin == length and (np.asarray(cache.filled).sum(1) == length).all()


@pytest.mark.parametrize(("stations", "check_vma"), [(1, False), (2, True), (4, False)])
def test_rows_of_different_lengths(kernel, stations, check_vma):
    """Any row keeps any number of a call's tokens, in any order of positions, and none waits for another."""
    sizes, step = Sizes(batch=3), compiled(kernel, stations, check_vma=check_vma)
    ids = st.lists(st.integers(0, 2), min_size=4, max_size=4)

    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(calls=st.lists(st.lists(ids, min_size=3, max_size=3), min_size=1, max_size=6), seed=st.integers(0, 99))
    def each(calls, seed):
        rng, history, cache = np.random.default_rng(seed), History(sizes), new_cache(sizes, 24, 4, stations=stations)
        for segments in calls:
            call = random_call(rng, sizes, rng.integers(0, 30, (3, 4)), segments)
            out, cache = step(call, cache, None)
            np.testing.assert_allclose(out, history.outputs(call), atol=2e-6)
        lengths = np.asarray(cache.filled)
        np.testing.assert_array_equal(lengths.sum(1), [len(row) for row in history.rows])
        assert (np.ptp(lengths, axis=1) <= 4).all()  # the stations' shares differ by one call's tokens

    each()


@pytest.mark.parametrize("stations", [1, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_a_prompt_is_shared_by_all_rows(kernel, stations, dtype):
    sizes, one, rng = Sizes(batch=3), Sizes(batch=1), np.random.default_rng(0)
    exact = 2e-6 if dtype == jnp.float32 else 0.03
    fill = compiled(kernel, stations, dtype == jnp.int8)
    step = compiled(kernel, stations, dtype == jnp.int8, with_prompt=True)
    prompt, shared = new_cache(one, 40, 40, stations=stations, dtype=dtype), History(one)
    call = random_call(rng, one, [np.arange(40)], [[1] * 30 + [2] * 10])
    out, prompt = fill(call, prompt, None)
    np.testing.assert_allclose(out, shared.outputs(call), atol=exact)
    cache, history = new_cache(sizes, 16, 2, stations=stations, dtype=dtype), History(sizes)
    for i in range(4):  # rows go on after the prompt; the last row is of no segment of it
        call = random_call(rng, sizes, np.full((3, 2), 40 + 2 * i), [[2, 2], [1, 0], [3, 3]])
        out, cache = step(call, cache, prompt)
        np.testing.assert_allclose(out, history.outputs(call, shared), atol=exact)


@pytest.mark.parametrize("stations", [1, 2])
@pytest.mark.parametrize(("dtype", "bound"), [(jnp.bfloat16, 6e-3), (jnp.int8, 1.2e-2)])
def test_the_error_of_shorter_numbers_is_bounded(kernel, stations, dtype, bound):
    """Root mean square of the output's error over that of the output, at head_dim 32 and 600 normal keys."""
    sizes, rng = Sizes(batch=1, dim=32), np.random.default_rng(0)
    cache, history = new_cache(sizes, 600, 300, stations=stations, dtype=dtype), History(sizes)
    step = compiled(kernel, stations, dtype == jnp.int8)
    for i in range(2):
        call = random_call(rng, sizes, [np.arange(300) + 300 * i], np.ones((1, 300)))
        out, cache = step(call, cache, None)
        wanted = history.outputs(call)
        error = np.sqrt(np.square(np.asarray(out) - wanted).mean() / np.square(wanted).mean())
        assert bound / 10 < error < bound


def test_arrays_that_do_not_belong_together_are_refused():
    q, stored, layer, q_tokens, tokens, filled = random_problem(np.random.default_rng(0), 2, 3, 4, 2, 16, 64)
    call = partial(native_cache.attend, scale=0.25)
    one_row = Stored(stored.k[:, :1], stored.v[:, :1], None, None)
    with pytest.raises(ValueError, match="must be a multiple"):
        call(q[:, :, :3], stored, layer, q_tokens, tokens, filled)
    with pytest.raises(ValueError, match="do not go with queries"):
        call(q, stored, layer, q_tokens, q_tokens, filled)
    with pytest.raises(ValueError, match="do not go with queries"):
        call(q, one_row, layer, q_tokens, tokens, filled)
    with pytest.raises(ValueError, match="do not fit"):
        call(q, stored._replace(v=stored.v[:, :1]), layer, q_tokens, tokens, filled)
    new = Stored(*(jnp.zeros((2, 3, 32)) for _ in range(2)), None, None)
    with pytest.raises(ValueError, match="do not go into a cache"):
        native_cache.write(one_row, new, layer, filled)
    with pytest.raises(ValueError, match="the cache is float32"):
        native_cache.write(stored, Stored(*(x.astype(jnp.bfloat16) for x in new[:2]), None, None), layer, filled)
