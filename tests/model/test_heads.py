"""Heads: losses against formulas from NumPy and SciPy, actions in range, draws that follow their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ringrl.model.output_heads import Categorical, Gaussian, OutputHead, TanhMSE, make_head

NAMES = ["tanh_mse", "gaussian", "categorical"]


def draw(head: OutputHead, seed: int = 0, rows: int = 64, size: int = 3):
    rng = np.random.default_rng(seed)
    raw = 2.0 * rng.normal(size=(rows, size, head.outputs))
    return jnp.asarray(raw, jnp.float32), jnp.asarray(rng.uniform(-1, 1, (rows, size)), jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_head_gives_a_loss_a_row_and_actions_in_range(name):
    head = make_head(name, bins=16)
    assert isinstance(head, OutputHead)
    raw, action = draw(head)
    for dtype in (jnp.float32, jnp.bfloat16):
        loss = head.loss(raw.astype(dtype), action)
        assert loss.shape == (64,) and loss.dtype == jnp.float32 and bool(jnp.isfinite(loss).all())
    for key in (None, jax.random.key(0)):
        taken = head.act(100.0 * raw, key)
        assert taken.shape == (64, 3) and taken.dtype == jnp.float32 and float(jnp.abs(taken).max()) <= 1.0
    gradient = jax.grad(lambda raw: jnp.sum(head.loss(raw, action)))(raw)
    assert bool((jnp.abs(gradient).max(axis=(0, 1)) > 0).all())


def test_tanh_mse_is_the_squared_error():
    raw, action = draw(TanhMSE())
    expected = np.square(np.tanh(np.asarray(raw, np.float64)[..., 0]) - np.asarray(action)).mean(axis=-1)
    np.testing.assert_allclose(TanhMSE().loss(raw, action), expected, rtol=1e-5)
    np.testing.assert_array_equal(TanhMSE().act(raw, jax.random.key(0)), TanhMSE().act(raw, None))


def test_the_gaussian_is_scipys():
    head = Gaussian()
    raw, action = draw(head)
    wide = np.asarray(raw, np.float64)
    log_std = -4.0 + 5.0 * 0.5 * (np.tanh(wide[..., 1]) + 1.0)
    expected = -scipy.stats.norm.logpdf(np.asarray(action), np.tanh(wide[..., 0]), np.exp(log_std)).mean(axis=-1)
    np.testing.assert_allclose(head.loss(raw, action), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(head.act(raw, None), np.tanh(wide[..., 0]), rtol=1e-5)


def test_gaussian_draws_have_its_mean_and_deviation():
    head = Gaussian()
    raw = jnp.broadcast_to(jnp.asarray([0.3, -0.2], jnp.float32), (20_000, 1, 2))  # sd 0.13: nothing is clipped
    drawn = np.asarray(head.act(raw, jax.random.key(1)))
    np.testing.assert_allclose(drawn.mean(), np.tanh(0.3), atol=0.005)
    np.testing.assert_allclose(drawn.std(), np.exp(-4.0 + 2.5 * (np.tanh(-0.2) + 1.0)), rtol=0.03)


@pytest.mark.parametrize("bins", [2, 7, 32])
def test_a_bin_is_the_nearest_one_and_its_centre_is_played(bins):
    head = Categorical(bins)
    action = np.linspace(-1, 1, 101, dtype=np.float32)
    one_hot = jnp.broadcast_to(20.0 * jnp.eye(bins, dtype=jnp.float32)[:, None, None], (bins, 101, 1, bins))
    losses = np.asarray(head.loss(one_hot, jnp.broadcast_to(action[None, :, None], (bins, 101, 1))))
    counted = losses.argmin(axis=0)  # the bin that each action is counted into
    centre = np.asarray(head.act(one_hot[counted, np.arange(101)], None))[:, 0]
    assert (np.abs(centre - action) <= 1.0 / bins + 1e-5).all()
    assert (np.sort(losses, axis=0)[0] < 1e-3).all() and (np.sort(losses, axis=0)[1] > 10).all()


def test_categorical_draws_follow_the_probabilities():
    head = Categorical(3)
    raw = jnp.broadcast_to(jnp.log(jnp.asarray([0.2, 0.5, 0.3], jnp.float32)), (20_000, 1, 3))
    drawn = np.asarray(head.act(raw, jax.random.key(2)))[:, 0]
    centres, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_allclose(centres, [-2 / 3, 0, 2 / 3], atol=1e-6)
    np.testing.assert_allclose(counts / 20_000, [0.2, 0.5, 0.3], atol=0.015)
    assert float(head.act(raw[:1], None)[0, 0]) == pytest.approx(0.0, abs=1e-6)
