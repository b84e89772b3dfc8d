"""Rotary positions: angles against extended precision at any position, and the base that a context's length takes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.model.rotary import TRIAL_BASE, angles, rotate, token_angles
from ringrl.model_config import rope_base_for

LAST = 2**31 - 1


def exact(positions: np.ndarray, half: int, base: float, dtype: type = np.longdouble) -> np.ndarray:
    """The angles of one row with all their turns, [length, half]."""
    return positions[:, None].astype(dtype) * dtype(base) ** (-np.arange(half).astype(dtype) / dtype(half))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, LAST), min_size=8, max_size=8),
    st.sampled_from([(8, 10_000.0), (64, 10_000.0), (32, 5e5), (64, rope_base_for(50_000_000))]),
)
def test_angles_are_right_at_every_position(numbers, shape):
    positions = np.asarray(numbers, np.int32)
    got = jax.jit(partial(angles, half=shape[0], base=shape[1]))(positions[None])[0]
    assert got.dtype == jnp.float32 and (abs(got) < 3.1415928).all()
    for f in (np.cos, np.sin):
        np.testing.assert_allclose(f(np.asarray(got, np.float64)), f(exact(positions, *shape)).astype(float), atol=1e-6)


@pytest.mark.parametrize("top", [100, 10**4, 10**6, 10**8])
def test_rotation_is_that_of_float64_to_a_millionth(top):
    positions = np.random.default_rng(0).integers(0, top + 1, 200).astype(np.int32)
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 200, 2, 32)))
    angle = exact(positions, 16, 10_000.0, np.float64)[None, :, None]
    left, right = np.split(x.astype(np.float64), 2, axis=-1)
    expected = np.concatenate(
        [left * np.cos(angle) - right * np.sin(angle), right * np.cos(angle) + left * np.sin(angle)], axis=-1
    )
    got = jax.jit(lambda x, p: rotate(x, angles(p, 16, 10_000.0)))(x, positions[None])
    np.testing.assert_allclose(got, expected, atol=1e-6 * abs(x).max())


def test_rotation_makes_scores_depend_on_distance_alone_even_late():
    q, k = jax.random.normal(jax.random.key(1), (2, 1, 1, 1, 16))
    at = lambda x, i: rotate(x, angles(jnp.full((1, 1), i, jnp.int32), 8, 10_000.0))  # noqa: E731
    score = lambda i, j: jnp.sum(at(q, i) * at(k, j))  # noqa: E731
    for late in (100, 10**8, LAST - 3):
        np.testing.assert_allclose(score(3, 1), score(3 + late, 1 + late), rtol=2e-5, atol=2e-6)
    assert abs(score(3, 1) - score(4, 1)) > 1e-4


def test_the_slowest_quarter_of_the_pairs_turns_with_the_trial():
    positions, trials = jnp.asarray([[0, 7, 90_000]], jnp.int32), jnp.asarray([[0, 3, 12_000]], jnp.int32)
    alone, both = (token_angles(positions, each, 16, 5e5) for each in (None, trials))
    np.testing.assert_array_equal(alone, angles(positions, 16, 5e5))
    np.testing.assert_array_equal(both[..., :12], alone[..., :12])
    np.testing.assert_array_equal(both[..., 12:], angles(trials, 4, TRIAL_BASE))


def test_the_base_grows_with_the_context():
    assert [rope_base_for(n) for n in (1, 2000, 4096)] == [10_000.0] * 3
    assert rope_base_for(10**6) == pytest.approx(0.0424 * 10 ** (6 * 1.628))
    lengths = [4096, 4097, 10**5, 10**6, 5 * 10**7, LAST]
    assert sorted(map(rope_base_for, lengths)) == [rope_base_for(n) for n in lengths]


def test_at_fifty_million_tokens_a_query_still_finds_keys_like_itself():
    # What bounds the base (Men et al. 2024, equation 10): the sum of all cosines stays positive at every distance.
    distances = np.unique(np.geomspace(1, 5e7, 20_000).astype(np.int64))
    mean = lambda base: np.cos(exact(distances, 64, base, np.float64)).mean(axis=1)  # noqa: E731
    assert mean(rope_base_for(50_000_000)).min() > 0 > mean(10_000.0).min()
