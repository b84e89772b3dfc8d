"""Arrays that look to a task's code like those of one state, and contain those of many.

dm_control's tasks compute a reward from a few NumPy arrays of one state. `PerRow` puts the arrays of all rows of an
episode in their place: the task's own code then computes all rewards in one pass, with no second version of it to keep.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


class PerRow(np.lib.mixins.NDArrayOperatorsMixin):
    """An array for each row, of one shape; the axis of the rows is hidden.

    Indexing, arithmetic, NumPy's elementwise functions, `np.where`, `np.linalg.norm` and reductions do for each row
    what they do for an array of one state. An operation that needs one answer for all rows (`if`, `float`,
    `max(a, b)`), and any that is not listed here, raises TypeError.

    Attributes:
        values: [rows, *shape], any dtype.
    """

    def __init__(self, values: np.ndarray):
        """Hide the first axis of `values`."""
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a row's array."""
        return self.values.shape[1:]

    @property
    def ndim(self) -> int:
        """The number of axes of a row's array."""
        return self.values.ndim - 1

    @property
    def size(self) -> int:
        """The number of elements of a row's array."""
        return int(np.prod(self.shape))

    def __getitem__(self, key: Any) -> "PerRow":
        """`key` applied to each row's array."""
        return PerRow(self.values[(slice(None), *(key if isinstance(key, tuple) else (key,)))])

    def __len__(self) -> int:
        """The length of a row's array."""
        if not self.ndim:
            raise TypeError("a scalar for each row has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator["PerRow"]:
        """The elements of the rows' arrays, of all rows at once."""
        return (self[index] for index in range(len(self)))

    def _one_answer(self, *_: Any, **__: Any) -> Any:
        raise TypeError("one answer is asked for where every row has its own")

    # Without these Python has a default: an object is true, and NumPy wraps it as a scalar.
    __bool__ = __float__ = __int__ = __index__ = __array__ = _one_answer

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Elementwise functions, with NumPy's broadcasting of the rows' arrays."""
        if method != "__call__" or kwargs or ufunc.signature is not None or ufunc.nout != 1:
            return NotImplemented
        return _elementwise(ufunc, *inputs)

    def __array_function__(self, function: Callable, types: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The functions of `_FUNCTIONS`; others raise TypeError."""
        return _FUNCTIONS[function](*args, **kwargs) if function in _FUNCTIONS else NotImplemented

    def copy(self) -> "PerRow":
        """A copy."""
        return PerRow(self.values.copy())

    def ravel(self) -> "PerRow":
        """Each row's array flattened."""
        return PerRow(self.values.reshape(len(self.values), -1))

    def sum(self, axis: int | None = None) -> "PerRow":
        """As np.sum."""
        return self._reduce(np.add.reduce, axis)

    def mean(self, axis: int | None = None) -> "PerRow":
        """As np.mean."""
        return self._reduce(np.mean, axis)

    def prod(self, axis: int | None = None) -> "PerRow":
        """As np.prod."""
        return self._reduce(np.multiply.reduce, axis)

    def min(self, axis: int | None = None) -> "PerRow":
        """As np.min."""
        return self._reduce(np.minimum.reduce, axis)

    def max(self, axis: int | None = None) -> "PerRow":
        """As np.max."""
        return self._reduce(np.maximum.reduce, axis)

    def all(self, axis: int | None = None) -> "PerRow":
        """As np.all."""
        return self._reduce(np.all, axis)

    def any(self, axis: int | None = None) -> "PerRow":
        """As np.any."""
        return self._reduce(np.any, axis)

    def _reduce(self, reduce: Callable, axis: int | None) -> "PerRow":
        if axis is None:
            # Contiguous, so that NumPy adds up each row in the order in which it adds up one array.
            return PerRow(reduce(np.ascontiguousarray(self.ravel().values), axis=1))
        return PerRow(reduce(self.values, axis=axis + 1 if axis >= 0 else axis))


def _elementwise(function: Callable, *inputs: Any) -> PerRow:
    """`function` of arrays that are aligned at their last axes, as NumPy does, the rows' axis put first."""
    ndim = max(np.ndim(x) if not isinstance(x, PerRow) else x.ndim for x in inputs)
    aligned = [
        x.values.reshape(len(x.values), *(1,) * (ndim - x.ndim), *x.shape) if isinstance(x, PerRow) else x
        for x in inputs
    ]
    return PerRow(function(*aligned))


def _where(condition: Any, x: Any, y: Any) -> PerRow:
    return _elementwise(np.where, condition, x, y)


def _norm(x: PerRow, axis: int | None = None) -> PerRow:
    if axis is not None:
        return PerRow(np.linalg.norm(x.values, axis=axis + 1 if axis >= 0 else axis))
    # NumPy's norm of one array is the root of its dot product with itself; vecdot takes the same product of each row.
    flat = np.ascontiguousarray(x.ravel().values)
    return PerRow(np.sqrt(np.vecdot(flat, flat)))


_FUNCTIONS: dict[Callable, Callable] = {np.where: _where, np.linalg.norm: _norm} | {
    getattr(np, name): getattr(PerRow, name) for name in ("sum", "mean", "prod", "min", "max", "all", "any", "ravel")
}
