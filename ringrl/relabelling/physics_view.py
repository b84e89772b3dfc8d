"""A physics whose data are those of many states at once, for a task's own code to compute rewards from."""

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from ringrl.relabelling.per_row import PerRow

Read = Callable[[str, Any], PerRow]


def view_of_rows(physics: Any, read: Read) -> Any:
    """An object with the methods and the model of `physics`, whose data are those of many states.

    Args:
        physics: dm_control's; it is neither read nor changed later, but for its model.
        read: the field of MjData of that name, indexed by the key, in all states. `()` is the key of the whole field.

    Raises:
        TypeError: from the object's methods, if they ask for what is not kept for every row.
    """
    view = object.__new__(_for_rows(type(physics)))
    view.__dict__.update(physics.__dict__)
    view._data = _Data(physics.model, read)
    view._named = type(physics.named)(model=physics.named.model, data=_NamedData(physics.named.data, read))
    view.bind = _no_bindings
    return view


@functools.cache
def _for_rows(physics: type) -> type:
    """`physics` with methods in which `np.asarray` lets a `PerRow` pass: NumPy has no other way to leave it alone."""

    def rebound(function: types.FunctionType) -> types.FunctionType:
        namespace = {name: _NUMPY if value is np else value for name, value in function.__globals__.items()}
        copy = types.FunctionType(
            function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        return copy

    methods = {}
    for base in reversed(physics.__mro__):
        methods |= {name: rebound(f) for name, f in vars(base).items() if isinstance(f, types.FunctionType)}
    return type(physics.__name__, (physics,), methods)


class _NumPy:
    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def asarray(x: Any, *args: Any, **kwargs: Any) -> Any:
        return x if isinstance(x, PerRow) else np.asarray(x, *args, **kwargs)


_NUMPY = _NumPy()


def _no_bindings(*_: Any) -> Any:
    raise TypeError("it reads elements of an MJCF tree")


class _Data:
    """In the place of dm_control's MjData: every field is that of all rows."""

    def __init__(self, model: Any, read: Read):
        self.model, self._read = model, read

    def __getattr__(self, name: str) -> PerRow:
        return self._read(name, ())


class _NamedData:
    """In the place of `physics.named.data`."""

    def __init__(self, indexers: Any, read: Read):
        self._indexers, self._read = indexers, read

    def __getattr__(self, name: str) -> "_NamedField":
        return _NamedField(getattr(self._indexers, name), name, self._read)


class _NamedField:
    """In the place of a FieldIndexer."""

    def __init__(self, indexer: Any, name: str, read: Read):
        self._indexer, self._name, self._read = indexer, name, read

    def __getitem__(self, key: Any) -> PerRow:
        return self._read(self._name, self._indexer._convert_key(key))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._read(self._name, ()), name)
