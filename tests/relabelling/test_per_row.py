"""What PerRow does is what NumPy does to each row alone, bit for bit."""

import numpy as np
import pytest
from dm_control.utils.rewards import tolerance
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.relabelling.per_row import PerRow
from ringrl.relabelling.reward_physics import _SLACK, _is_certain

OFFSET = np.array([0.1, -2.0, 3.0])
VECTORS = {
    "arithmetic": lambda x: (2 * x - OFFSET) / (1 + abs(x)),
    "an element": lambda x: x[1],
    "a slice": lambda x: -x[1:],
    "a list": lambda x: x[[2, 0]],
    "a scalar a row with a vector a row": lambda x: x[0] * x + x[2],
    "unpacking": lambda x: (lambda a, b, c: a + b * c)(*x),
    "comparison": lambda x: np.logical_and(x > 0, x <= 1),
    "exp": np.exp,
    "tanh": np.tanh,
    "hypot": lambda x: np.hypot(x[0], x[1]),
    "where": lambda x: np.where(x < 0, -x, 1.0),
    "norm": np.linalg.norm,
    "norm of a difference": lambda x: np.linalg.norm(OFFSET - x),
    "sum": lambda x: x.sum(),
    "mean": np.mean,
    "prod": np.prod,
    "min": lambda x: x.min(),
    "max": np.max,
    "all": lambda x: (x > 0).all(),
    "any": lambda x: np.any(x > 0),
}
MATRICES = {
    "row of a matrix": lambda x: x[1],
    "column of a matrix": lambda x: x[:, 1],
    "element of a matrix": lambda x: x[2, 1],
    "mean of columns": lambda x: x.mean(axis=0),
    "sum of rows": lambda x: np.sum(x, axis=-1),
    "norm of rows": lambda x: np.linalg.norm(x, axis=1),
    "norm of all": np.linalg.norm,
    "flat": lambda x: x.ravel()[4:],
    "mean of a part": lambda x: x[:, 1].mean(),
    "matrix and vector": lambda x: x * x[0],
}
SIGMOIDS = ["gaussian", "hyperbolic", "long_tail", "reciprocal", "cosine", "linear", "quadratic", "tanh_squared"]


def assert_same(function, values):
    result = function(PerRow(values))
    assert isinstance(result, PerRow)
    wanted = np.stack([function(row) for row in values])
    assert result.values.dtype == wanted.dtype
    np.testing.assert_array_equal(result.values, wanted)


@pytest.mark.parametrize("name", VECTORS)
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40))
def test_vectors(name, seed, rows):
    assert_same(VECTORS[name], np.random.default_rng(seed).normal(size=(rows, 3)))


@pytest.mark.parametrize("name", MATRICES)
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40))
def test_matrices(name, seed, rows):
    assert_same(MATRICES[name], np.random.default_rng(seed).normal(size=(rows, 3, 2)))


@pytest.mark.parametrize("width", [2, 7, 12, 40, 200])
def test_long_vectors_are_added_up_in_numpys_order(width):
    values = np.random.default_rng(0).normal(size=(300, width))
    for function in (np.sum, np.mean, np.linalg.norm):
        assert_same(function, values)


@pytest.mark.parametrize("sigmoid", SIGMOIDS)
def test_tolerance(sigmoid):
    """dm_control's own. A scalar's square may differ from an array's in the last digit: hence `_is_certain`."""
    values = np.random.default_rng(0).uniform(-4, 4, 20_000)

    def reward(x):
        return tolerance(x, bounds=(-0.5, 1.0), margin=2.0, sigmoid=sigmoid, value_at_margin=0.1)

    result = reward(PerRow(values)).values
    wanted = np.array([reward(x) for x in values])
    np.testing.assert_allclose(result, wanted, rtol=_SLACK / 10, atol=0)
    certain = _is_certain(result)
    assert certain.mean() > 0.999
    np.testing.assert_array_equal(result[certain].astype(np.float32), wanted[certain].astype(np.float32))


@pytest.mark.parametrize(
    "ask",
    [
        bool,
        float,
        int,
        len,
        list,
        lambda x: max(x, 0.0),
        lambda x: all(x > 0 for x in [x]),
        lambda x: [1, 2][x],
        np.asarray,
        np.atleast_1d,
        lambda x: np.vstack([x, x]),
        lambda x: np.add.reduce(x),
        lambda x: np.add(x, 1.0, out=np.zeros(4)),
        lambda x: np.modf(x),
        lambda x: np.array([1.0])[x],
    ],
)
def test_what_has_no_answer_for_each_row_is_refused(ask):
    with pytest.raises((TypeError, IndexError)):
        ask(PerRow(np.arange(4.0)))


def test_what_is_shared_by_tasks_cannot_be_changed():
    x = PerRow(np.zeros((4, 2)))
    for change in (lambda: x.__iadd__(1.0), lambda: x.__setitem__(0, 1.0)):
        with pytest.raises((TypeError, AttributeError)):
            change()
    assert not x.values.any()
