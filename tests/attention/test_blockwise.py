"""The blockwise path against the oracle, what it must not compute, and what it must not keep."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringrl.attention import MASKED_LSE, blockwise_attention, dense_attention
from ringrl.attention.tiling import default_blocks, fit_block

PROPERTY = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@cache
def blockwise(causal, block_q=None, block_k=None, scale=None, kernel="xla"):
    settings = {"causal": causal, "scale": scale, "block_q": block_q, "block_k": block_k, "kernel": kernel}
    return lambda q, k, v, segments: blockwise_attention(q, k, v, segment_ids=segments, return_lse=True, **settings)


@cache
def dense(causal, scale=None):
    return lambda q, k, v, segments: dense_attention(
        q, k, v, segment_ids=segments, causal=causal, scale=scale, return_lse=True
    )


def test_the_oracle_agrees_with_jax(random_inputs):
    q, k, v, _ = random_inputs(2, 24, 4, 2, 8)
    segments = jnp.asarray(np.repeat([[1, 2, 3]], 8, axis=1).repeat(2, axis=0), jnp.int32)
    mask = (segments[:, :, None] == segments[:, None, :])[:, None]
    wanted = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)
    np.testing.assert_allclose(jax.jit(dense_attention)(q, k, v, segment_ids=segments), wanted, atol=2e-6)


def test_softmax_of_three_tokens_by_hand():
    # Scores are 0, so that token t averages the values of tokens 0..t; the log-sum-exp is log(t + 1).
    zeros = jnp.zeros((1, 3, 1, 2))
    v = jnp.asarray([[[[3.0, 0.0]], [[5.0, 1.0]], [[1.0, 2.0]]]])
    for attend in (dense_attention, blockwise_attention):
        out, lse = attend(zeros, zeros, v, return_lse=True)
        np.testing.assert_allclose(out[0, :, 0], [[3, 0], [4, 0.5], [3, 1]], rtol=1e-6)
        np.testing.assert_allclose(lse[0, 0], np.log([1, 2, 3]), rtol=1e-6)


@settings(max_examples=6, **PROPERTY)
@given(
    length=st.integers(1, 80),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)]),
    causal=st.booleans(),
    blocks=st.sampled_from([(16, 16), (8, 24), (32, 8), (5, 7), (None, None)]),
    scale=st.sampled_from([None, 0.5]),
)
def test_any_shape_agrees_with_the_oracle(random_inputs, compare, length, heads, causal, blocks, scale):
    inputs = random_inputs(2, length, *heads, 8, seed=length)
    compare(blockwise(causal, *blocks, scale), dense(causal, scale), *inputs)


@pytest.mark.parametrize("causal", [True, False])
def test_any_segments_agree_with_the_oracle(random_inputs, compare, causal):
    inputs = random_inputs(2, 72, 4, 2, 8)

    @settings(max_examples=30, **PROPERTY)
    @given(rows=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=2, max_size=2), data=st.data())
    def check(rows, data):
        segments = np.zeros((2, 72), np.int32)
        for row, lengths in zip(segments, rows, strict=True):
            start = data.draw(st.integers(0, 30))
            for number, length in enumerate(lengths, 1):
                row[start : start + length] = number
                start += length
        compare(blockwise(causal, 16, 8), dense(causal), *inputs, jnp.asarray(segments))

    check()


def test_segments_need_not_be_sorted(random_inputs, compare):
    segments = jnp.asarray(np.random.default_rng(0).integers(-1, 3, (2, 72)), jnp.int32)
    compare(blockwise(True, 16, 8), dense(True), *random_inputs(2, 72, 4, 2, 8), segments)


@pytest.mark.parametrize("kernel", ["xla", None])
@pytest.mark.parametrize(("length", "heads", "head_dim"), [(4096, (1, 1), 64), (1000, (4, 2), 32), (1500, (2, 1), 256)])
def test_long_inputs_and_every_head_dim(random_inputs, compare, length, heads, head_dim, kernel):
    segments = jnp.asarray(np.repeat([1, 2, 0], [length // 3, length // 2, length - length // 3 - length // 2])[None])
    inputs = random_inputs(1, length, *heads, head_dim)
    compare(blockwise(True, kernel=kernel), dense(True), *inputs)
    compare(blockwise(True, kernel=kernel), dense(True), *inputs, segments.astype(jnp.int32))


def test_default_blocks_at_a_trajectory_s_length(random_inputs, compare):
    compare(blockwise(True), dense(True), *random_inputs(2, 1000, 4, 4, 16))


def test_bfloat16(random_inputs, compare):
    inputs = random_inputs(2, 100, 4, 2, 16, dtype=jnp.bfloat16)
    assert blockwise_attention(*inputs[:3]).dtype == jnp.bfloat16
    # The oracle computes in float32 on the same bfloat16 inputs; relative to gradients of order 1.
    compare(blockwise(True, 32, 32), dense(True), *inputs, out_atol=2e-2, gradient_atol=2e-2)


@pytest.mark.parametrize("kernel", ["xla", None])
def test_padding_gives_zero_and_finite_gradients(random_inputs, kernel):
    q, k, v, weights = random_inputs(1, 20, 2, 1, 8)
    segments = jnp.asarray([[0] * 5 + [1] * 7 + [0] * 8], jnp.int32)
    padding = segments[0] == 0
    for attend in (dense_attention, partial(blockwise_attention, block_q=4, block_k=4, kernel=kernel)):

        def loss(q, k, v, attend=attend):
            out, lse = attend(q, k, v, segment_ids=segments, return_lse=True)
            return (out * weights).sum() + lse.sum(), (out, lse)

        gradients, (out, lse) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        assert (out[0, padding] == 0).all()
        assert (lse[:, :, padding] == MASKED_LSE).all()
        for gradient in gradients:
            assert jnp.isfinite(gradient).all()
            assert (gradient[0, padding] == 0).all()


@pytest.mark.parametrize("kernel", ["xla", None])
def test_causality_and_isolation_by_gradients_that_are_exactly_zero(random_inputs, kernel):
    q, k, v, _ = random_inputs(1, 48, 2, 2, 8)
    segments = jnp.asarray([[1] * 13 + [2] * 35], jnp.int32)

    def token(k, v, index):
        attend = partial(blockwise_attention, block_q=8, block_k=16, kernel=kernel)
        return attend(q, k, v, segment_ids=segments)[0, index].sum()

    gradient = jax.jit(jax.grad(token, (0, 1)))
    for index in (5, 20, 47):
        seen = (np.arange(48) <= index) & (np.asarray(segments[0]) == segments[0, index])
        dk, dv = gradient(k, v, index)
        assert (dk[0, ~seen] == 0).all() and (dv[0, ~seen] == 0).all()
        assert (dv[0, seen] != 0).all()


@pytest.mark.parametrize("reason", ["causality", "segments"])
def test_blocks_that_nobody_sees_are_not_computed(random_inputs, reason):
    # 0 * NaN is NaN: a block that is computed and then masked would carry it into the output and the gradients.
    q, k, v, weights = random_inputs(1, 64, 2, 2, 8)
    segments = jnp.asarray([[1] * 32 + [2] * 32], jnp.int32) if reason == "segments" else None
    k, v = k.at[:, 32:].set(jnp.nan), v.at[:, 32:].set(jnp.nan)

    attend = blockwise(reason == "causality", 16, 16)

    def loss(q, k, v):
        return (attend(q, k, v, segments)[0] * weights)[:, :32].sum()

    value, (dq, dk, dv) = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)
    assert jnp.isfinite(value) and jnp.isfinite(dq[:, :32]).all()
    if reason == "segments":  # under causality alone, the later queries do look back, and their zeros meet the NaNs
        assert jnp.isfinite(dk[:, :32]).all() and jnp.isfinite(dv[:, :32]).all()


def test_memory_grows_with_the_length_not_with_its_square():
    def temporaries(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        loss = jax.grad(
            lambda q, k, v: blockwise_attention(q, k, v, block_q=64, block_k=64, kernel="xla").sum(), (0, 1, 2)
        )
        return jax.jit(loss).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(2048), temporaries(8192)
    assert long < 4.5 * short
    assert long < 8192**2  # a quarter of one head's scores


@pytest.mark.parametrize("kernel", ["xla", None])
def test_eager_calls_and_vmap_agree_with_jit(random_inputs, kernel):
    q, k, v, _ = random_inputs(3, 20, 2, 1, 8)
    segments = jnp.asarray([[1] * 20, [1] * 4 + [2] * 16, [0] * 20], jnp.int32)
    attend = partial(blockwise_attention, block_q=8, block_k=8, kernel=kernel)
    wanted = jax.jit(attend)(q, k, v, segment_ids=segments)
    np.testing.assert_allclose(attend(q, k, v, segment_ids=segments), wanted, atol=1e-6)
    row = jax.vmap(lambda q, k, v, s: attend(q[None], k[None], v[None], segment_ids=s[None])[0])
    np.testing.assert_allclose(row(q, k, v, segments), wanted, atol=1e-6)


def test_block_sizes():
    assert default_blocks(1, 4) == (512, 256)
    assert default_blocks(8, 4) == (128, 128)
    assert default_blocks(1, 1) == (1024, 512)
    assert default_blocks(64, 64) == (64, 64)
    assert fit_block(1000, 256) == 256  # 4 blocks of 250, aligned
    assert fit_block(1025, 1024) == 520  # not 1024 + a block that is nearly empty
    assert fit_block(3, 512) == 3
    for length in range(1, 200):
        for longest in (1, 7, 16, 64):
            block = fit_block(length, longest)
            assert block <= longest and -(-length // block) == -(-length // longest)


def test_bad_arguments_are_named(random_inputs):
    q, k, v, _ = random_inputs(1, 8, 3, 2, 4)
    for attend in (dense_attention, blockwise_attention):
        with pytest.raises(ValueError, match="3 query heads cannot share 2 key heads"):
            attend(q, k, v)
    with pytest.raises(ValueError, match="q, k and v must have one dtype, not float32, bfloat16 and float32"):
        blockwise_attention(q, k.astype(jnp.bfloat16), v)
    with pytest.raises(ValueError, match="block of 0 tokens"):
        blockwise_attention(q, k[:, :, :1], v[:, :, :1], block_q=0)
