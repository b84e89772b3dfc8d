"""What a history says, worked out by hand."""

import numpy as np
import pytest

from ringrl.experience.history import monotonicity, persistence


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def test_monotonicity():
    assert monotonicity(floats(1, 2, 5, 9)) == pytest.approx(1)
    assert monotonicity(floats(3, 2, 1)) == pytest.approx(-1)
    assert monotonicity(floats(1, 3, 2)) == pytest.approx(0.5)
    assert monotonicity(floats(4, 4, 4)) == 0
    assert monotonicity(floats(4)) == 0


def test_persistence():
    assert persistence(floats(1, 2, 5, 9)) == pytest.approx(1)
    assert persistence(floats(1, 9, 1, 9, 1)) == pytest.approx(-1)
    assert persistence(floats(1, 1, 9, 9, 1)) == pytest.approx(0)  # pairs 1 1, 1 9, 9 9, 9 1: none stands out
    assert persistence(floats(4, 4, 4)) == persistence(floats(1, 2)) == persistence(floats(4)) == 0
    luck = np.random.default_rng(0).normal(size=2000)
    assert persistence(luck) == pytest.approx(0, abs=0.1)
    policy = np.repeat(np.random.default_rng(1).normal(size=200), 10)
    assert persistence(policy + luck) == pytest.approx(0.5 * 0.9, abs=0.1)  # half of the variance, nine of ten pairs
