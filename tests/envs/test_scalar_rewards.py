"""The quick `tolerance` gives dm_control's own bits, and its errors."""

import numpy as np
import pytest
from dm_control.utils import rewards
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.envs.scalar_rewards import tolerance

numbers = st.floats(-50, 50)
SIGMOIDS = ["gaussian", "hyperbolic", "long_tail", "reciprocal", "cosine", "linear", "quadratic", "tanh_squared"]


@settings(max_examples=600, deadline=None)
@given(
    x=numbers,
    kind=st.sampled_from([float, np.float64, np.array]),
    ends=st.tuples(numbers, numbers | st.just(np.inf)),
    margin=st.just(0.0) | st.floats(1e-3, 100),
    sigmoid=st.sampled_from(SIGMOIDS),
    value=st.floats(0.01, 0.99),
)
def test_it_is_that_of_dm_control(x, kind, ends, margin, sigmoid, value):
    given = (kind(x), tuple(sorted(ends)), margin, sigmoid, value)
    with np.errstate(over="ignore", invalid="ignore"):  # far outside the bounds
        expected, got = rewards.tolerance(*given), tolerance(*given)
    assert type(got) is type(expected)
    np.testing.assert_array_equal(got, expected)


def test_not_a_number_and_errors_are_those_of_dm_control():
    assert tolerance(float("nan"), (0.0, 1.0), 1.0) == pytest.approx(
        rewards.tolerance(float("nan"), (0.0, 1.0), 1.0), nan_ok=True
    )
    for wrong in ({"bounds": (1.0, 0.0)}, {"margin": -1.0}, {"margin": 1.0, "value_at_margin": 0.0}):
        with pytest.raises(ValueError) as ours:
            tolerance(2.0, **wrong)
        with pytest.raises(ValueError) as theirs:
            rewards.tolerance(2.0, **wrong)
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(ValueError, match="Unknown sigmoid"):
        tolerance(2.0, margin=1.0, sigmoid="none")
