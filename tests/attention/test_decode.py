"""A few new queries against a cache: the last rows of the full forward, wherever the entries lie."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ringrl.attention import MASKED_LSE, decode_attention, dense_attention, ring_positions, to_ring_order
from ringrl.attention import decode as decode_module

LENGTH = 96


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks of cache and of queries, the last of each not full, at lengths that are quick to test."""
    monkeypatch.setattr(decode_module, "CACHE_BLOCK", 20)
    monkeypatch.setattr(decode_module, "QUERY_BLOCK", 16)


def decode(q, k, v, q_segments, k_segments, q_positions, k_positions, axis_name=None):
    return decode_attention(
        q,
        k,
        v,
        q_segment_ids=q_segments,
        cache_segment_ids=k_segments,
        q_positions=q_positions,
        cache_positions=k_positions,
        axis_name=axis_name,
        return_lse=True,
    )


def rows(segments):
    """int32 segments [2, LENGTH] and the position of every token in its row."""
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (2, LENGTH))
    return jnp.asarray(segments, jnp.int32), jnp.asarray(positions)


@pytest.mark.parametrize("new", [1, 37])
def test_equals_the_last_rows_of_the_full_forward(random_inputs, new):
    q, k, v, _ = random_inputs(2, LENGTH, 4, 2, 8)
    compiled = jax.jit(decode)
    full = jax.jit(partial(dense_attention, return_lse=True))

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(boundary=st.integers(0, LENGTH), padded=st.integers(0, LENGTH // 2))
    def check(boundary, padded):
        ids, positions = rows([np.arange(LENGTH) // 48 + 1, np.where(np.arange(LENGTH) < boundary, 1, 2)])
        ids = ids.at[1, :padded].set(0)
        out, lse = full(q, k, v, segment_ids=ids)
        got, got_lse = compiled(q[:, -new:], k, v, ids[:, -new:], ids, positions[:, -new:], positions)
        np.testing.assert_allclose(got, out[:, -new:], atol=2e-5)
        np.testing.assert_allclose(got_lse, lse[:, :, -new:], rtol=2e-5, atol=2e-5)

    check()


@pytest.mark.parametrize(("layout", "check_vma"), [("zigzag", True), ("striped", False)])
def test_a_cache_spread_over_the_ring_gives_every_device_the_whole_answer(random_inputs, layout, check_vma):
    q, k, v, _ = random_inputs(2, LENGTH, 4, 1, 8)
    ids, positions = rows([[1] * 60 + [2] * 36, [1] * 96])
    out, lse = jax.jit(partial(dense_attention, return_lse=True))(q, k, v, segment_ids=ids)
    mesh = jax.make_mesh((8,), ("seq",), axis_types=(AxisType.Auto,))
    spread = P(None, "seq")
    sharded = jax.shard_map(
        partial(decode, axis_name="seq"),
        mesh=mesh,
        in_specs=(P(), spread, spread, P(), spread, P(), spread),
        out_specs=P(),
        check_vma=check_vma,
    )
    cache = [to_ring_order(x, 8, layout) for x in (k, v, ids, positions)]
    np.testing.assert_array_equal(cache[3][0, :12], ring_positions(0, 12, 8, layout))
    arguments = (q[:, -3:], *cache[:2], ids[:, -3:], cache[2], positions[:, -3:], cache[3])
    got, got_lse = jax.jit(sharded)(*arguments)
    np.testing.assert_allclose(got, out[:, -3:], atol=2e-5)
    np.testing.assert_allclose(got_lse, lse[:, :, -3:], rtol=2e-5, atol=2e-5)
    # One maximum and one sum; the cache itself never travels.
    program = jax.jit(sharded).lower(*arguments).as_text()
    assert program.count("stablehlo.all_reduce") == 2
    assert "collective_permute" not in program and "all_gather" not in program


def test_a_device_reads_and_sends_no_more_than_its_part(outputs):
    mesh = jax.make_mesh((8,), ("seq",), axis_types=(AxisType.Auto,))
    spread = P(None, "seq")
    sharded = jax.shard_map(
        partial(decode, axis_name="seq"),
        mesh=mesh,
        in_specs=(P(), spread, spread, P(), spread, P(), spread),
        out_specs=P(),
        check_vma=False,
    )

    def arguments(entries):
        q = jax.ShapeDtypeStruct((2, 3, 4, 8), jnp.float32)
        cache = jax.ShapeDtypeStruct((2, entries, 2, 8), jnp.float32, sharding=NamedSharding(mesh, spread))
        ids, new = (jax.ShapeDtypeStruct((2, n), jnp.int32) for n in (entries, 3))
        return q, cache, cache, new, ids, new, ids

    def memory(entries):
        return jax.jit(sharded).lower(*arguments(entries)).compile().memory_analysis()

    # Blocks of the cache on a device; it reads those with an entry that a query sees.
    blocks = [aval.shape for name, aval in outputs(sharded, *arguments(1600)) if name == "dynamic_slice"]
    assert (2, 20, 2, 8) in blocks and all(np.prod(shape) <= 2 * 20 * 2 * 8 for shape in blocks)
    sent = [aval.size for name, aval in outputs(sharded, *arguments(1600)) if name in ("psum", "pmax")]
    assert sorted(sent) == [2 * 3 * 4, 2 * 3 * 4 * (8 + 1)]  # of each query and head: log-sum-exp; output and weight
    short, long = memory(1600), memory(16000)
    per_entry = 2 * (2 * 2 * 8 * 4) // 8  # keys and values of one entry of both rows: an eighth is this device's
    ids = 2 * 2 * 4 // 8  # segment ids and positions
    assert long.argument_size_in_bytes - short.argument_size_in_bytes == (16000 - 1600) * (per_entry + ids)
    # The cache is neither copied nor padded: what grows are its blocked ids.
    assert long.temp_size_in_bytes - short.temp_size_in_bytes < (16000 - 1600) * per_entry


def test_entries_may_lie_in_any_order(random_inputs):
    q, k, v, _ = random_inputs(2, LENGTH, 2, 2, 8)
    ids, positions = rows(np.ones((2, LENGTH)))
    order = np.random.default_rng(0).permutation(LENGTH)
    compiled = jax.jit(decode)
    wanted = compiled(q[:, :2], k, v, ids[:, :2], ids, positions[:, 40:42], positions)
    got = compiled(q[:, :2], k[:, order], v[:, order], ids[:, :2], ids, positions[:, 40:42], positions[:, order])
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def test_rows_filled_to_different_lengths_read_only_what_is_there(random_inputs):
    # Blocks of 20 without an entry are not read: a NaN in one would show.
    q, k, v, _ = random_inputs(2, LENGTH, 2, 1, 8)
    ids, positions = rows([[1] * 30 + [0] * 66, [1] * 11 + [0] * 85])
    new, at = q[:, :1], jnp.asarray([[29], [10]], jnp.int32)
    one = jnp.ones((2, 1), jnp.int32)
    out, _ = jax.jit(decode)(new, k.at[:, 40:].set(jnp.nan), v.at[:, 40:].set(jnp.nan), one, ids, at, positions)
    for row, length in enumerate((30, 11)):
        weights = jax.nn.softmax(jnp.einsum("hd,kd->hk", new[row, 0], k[row, :length, 0]) / np.float32(np.sqrt(8)))
        np.testing.assert_allclose(out[row, 0], weights @ v[row, :length, 0], atol=2e-5)


def test_an_empty_cache_and_padded_queries_give_zero(random_inputs):
    q, k, v, _ = random_inputs(2, LENGTH, 2, 1, 8)
    ids, positions = rows([[0] * LENGTH, [1] * LENGTH])
    segments = jnp.asarray([[1, 1], [0, 1]], jnp.int32)
    out, lse = jax.jit(decode)(q[:, :2], k, v, segments, ids, positions[:, -2:], positions)
    assert (out[0] == 0).all() and (lse[0] == MASKED_LSE).all()
    assert (out[1, 0] == 0).all() and (out[1, 1] != 0).all()
