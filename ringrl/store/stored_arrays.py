"""The arrays of a store by name, opened together, read row by row or whole, some of them kept in memory."""

from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from threading import RLock

import numpy as np
import tensorstore as ts

from ringrl.store.metadata import unreadable
from ringrl.store.zarr import open_array

_LARGE = ("transition", "reward/", "demonstrator")  # the arrays with a number for every step


class StoredArrays:
    """Named arrays of one store, which are never written again. Threads may read at the same time.

    Raises:
        UserError: from every method, if a file is lost, damaged or out of reach.
    """

    def __init__(
        self,
        path: Path | str,
        shapes: Mapping[str, tuple[int, ...]],
        context: ts.Context,
        memory_limit: int,
        check: Callable[[str, np.ndarray], None] = lambda name, rows: None,
    ) -> None:
        """Open the arrays.

        Args:
            path: the store's folder or URL.
            shapes: the shape that each array must have, by its name.
            context: how they are reached, and what is cached.
            memory_limit: bytes of the arrays of steps that `rows` may keep in memory.
            check: called with the name of an array and all that is read of it at once; raises UserError to refuse it.
        """
        self._path, self._memory_limit, self._check = path, memory_limit, check
        self._resident: dict[str, np.ndarray] = {}
        self._lock = RLock()
        try:
            futures = {name: open_array(path, name, context) for name in shapes}
            self._arrays: dict[str, ts.TensorStore] = {name: future.result() for name, future in futures.items()}
        except ValueError as error:
            raise unreadable(path, error) from error
        for name, shape in shapes.items():
            if tuple(self._arrays[name].shape) != shape:
                raise unreadable(path, f"{name} has shape {tuple(self._arrays[name].shape)}, not {shape}")

    def whole(self, name: str) -> np.ndarray:
        """All of an array, which is kept in memory from now on."""
        with self._lock:  # else a loader's threads would each read it
            if name not in self._resident:
                with ts.Batch() as batch:  # so that a file of many chunks is read at once
                    future = self._arrays[name].read(batch=batch)
                whole = self._result(name, future)
                whole.flags.writeable = False  # callers get views of it
                self._resident[name] = whole
            return self._resident[name]

    def rows(self, wanted: Mapping[str, list[slice]]) -> dict[str, list[np.ndarray]]:
        """These rows of these arrays, all read at the same time. What comes from memory are views."""
        found = self._resident_rows(wanted)
        return found | self._read_rows({name: rows for name, rows in wanted.items() if name not in found})

    def _resident_rows(self, wanted: Mapping[str, list[slice]]) -> dict[str, list[np.ndarray]]:
        """These rows of those arrays that are kept in memory: the smallest, as many as may be."""
        found = {}
        for name in sorted(wanted, key=self._bytes):
            with self._lock:
                kept = sum(self._bytes(each) for each in self._resident if each.startswith(_LARGE))
                may = name.startswith(_LARGE) and kept + self._bytes(name) <= self._memory_limit
                whole = self.whole(name) if may or name in self._resident else None
            if whole is not None:
                found[name] = [whole[at] for at in wanted[name]]
        return found

    def _read_rows(self, wanted: Mapping[str, list[slice]]) -> dict[str, list[np.ndarray]]:
        """These rows of these arrays, read from the disk."""
        with ts.Batch() as batch:
            # One read of what is wanted together costs half of as many reads as there are slices.
            joined = {name: ts.concat([self._arrays[name][at] for at in rows], axis=0) for name, rows in wanted.items()}
            futures = {name: array.read(batch=batch) for name, array in joined.items()}
        found = {}
        for name, future in futures.items():
            values, ends = self._result(name, future), list(accumulate(at.stop - at.start for at in wanted[name]))
            found[name] = [values[start:stop] for start, stop in pairwise([0, *ends])]
        return found

    def _bytes(self, name: str) -> int:
        return self._arrays[name].size * self._arrays[name].dtype.numpy_dtype.itemsize

    def _result(self, name: str, future: ts.Future) -> np.ndarray:
        try:
            found = future.result()
        except ValueError as error:
            raise unreadable(self._path, error) from error
        self._check(name, found)
        return found
