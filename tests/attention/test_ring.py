"""The ring against the oracle on eight CPU devices; balance and isolation."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ringrl.attention import dense_attention, from_ring_order, ring_attention, to_ring_order
from ringrl.attention.balance import choose_layout, ring_work
from ringrl.attention.block_attention import needed_blocks
from ringrl.attention.kernels import make_step
from ringrl.attention.layout import runs_per_shard
from ringrl.attention.shards import Shards, halves
from tests.attention.meshes import SEQUENCE, ring_mesh


@cache
def ring(size, layout, causal, blocks=(8, 8), check_vma=True, kernel="xla", stripe=1, exchange="ring"):
    """Global arrays in, global arrays out: ring order, shard_map, and back."""
    order = {"ring_size": size, "layout": layout, "stripe": stripe}

    def local(q, k, v, segments):
        return ring_attention(
            q,
            k,
            v,
            axis_name="seq",
            segment_ids=segments,
            causal=causal,
            layout=layout,
            stripe=stripe,
            block_q=blocks[0],
            block_k=blocks[1],
            exchange=exchange,
            kernel=kernel,
            return_lse=True,
        )

    sharded = jax.shard_map(
        local,
        mesh=ring_mesh(size),
        in_specs=SEQUENCE,
        out_specs=(SEQUENCE, P(None, None, "seq")),
        check_vma=check_vma,
    )

    def attend(q, k, v, segments):
        ordered = jax.tree.map(lambda x: to_ring_order(x, **order), (q, k, v, segments))
        out, lse = sharded(*ordered)
        return from_ring_order(out, **order), from_ring_order(lse, **order, axis=2)

    return attend


@cache
def dense(causal):
    return lambda q, k, v, segments: dense_attention(q, k, v, segment_ids=segments, causal=causal, return_lse=True)


@pytest.mark.parametrize(
    ("size", "layout", "causal", "heads", "blocks", "kernel"),
    [
        (1, "zigzag", True, (4, 2), (8, 16), "xla"),
        (2, "contiguous", True, (4, 1), (8, 16), "xla"),
        (2, "striped", True, (4, 2), (16, 8), "xla"),
        (2, "zigzag", True, (4, 4), (8, 16), "xla"),
        (4, "contiguous", True, (4, 2), (8, 8), "xla"),
        (4, "contiguous", False, (4, 2), (8, 8), "xla"),
        (4, "striped", True, (4, 4), (None, None), "xla"),
        (4, "zigzag", True, (4, 1), (5, 3), "xla"),
        (8, "contiguous", True, (4, 4), (8, 8), "xla"),
        (8, "striped", True, (4, 1), (8, 8), "xla"),
        (8, "zigzag", True, (4, 2), (4, 4), "xla"),
        (8, "zigzag", False, (4, 2), (4, 4), "xla"),
        (8, "zigzag", True, (4, 2), (None, None), None),
        (4, "striped", True, (4, 1), (None, None), None),
    ],
)
def test_any_segments_agree_with_the_oracle(random_inputs, compare, size, layout, causal, heads, blocks, kernel):
    inputs = random_inputs(1, length := 96, *heads, 8)
    attend = ring(size, layout, causal, blocks, kernel=kernel)

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(boundaries=st.lists(st.integers(0, length), max_size=6), padded=st.integers(0, length))
    def check(boundaries, padded):
        segments = 1 + np.searchsorted(np.sort(boundaries), np.arange(length), side="right")
        segments[length - padded // 2 :] = 0  # often a whole shard
        compare(attend, dense(causal), *inputs, jnp.asarray(segments[None], jnp.int32))

    check()
    compare(attend, dense(causal), *inputs, jnp.ones((1, length), jnp.int32))


@pytest.mark.parametrize("kernel", ["xla", None])
@pytest.mark.parametrize(("stripe", "exchange"), [(4, "ring"), (8, "ring"), (6, "all_gather")])
def test_stripes_of_several_tokens_agree_with_the_oracle(random_inputs, compare, stripe, exchange, kernel):
    segments = jnp.asarray(np.repeat([1, 2, 3, 0], [21, 50, 16, 9])[None], jnp.int32)
    attend = ring(4, "striped", True, kernel=kernel, stripe=stripe, exchange=exchange)
    compare(attend, dense(True), *random_inputs(1, 96, 4, 2, 8), segments)


@pytest.mark.parametrize("kernel", ["xla", None])
@pytest.mark.parametrize(("size", "layout"), [(8, "zigzag"), (4, "striped")])
def test_4096_tokens(random_inputs, compare, size, layout, kernel):
    compare(ring(size, layout, True, (None, None), kernel=kernel), dense(True), *random_inputs(1, 4096, 2, 1, 64))


def test_without_segments_and_without_checked_axes(random_inputs, compare):
    compare(ring(4, "zigzag", True, check_vma=False), dense(True), *random_inputs(2, 64, 4, 2, 8))


def test_bfloat16_travels_as_bfloat16_and_merges_in_float32(random_inputs, compare):
    inputs = random_inputs(1, 64, 4, 2, 16, dtype=jnp.bfloat16)
    compare(ring(8, "zigzag", True), dense(True), *inputs, out_atol=2e-2, gradient_atol=2e-2)


def test_other_axes_shard_batch_and_heads(random_inputs):
    mesh = jax.make_mesh((2, 1, 2, 2), ("data", "fsdp", "tensor", "seq"), axis_types=(AxisType.Auto,) * 4)
    spec = P(("data", "fsdp"), "seq", "tensor", None)
    attend = jax.shard_map(
        partial(ring_attention, axis_name="seq", layout="zigzag", block_q=8, block_k=8),
        mesh=mesh,
        in_specs=(spec, spec, spec),
        out_specs=spec,
    )
    q, k, v, weights = random_inputs(2, 32, 4, 2, 8)

    def through_the_ring(q, k, v):
        return from_ring_order(attend(*(to_ring_order(x, 2, "zigzag") for x in (q, k, v))), 2, "zigzag")

    for a, b in zip(*(gradients(f, q, k, v, weights) for f in (through_the_ring, dense_attention)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def gradients(attend, q, k, v, weights):
    return jax.jit(jax.grad(lambda q, k, v: (attend(q, k, v) * weights).sum(), (0, 1, 2)))(q, k, v)


@pytest.mark.parametrize("layout", ["striped", "zigzag"])
def test_causality_and_isolation_by_gradients_that_are_exactly_zero(random_inputs, layout):
    q, k, v, _ = random_inputs(1, 64, 2, 1, 8)
    segments = jnp.asarray([[1] * 21 + [2] * 43], jnp.int32)
    gradient = jax.jit(jax.grad(lambda k, v, t: ring(2, layout, True)(q, k, v, segments)[0][0, t].sum(), (0, 1)))
    for index in (5, 30, 63):
        seen = (np.arange(64) <= index) & (np.asarray(segments[0]) == segments[0, index])
        dk, dv = gradient(k, v, index)
        assert (dk[0, ~seen] == 0).all() and (dv[0, ~seen] == 0).all()
        assert (dv[0, seen] != 0).all()


def needed(step, q_tokens, k_tokens):
    return needed_blocks(step.q_blocks(q_tokens), step.k_blocks(k_tokens))


def blocks_computed(size, layout, segments=None, shard=256, block=32, stripe=1):
    """Pairs of blocks that each device computes at each hop, [device, hop]; and the local step that decides it."""
    x = jnp.zeros((1, shard, 4, 8))
    step = make_step(x, x, block_q=block, block_k=block, runs=runs_per_shard(size, layout), kernel="xla")
    shards = Shards("seq", size, layout, shard, True, False, step, stripe)
    ids = np.ones((1, size * shard), np.int32) if segments is None else segments
    shard_ids = [jnp.asarray(part) for part in np.split(to_ring_order(ids, size, layout, stripe=stripe), size, axis=1)]

    @jax.jit
    def count(device, source, q_segments, k_segments):
        return needed(step, shards.q_tokens(device, q_segments), shards.k_tokens(source, k_segments)).sum()

    def hop_count(device, hop):
        source = (device - hop) % size
        return count(jnp.int32(device), jnp.int32(source), shard_ids[device], shard_ids[source])

    return np.asarray([[hop_count(device, hop) for hop in range(size)] for device in range(size)]), step


def test_zigzag_counted_by_hand():
    size, blocks = 4, 8  # blocks a shard
    zigzag, _ = blocks_computed(size, "zigzag")
    assert zigzag.sum() == 32 * 33 // 2  # nothing but what causality needs
    assert (zigzag[:, 1:] == blocks**2 // 2).all()  # every later hop costs every device the same
    contiguous = blocks_computed(size, "contiguous")[0].sum(axis=1)
    assert contiguous.max() == 3 * blocks**2 + blocks * (blocks + 1) // 2 and contiguous.min() == 36


SHARD = 32768
SEGMENTS = {
    "one": None,
    "two": np.repeat([1, 2], 2 * SHARD)[None].astype(np.int32),
    "four": np.repeat([1, 2, 3, 4], [30_000, 50_000, 20_000, 31_072])[None].astype(np.int32),
    "padded": np.repeat([1, 2, 0], [45_000, 50_000, 36_072])[None].astype(np.int32),
}


@pytest.mark.parametrize("packed", SEGMENTS)
@pytest.mark.parametrize("layout", ["zigzag", "striped", "contiguous"])
def test_work_at_32k_tokens_a_device(layout, packed):
    segments = SEGMENTS[packed]
    counts, step = blocks_computed(4, layout, segments, SHARD, block=None)
    lengths = [4 * SHARD] if segments is None else np.bincount(segments[0])[1:]
    needed = sum(int(n) * (int(n) + 1) // 2 for n in lengths)  # pairs of tokens
    assert counts.sum() * step.sizes.q.block * step.sizes.k.block <= 1.15 * needed

    critical = counts.max(axis=0).sum() / (counts.sum() / 4)
    # Stripes contain some of every segment, so they are balanced for any packing; zigzag balances one segment.
    if layout == "striped" or (layout == "zigzag" and packed == "one"):
        assert critical <= 1.05
    if layout == "contiguous" and packed == "one":
        assert critical > 1.7


@pytest.mark.parametrize(("layout", "stripe"), [("contiguous", 1), ("striped", 1), ("striped", 64), ("zigzag", 1)])
@pytest.mark.parametrize("packed", ["one", "several"])
def test_the_count_of_a_layout_is_that_of_the_local_step(layout, stripe, packed):
    segments = np.ones((1, 1024), np.int32)
    if packed == "several":
        segments = np.repeat([1, 2, 3, 0], [400, 333, 200, 91])[None].astype(np.int32)
    counts, step = blocks_computed(4, layout, segments, stripe=stripe)
    work = ring_work(segments, 4, layout, stripe, step.blocks)
    lengths = np.bincount(segments[0])[1:]
    visible = (lengths * (lengths + 1) // 2).sum()
    assert work.critical == pytest.approx(counts.max(axis=0).sum() * 32 * 32 * 4 / visible)
    assert work.computed == pytest.approx(counts.sum() * 32 * 32 / visible)


@pytest.mark.parametrize("packed", SEGMENTS)
def test_the_layout_that_is_counted_best_costs_a_tenth_more_than_an_even_share_at_most(packed):
    segments = np.ones((1, 4 * SHARD), np.int32) if SEGMENTS[packed] is None else SEGMENTS[packed]
    best, *others = choose_layout(segments, 4, unit=4, blocks=(512, 256))
    assert best.cost <= 1.1
    # Packed rows of whole contexts as zigzag has them cost the most.
    assert best.layout == ("zigzag" if packed in ("one", "two") else "striped")
    assert best.stripe % 4 == 0 or best.layout == "zigzag"
    assert all(other.cost >= best.cost / 1.01 for other in others)


@pytest.mark.parametrize("layout", ["contiguous", "striped", "zigzag"])
def test_the_two_halves_of_the_own_keys_cost_no_more_than_the_whole(layout):
    whole, step = blocks_computed(4, layout, shard=1024, block=64)
    shards = Shards("seq", 4, layout, 1024, True, False, step)
    for device in range(4):
        tokens = shards.q_tokens(jnp.int32(device), None)
        parts = [needed(step, tokens, half).sum() for half in halves(tokens, step.sizes.k)]
        assert sum(parts) == whole[device, 0] and min(parts) > 0


def test_segments_leave_blocks_out():
    packed = np.repeat(np.arange(1, 9), 128)[None].astype(np.int32)
    assert blocks_computed(4, "zigzag", packed)[0].sum() == 8 * 4 * 5 // 2
    packed[:, 512:] = 0
    assert blocks_computed(4, "contiguous", packed)[0][2:].sum() == 0


def test_blocks_that_nobody_sees_are_not_computed_on_any_hop(random_inputs):
    # 0 * NaN is NaN: a block that is computed and then masked would carry it into the output.
    q, k, v, _ = random_inputs(1, 64, 1, 1, 8)
    k, v = k.at[:, 40:].set(jnp.nan), v.at[:, 40:].set(jnp.nan)
    out, _ = jax.jit(ring(4, "zigzag", True))(q, k, v, jnp.ones((1, 64), jnp.int32))
    assert jnp.isfinite(out[:, :40]).all()


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_a_shard_that_does_not_fit_says_how_long_the_sequence_must_be(layout):
    x = jnp.zeros((1, 12, 1, 4))
    attend = jax.shard_map(
        partial(ring_attention, axis_name="seq", layout=layout),
        mesh=ring_mesh(4),
        in_specs=SEQUENCE,
        out_specs=SEQUENCE,
    )
    if layout == "contiguous":
        jax.eval_shape(attend, x, x, x)
    else:
        with pytest.raises(ValueError, match="multiple of 8 for a ring of 4"):
            jax.eval_shape(attend, x, x, x)
