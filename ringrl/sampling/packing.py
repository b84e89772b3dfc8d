"""The row of each chain of a batch, and its position there: one chain a row, or as many as fit.

Packing several is best fit in order of decreasing length: the longest chain first, each into the fullest row that still
has room for it. That is within 11/9 of the fewest rows possible (Johnson et al. 1974).
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from ringrl.errors import UserError


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the chains of a batch go: chain i begins at position `first[i]` of row `row[i]`."""

    row: Int64[np.ndarray, " chains"]
    first: Int64[np.ndarray, " chains"]
    segment: Int64[np.ndarray, " chains"]  # the chain's number within its row, from 1 on


def one_a_row(lengths: Sequence[int], steps: int) -> Packing:
    """Chain i at the beginning of row i. Raises UserError where a chain is longer than a row's `steps`."""
    check_length(max(lengths), steps)
    row = np.arange(len(lengths), dtype=np.int64)
    return Packing(row, np.zeros_like(row), np.ones_like(row))


def check_length(length: int, steps: int) -> None:
    """Raise UserError where a chain of this length does not fit into a row of so many steps."""
    if length > steps:
        raise UserError(
            f"a row of {steps} steps is too short for a chain of {length} steps; "
            f"set training.row_steps to at least {length}, or make chains of fewer trajectories"
        )


def best_fit(lengths: Sequence[int], rows: int, steps: int) -> Packing | None:
    """All chains in so many rows of so many steps, longest first; None where one does not fit.

    Chains of equal length keep their order; of rows with equal room the first is taken.
    """
    row, first, segment = (np.zeros(len(lengths), np.int64) for _ in range(3))
    room = [(steps, index) for index in range(rows)]  # ascending
    chains = [0] * rows  # in each row so far
    for chain in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        fullest = bisect_left(room, (lengths[chain], 0))
        if fullest == rows:
            return None
        left, index = room.pop(fullest)
        chains[index] += 1
        row[chain], first[chain], segment[chain] = index, steps - left, chains[index]
        insort(room, (left - lengths[chain], index))
    return Packing(row, first, segment)


def pack_first(draw: Callable[[], int], rows: int, steps: int) -> Packing:
    """As many of an endless sequence's chains as can be packed, from its beginning and none left out.

    So which chains are seen does not depend on how well they fit, but for the one that ends the batch: of n chains a
    batch, any kind's share is off by at most about 1/n, in disfavour of long ones. A share of the batch below
    (1 + 1/rows) longest chain / steps stays empty, for every row has less room than a chain that best fit cannot place.

    Args:
        draw: the length of the next chain; called for a few more chains than are packed.
        rows: in the batch.
        steps: in a row.

    Raises:
        UserError: a chain is longer than a row.
    """
    lengths, total = [], 0
    while total <= rows * steps:
        lengths.append(draw())
        check_length(lengths[-1], steps)
        total += lengths[-1]
    best = one_a_row(lengths[:rows], steps)
    fit, too_many, stride = rows, len(lengths), 1  # all together never fit; mostly all but the last few do
    while too_many - fit > 1:
        attempt = max(too_many - stride, (fit + too_many) // 2)
        found = best_fit(lengths[:attempt], rows, steps)
        if found is None:
            too_many, stride = attempt, 2 * stride
        else:
            fit, best = attempt, found
    return best
