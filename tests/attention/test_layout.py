"""Which device stores which tokens: cases a reader can check by eye, and round trips."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.attention.layout import from_ring_order, ring_positions, to_ring_order

LAYOUTS = ("contiguous", "striped", "zigzag")


@pytest.mark.parametrize(
    ("layout", "shards"),
    [
        ("contiguous", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("striped", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("zigzag", [[0, 1, 6, 7], [2, 3, 4, 5]]),
    ],
)
def test_eight_tokens_on_two_devices(layout, shards):
    ordered = to_ring_order(np.arange(8)[None], 2, layout)
    np.testing.assert_array_equal(ordered.reshape(2, 4), shards)
    np.testing.assert_array_equal([ring_positions(i, 4, 2, layout) for i in range(2)], shards)


def test_stripes_of_two_tokens_on_two_devices():
    shards = [[0, 1, 4, 5], [2, 3, 6, 7]]
    np.testing.assert_array_equal(to_ring_order(np.arange(8), 2, "striped", 0, stripe=2).reshape(2, 4), shards)
    np.testing.assert_array_equal([ring_positions(i, 4, 2, "striped", 2) for i in range(2)], shards)


@settings(deadline=None, max_examples=40)
@given(
    ring=st.integers(1, 8),
    units=st.integers(1, 5),
    layout=st.sampled_from(LAYOUTS),
    axis=st.sampled_from([0, 1, -1]),
    stripe=st.integers(1, 4),
)
def test_round_trip_and_positions(ring, units, layout, axis, stripe):
    length = units * ring * stripe * 2
    x = np.moveaxis(np.arange(3 * length).reshape(3, length), 1, axis)
    ordered = to_ring_order(x, ring, layout, axis, stripe=stripe)
    assert isinstance(ordered, np.ndarray)
    np.testing.assert_array_equal(from_ring_order(ordered, ring, layout, axis, stripe=stripe), x)
    np.testing.assert_array_equal(to_ring_order(jnp.asarray(x), ring, layout, axis, stripe=stripe), ordered)
    positions = np.concatenate([ring_positions(i, length // ring, ring, layout, stripe) for i in range(ring)])
    np.testing.assert_array_equal(to_ring_order(np.arange(length), ring, layout, 0, stripe=stripe), positions)


def test_a_shard_is_whole_stripes_of_one_token_or_more():
    with pytest.raises(ValueError, match="striped: a shard of 6 tokens.*stripes of 4.*multiple of 8"):
        ring_positions(0, 6, 2, "striped", 4)
    with pytest.raises(ValueError, match="striped.*12 tokens.*multiple of 8"):
        to_ring_order(np.arange(12), 2, "striped", 0, stripe=4)
    with pytest.raises(ValueError, match="a stripe of 0 tokens"):
        to_ring_order(np.arange(12), 2, "striped", 0, stripe=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_ring_of_one_keeps_the_order_of_any_length(layout):
    x = np.arange(7)
    np.testing.assert_array_equal(to_ring_order(x, 1, layout, 0), x)
    np.testing.assert_array_equal(ring_positions(0, 7, 1, layout), x)


@pytest.mark.parametrize(("layout", "multiple"), [("contiguous", 4), ("striped", 4), ("zigzag", 8)])
def test_a_length_that_does_not_divide_says_into_what_it_must(layout, multiple):
    for reorder in (to_ring_order, from_ring_order):
        with pytest.raises(ValueError, match=f"{layout}.*13.*multiple of {multiple}"):
            reorder(np.arange(13), 4, layout, 0)
    with pytest.raises(ValueError, match="multiple of 8"):
        ring_positions(0, 3, 4, "zigzag")


def test_an_unknown_layout_names_the_known_ones():
    with pytest.raises(ValueError, match="'spiral'.*contiguous, striped, zigzag"):
        to_ring_order(np.arange(8), 2, "spiral", 0)
