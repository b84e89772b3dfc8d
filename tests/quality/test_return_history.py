"""What a history says, worked out by hand."""

import numpy as np
import pytest

from ringrl.quality.return_history import monotonicity, persistence, regressed


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
    assert persistence(floats(1, 1, 9, 9, 1)) == pytest.approx(0)  # pairs 1 1, 1 9, 9 9, 9 1: none is unlike the rest
    assert persistence(floats(4, 4, 4)) == persistence(floats(1, 2)) == persistence(floats(4)) == 0
    luck = np.random.default_rng(0).normal(size=2000)
    assert persistence(luck) == pytest.approx(0, abs=0.1)
    policy = np.repeat(np.random.default_rng(1).normal(size=200), 10)
    assert persistence(policy + luck) == pytest.approx(0.5 * 0.9, abs=0.1)  # half of the variance, nine of ten pairs


def test_a_lead_comes_again_as_far_as_it_persists():
    assert regressed(floats(1, 2, 5, 9)) == pytest.approx([1, 2, 5, 9])  # all of it
    assert regressed(floats(1, 9, 1, 9, 5)) == pytest.approx([5, 5, 5, 5, 5])  # it swings back: nothing, and not less
    assert regressed(floats(6, 6, 6)) == pytest.approx([6, 6, 6])
    # 1 2 4 3 5: ranks 1 2 4 3 of the earlier, 1 3 2 4 of the later; 1 - 6 (0 + 1 + 4 + 1) / (4 * 15) = 0.4.
    assert regressed(floats(1, 2, 4, 3, 5)) == pytest.approx([3 + 0.4 * lead for lead in (-2, -1, 1, 0, 2)])
