"""Other ways over the same mesh: groups that exchange heads inside a ring, and keys gathered; and what each moves."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ringrl.attention import dense_attention, from_ring_order, ring_attention, to_ring_order

LENGTH = 96


@cache
def spread(ring_size, heads_size, layout, causal=True, exchange="ring", check_vma=True, kernel="xla"):
    """Global arrays in, global arrays out, over a mesh (ring, heads); without a heads axis where heads_size is None."""
    shape = (ring_size, heads_size or 1)
    mesh = jax.make_mesh(
        shape, ("ring", "heads"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: np.prod(shape)]
    )
    axes = ("ring", "heads") if heads_size else "ring"

    def local(q, k, v, segments):
        return ring_attention(
            q,
            k,
            v,
            axis_name=axes,
            segment_ids=segments,
            causal=causal,
            layout=layout,
            block_q=8,
            block_k=8,
            exchange=exchange,
            kernel=kernel,
            return_lse=True,
        )

    out_specs = (P(None, axes), P(None, None, axes))
    sharded = jax.shard_map(local, mesh=mesh, in_specs=P(None, axes), out_specs=out_specs, check_vma=check_vma)

    def attend(q, k, v, segments):
        out, lse = sharded(*jax.tree.map(lambda x: to_ring_order(x, ring_size, layout), (q, k, v, segments)))
        return from_ring_order(out, ring_size, layout), from_ring_order(lse, ring_size, layout, axis=2)

    return attend


@cache
def dense(causal):
    return lambda q, k, v, segments: dense_attention(q, k, v, segment_ids=segments, causal=causal, return_lse=True)


@pytest.mark.parametrize(
    ("ring_size", "heads_size", "layout", "causal", "exchange", "heads"),
    [
        (2, 4, "zigzag", True, "ring", (4, 4)),
        (4, 2, "zigzag", True, "ring", (4, 2)),
        (4, 2, "striped", False, "ring", (4, 1)),  # one key head, two devices: each gets it
        (1, 8, "zigzag", True, "ring", (8, 2)),  # heads only (Ulysses)
        (2, 3, "contiguous", True, "ring", (6, 2)),  # two key heads do not divide over three: each is sent three times
        (4, None, "zigzag", True, "all_gather", (4, 2)),
        (8, None, "striped", True, "all_gather", (4, 1)),
        (4, None, "contiguous", False, "all_gather", (4, 4)),
        (2, 2, "zigzag", True, "all_gather", (4, 2)),
    ],
)
def test_any_segments_agree_with_the_oracle(
    random_inputs, compare, ring_size, heads_size, layout, causal, exchange, heads
):
    inputs = random_inputs(1, LENGTH, *heads, 8)
    attend = spread(ring_size, heads_size, layout, causal, exchange)

    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(boundaries=st.lists(st.integers(0, LENGTH), max_size=6), padded=st.integers(0, LENGTH))
    def check(boundaries, padded):
        segments = 1 + np.searchsorted(np.sort(boundaries), np.arange(LENGTH), side="right")
        segments[LENGTH - padded // 2 :] = 0
        compare(attend, dense(causal), *inputs, jnp.asarray(segments[None], jnp.int32))

    check()


@pytest.mark.parametrize("kernel", ["xla", None])
@pytest.mark.parametrize("exchange", ["ring", "all_gather"])
def test_without_segments_and_without_checked_axes(random_inputs, compare, exchange, kernel):
    inputs = random_inputs(2, 64, 4, 2, 8)
    compare(spread(2, 2, "zigzag", True, exchange, check_vma=False, kernel=kernel), dense(True), *inputs)


def test_bfloat16(random_inputs, compare):
    inputs = random_inputs(1, 64, 4, 2, 16, dtype=jnp.bfloat16)
    for heads_size, exchange in ((2, "ring"), (None, "all_gather")):
        attend = spread(4, heads_size, "zigzag", True, exchange)
        compare(attend, dense(True), *inputs, out_atol=2e-2, gradient_atol=2e-2)


@pytest.mark.parametrize(("heads_size", "exchange"), [(None, "ring"), (None, "all_gather"), (2, "ring")])
def test_keys_are_never_sent_repeated(random_inputs, outputs, heads_size, exchange):
    q, k, v, weights = random_inputs(1, 64, 8, 2, 4)
    attend = spread(4, heads_size, "contiguous", True, exchange)
    gradient = jax.grad(lambda q, k, v: (attend(q, k, v, None)[0] * weights).sum(), (0, 1, 2))
    computed = list(outputs(gradient, q, k, v))
    local = k.size // (4 * (heads_size or 1))  # elements of a device's keys
    assert local not in (q.size // 4, q.size // 8)

    def sizes(*names):
        return {aval.size for name, aval in computed if name in names}

    assert sizes("ppermute") == (set() if exchange == "all_gather" else {local})
    assert sizes("all_gather") == ({k.size} if exchange == "all_gather" else set())
    assert sizes("reduce_scatter") == ({local} if exchange == "all_gather" else set())
    if heads_size:  # queries and outputs are exchanged; keys and values as they are; the log-sum-exp has no head_dim
        assert sizes("all_to_all") == {local, q.size // 8, q.size // 8 // 4}


def test_bad_arguments_are_named(random_inputs):
    q, k, v, _ = random_inputs(1, 64, 6, 2, 8)
    with pytest.raises(
        ValueError, match="6 query heads cannot be exchanged over the 4 devices of the heads axis 'heads'"
    ):
        spread(2, 4, "zigzag")(q, k, v, None)
