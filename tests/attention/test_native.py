"""The native CPU kernel against its formulas written out."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ringrl.attention.block_attention import MASKED_LSE, NEVER_SEEN, SEES_ALL, SEES_NONE
from ringrl.attention.dense import dense_attention
from ringrl.attention.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler that builds the native kernel")


class Case(NamedTuple):
    q: jax.Array
    k: jax.Array
    v: jax.Array
    d_out: jax.Array
    tokens: tuple  # positions and segments of queries and keys

    def forward(self, **kwargs):
        return native.forward(self.q, self.k, self.v, *self.tokens, scale=scale_of(self.q), **kwargs)

    def backward(self, lse, delta, **kwargs):
        arrays = self.q, self.d_out, lse, delta, self.k, self.v
        return native.backward(*arrays, *self.tokens, scale=scale_of(self.q), **kwargs)


def scale_of(q):
    return q.shape[-1] ** -0.5


def make_case(queries, keys, heads, kv_heads, dim, *, batch=1, dtype=jnp.float32, positions=None, segments=None):
    rng = np.random.default_rng(0)

    def normal(length, heads):
        return jnp.asarray(rng.standard_normal((batch, length, heads, dim)), dtype)

    if positions is None:
        positions = np.arange(queries)[None] + max(keys - queries, 0), np.arange(keys)[None]
    tokens = *positions, *(segments or (None, None))
    tokens = tuple(None if x is None else jnp.asarray(x, jnp.int32) for x in tokens)
    return Case(normal(queries, heads), normal(keys, kv_heads), normal(keys, kv_heads), normal(queries, heads), tokens)


def visible(tokens):
    q_positions, k_positions, q_segments, k_segments = (None if x is None else np.asarray(x) for x in tokens)
    mask = q_positions[:, :, None] >= k_positions[:, None]
    if q_segments is not None:
        mask = mask & (q_segments[:, :, None] == k_segments[:, None]) & (q_segments[:, :, None] != 0)
    return mask[:, None]  # [batch or 1, 1, queries, keys]


def reference(case):
    """Output, log-sum-exp, delta and the three gradients, in float64 and as the formulas have them."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in case[:4])
    group, scale, mask = q.shape[2] // k.shape[2], scale_of(q), visible(case.tokens)
    # What no query sees takes no part: not even a NaN.
    hidden = ~mask.any(axis=(1, 2))[:, :, None, None]
    k, v = (np.repeat(np.where(hidden, 0.0, x), group, axis=2) for x in (k, v))
    scores = np.where(mask, scale * np.einsum("bqhd,bkhd->bhqk", q, k), -np.inf)
    highest = np.maximum(scores.max(-1, keepdims=True), MASKED_LSE)
    total = np.exp(scores - highest).sum(-1, keepdims=True)
    lse = np.where(total > 0, highest + np.log(np.where(total > 0, total, 1.0)), MASKED_LSE)
    p = np.exp(scores - np.where(total > 0, lse, 0.0))
    out = np.einsum("bhqk,bkhd->bqhd", p, v)
    delta = (d_out * out).sum(-1) - 0.25  # as if the gradient of the log-sum-exp were 0.25
    ds = p * (np.einsum("bqhd,bkhd->bhqk", d_out, v) - delta.swapaxes(1, 2)[..., None])
    dq = scale * np.einsum("bhqk,bkhd->bqhd", ds, k)
    dk, dv = scale * np.einsum("bhqk,bqhd->bkhd", ds, q), np.einsum("bhqk,bqhd->bkhd", p, d_out)
    dk, dv = (x.reshape(*case.k.shape[:3], group, -1).sum(3) for x in (dk, dv))
    return out, lse[..., 0].swapaxes(1, 2), delta, dq, dk, dv


def check(case, *, exact=(2e-6, 1e-5), **chunks):
    out, lse, delta, *gradients = reference(case)
    got_out, got_lse = case.forward(**chunks)
    assert got_out.dtype == got_lse.dtype == jnp.float32
    np.testing.assert_allclose(got_out, out, atol=exact[0], rtol=exact[0])
    np.testing.assert_allclose(got_lse, lse, atol=exact[1], rtol=1e-6)
    got = case.backward(jnp.asarray(lse, jnp.float32), jnp.asarray(delta, jnp.float32), **chunks)
    for name, x, y in zip(("dq", "dk", "dv"), got, gradients, strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, atol=exact[1], rtol=exact[1], err_msg=name)


@pytest.mark.parametrize(
    "queries, keys, heads, kv_heads, dim, batch",
    [
        (300, 300, 2, 2, 64, 2),  # several blocks, none of which divides the length
        (200, 200, 6, 2, 32, 1),  # grouped queries; 600 rows a key head
        (130, 130, 5, 1, 80, 1),  # one key head; a head of 5 vectors
        (70, 70, 2, 1, 256, 1),
        (65, 65, 2, 2, 128, 1),
        (50, 50, 3, 3, 24, 1),
        (40, 40, 1, 1, 8, 3),
        (33, 500, 2, 1, 48, 1),  # more keys than queries
        (1, 257, 4, 2, 32, 2),
        (257, 1, 4, 2, 32, 1),
        (1, 1, 1, 1, 64, 1),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_shapes(queries, keys, heads, kv_heads, dim, batch, causal):
    positions = None if causal else (np.full((1, queries), SEES_ALL), np.arange(keys)[None])
    check(make_case(queries, keys, heads, kv_heads, dim, batch=batch, positions=positions))


@pytest.mark.parametrize("causal", [True, False])
def test_segments_begin_and_end_inside_blocks_and_zero_is_padding(causal):
    lengths = ((37, 1), (3, 0), (150, 2), (61, 3), (200, 7), (49, 0)), ((250, 4), (100, 9), (150, 9), (0, 1))
    segments = np.stack([np.concatenate([np.full(n, i) for n, i in row]) for row in lengths])
    positions = (np.arange(500)[None] if causal else np.full((1, 500), SEES_ALL)), np.arange(500)[None]
    check(make_case(500, 500, 2, 1, 32, batch=2, positions=positions, segments=(segments, segments)))


def test_segments_of_another_shard():
    q_segments, k_segments = np.repeat([[1, 2, 0]], 40, axis=1), np.repeat([[2, 3, 0, 1]], 50, axis=1)
    positions = np.full((1, 120), SEES_ALL), np.arange(200)[None]
    check(make_case(120, 200, 2, 2, 32, positions=positions, segments=(q_segments, k_segments)))


@pytest.mark.parametrize("q_shard, k_shard", [(0, 0), (0, 1), (1, 0), (3, 0), (0, 3), (2, 1)])
def test_zigzag_shards(q_shard, k_shard):
    def shard(index):
        return np.concatenate([np.arange(90) + 90 * index, np.arange(90) + 90 * (7 - index)])[None]

    check(make_case(180, 180, 2, 1, 32, positions=(shard(q_shard), shard(k_shard))), q_chunks=2, k_chunks=2)


@pytest.mark.parametrize("q_shard, k_shard", [(0, 0), (0, 1), (1, 0)])
def test_striped_shards(q_shard, k_shard):
    positions = np.arange(200)[None] * 4 + q_shard, np.arange(200)[None] * 4 + k_shard
    check(make_case(200, 200, 2, 2, 32, positions=positions))


def test_positions_of_each_row_and_tokens_that_see_or_are_seen_by_none():
    rng = np.random.default_rng(1)
    q_positions, k_positions = np.sort(rng.integers(0, 400, (2, 150))), np.sort(rng.integers(0, 400, (2, 260)))
    q_positions[0, 100:], q_positions[1, ::7], k_positions[:, 200:] = SEES_NONE, SEES_NONE, NEVER_SEEN
    check(make_case(150, 260, 4, 2, 32, batch=2, positions=(q_positions, k_positions)))


def test_queries_that_see_no_key_here():
    case = make_case(150, 150, 2, 2, 32, positions=(np.arange(150)[None], np.arange(150)[None] + 150))
    out, lse = case.forward()
    assert not out.any() and (lse == MASKED_LSE).all()
    gradients = case.backward(jnp.zeros(lse.shape), jnp.zeros(lse.shape))
    assert not any(x.any() for x in gradients)
    gradients = case.backward(jnp.full(lse.shape, MASKED_LSE), jnp.zeros(lse.shape))
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("dim", [32, 80])
def test_bfloat16_is_widened_and_nothing_is_rounded_after(dim):
    check(make_case(200, 200, 4, 2, dim, batch=2, dtype=jnp.bfloat16))


def test_global_lse_makes_shares_of_the_whole():
    whole = make_case(240, 240, 2, 1, 32)
    out, lse, delta, dq, dk, dv = reference(whole)
    lse, delta = jnp.asarray(lse, jnp.float32), jnp.asarray(delta, jnp.float32)
    parts = []
    for shard in (slice(0, 100), slice(100, 240)):
        tokens = whole.tokens[0], whole.tokens[1][:, shard], None, None
        parts.append(whole._replace(k=whole.k[:, shard], v=whole.v[:, shard], tokens=tokens).backward(lse, delta))
    np.testing.assert_allclose(parts[0][0] + parts[1][0], dq, atol=1e-5)
    for i, whole_gradient in ((1, dk), (2, dv)):
        np.testing.assert_allclose(np.concatenate([p[i] for p in parts], 1), whole_gradient, atol=1e-5)


def test_large_scores_do_not_overflow():
    case = make_case(200, 200, 1, 1, 32)
    case = case._replace(q=case.q * 60.0, k=case.k * 10.0)
    out, lse = case.forward()
    expected_out, expected_lse, *_ = reference(case)
    np.testing.assert_allclose(out, expected_out, atol=2e-3)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5)


@pytest.mark.parametrize("length", [1000])
def test_agrees_with_dense_attention(length):
    case = make_case(length, length, 4, 2, 64)
    (out, lse), pullback = jax.vjp(partial(dense_attention, return_lse=True), case.q, case.k, case.v)
    got_out, got_lse = case.forward()
    np.testing.assert_allclose(got_out, out, atol=2e-6)
    delta = (got_out * case.d_out).sum(-1)
    for x, y in zip(case.backward(got_lse, delta), pullback((case.d_out, jnp.zeros_like(lse))), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("by", ["causality", "segments"])
def test_keys_that_no_query_sees_are_not_touched(by):
    case = make_case(300, 600, 2, 1, 32, positions=(np.arange(300)[None], np.arange(600)[None]))
    if by == "segments":
        positions = np.full((1, 300), SEES_ALL, np.int32), np.arange(600, dtype=np.int32)[None]
        segments = np.ones((1, 300), np.int32), np.repeat([[1, 2]], 300, axis=1)
        case = case._replace(tokens=tuple(jnp.asarray(x, jnp.int32) for x in (*positions, *segments)))
    case = case._replace(k=case.k.at[:, 300:].set(jnp.nan), v=case.v.at[:, 300:].set(jnp.nan))
    check(case)
    _, lse, delta, *_ = reference(case)
    _, dk, dv = case.backward(jnp.asarray(lse, jnp.float32), jnp.asarray(delta, jnp.float32))
    assert not dk[:, 300:].any() and not dv[:, 300:].any()


@pytest.mark.parametrize("heads", [1, 3])
def test_same_bits_every_time(heads):
    """With one head its keys are shared out over threads, whose shares of dq are summed in a fixed order."""
    case = make_case(700, 1500, heads, 1, 64)
    out, lse = case.forward()
    delta = (out * case.d_out).sum(-1)
    first = out, lse, *case.backward(lse, delta)
    for _ in range(3):
        for x, y in zip(first, (*case.forward(), *case.backward(lse, delta)), strict=True):
            assert x.tobytes() == y.tobytes()


def test_jit_scan_and_vmap():
    case = make_case(60, 60, 2, 1, 32, batch=4)
    out, lse = case.forward()
    delta = (out * case.d_out).sum(-1)
    expected = out, lse, *case.backward(lse, delta)

    def both(q, k, v, d_out, lse, delta):
        row = Case(q[None], k[None], v[None], d_out[None], case.tokens)
        return tuple(x[0] for x in (*row.forward(), *row.backward(lse[None], delta[None])))

    rows = case.q, case.k, case.v, case.d_out, lse, delta
    mapped = jax.jit(jax.vmap(both))(*rows)
    _, scanned = jax.lax.scan(lambda carry, row: (carry, both(*row)), None, rows)
    for x, y, z in zip(expected, mapped, scanned, strict=True):
        np.testing.assert_allclose(y, x, atol=1e-6)
        np.testing.assert_allclose(z, x, atol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("segmented", [True, False])
def test_eight_devices_at_once(check_vma, segmented):
    """More devices than threads: nobody may wait for a thread that another device keeps."""
    segments = (np.repeat([[1, 2]], 100, axis=1),) * 2 if segmented else None
    case = make_case(
        200, 200, 2, 1, 32, batch=8, segments=None if segments is None else (np.tile(segments[0], (8, 1)),) * 2
    )
    out, lse = case.forward()
    delta = (out * case.d_out).sum(-1)
    expected = out, lse, *case.backward(lse, delta)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))

    def shard(q, k, v, d_out, lse, delta, *segments):
        local = Case(q, k, v, d_out, (*case.tokens[:2], *(segments or (None, None))))
        return (*local.forward(), *local.backward(lse, delta))

    arrays = case.q, case.k, case.v, case.d_out, lse, delta, *(case.tokens[2:] if segmented else ())
    spread = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"), check_vma=check_vma))
    for _ in range(5):
        for x, y in zip(expected, spread(*arrays), strict=True):
            np.testing.assert_allclose(y, x, atol=1e-6)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"k": (1, 8, 3, 16)}, ValueError, "heads"),
        ({"chunks": 3}, ValueError, "chunks"),
        ({"segments": True}, ValueError, "both"),
        ({"dtype": jnp.float16}, TypeError, "float16"),
    ],
)
def test_what_it_cannot_do_is_said(change, error, message):
    case = make_case(8, 8, 4, 2, 16, dtype=change.get("dtype", jnp.float32))
    if "k" in change:
        case = case._replace(k=jnp.zeros(change["k"]), v=jnp.zeros(change["k"]))
    if "segments" in change:
        case = case._replace(tokens=(*case.tokens[:2], jnp.ones((1, 8), jnp.int32), None))
    with pytest.raises(error, match=message):
        case.forward(q_chunks=change.get("chunks", 1))
