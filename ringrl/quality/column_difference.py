"""When stored numbers and recomputed ones agree."""

import numpy as np
from jaxtyping import Bool, Float32

RTOL = ATOL = 1e-5
"""Two numbers agree if they differ by no more than ATOL + RTOL * |ours|: what float32 keeps, with some to spare."""


class ColumnDifference:
    """Running comparison of two arrays [rows, columns], fed episode by episode.

    Attributes:
        largest: difference between two numbers.
        says_something: whether any number differed from 0.
    """

    def __init__(self) -> None:
        """Nothing compared yet."""
        self.largest, self._agreeing, self._rows = 0.0, 0, 0
        self.says_something = False

    def add(self, stored: Float32[np.ndarray, "rows columns"], ours: Float32[np.ndarray, "rows columns"]) -> None:
        """Take in the rows of an episode."""
        difference = np.abs(stored.astype(np.float64) - ours)
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        self._agreeing += int(agree(stored, ours).all(axis=1).sum())
        self._rows += len(stored)
        self.says_something |= bool(max(np.abs(stored).max(initial=0.0), np.abs(ours).max(initial=0.0)) > ATOL)

    @property
    def share(self) -> float:
        """Of the rows, whose numbers all agree."""
        return self._agreeing / max(self._rows, 1)


def agree(
    stored: Float32[np.ndarray, "rows columns"], ours: Float32[np.ndarray, "rows columns"]
) -> Bool[np.ndarray, "rows columns"]:
    """Which numbers differ by no more than ATOL + RTOL * |ours|."""
    return np.isclose(stored, ours, rtol=RTOL, atol=ATOL)
