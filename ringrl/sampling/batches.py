"""Chains -> the arrays of a batch: every step at its position of a row, normalised, 0 elsewhere."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, Int64

from ringrl.batch import Batch, Chain, LabelledBatch, MemberBatch, link_previous
from ringrl.sampling.normalizer import Normalizer

_Index = Int64[np.ndarray, " n"] | slice

_NEAR = 250
"""Steps between two runs of wanted positions that are read rather than left out: a store's chunk has no fewer."""


class LocalPositions:
    """The positions of a row that are wanted here: all of them, or those of this process's shard.

    Attributes:
        needed: the wanted positions and the ones before them, ascending: a step has values of the step before it.
        order: indices into `needed` of the wanted positions, in the order wanted.
    """

    def __init__(self, positions: Int64[np.ndarray, " local"]):
        """The positions that are wanted, in the order wanted."""
        self.needed = np.union1d(positions, np.maximum(positions - 1, 0))
        self.order = _as_slice(np.searchsorted(self.needed, positions))
        gap = np.flatnonzero(np.diff(self.needed) > _NEAR)
        self._first, self._stop = self.needed[np.append(0, gap + 1)], self.needed[np.append(gap, -1)] + 1

    def cut(
        self, first: Int64[np.ndarray, " pieces"], stop: Int64[np.ndarray, " pieces"]
    ) -> tuple[Int64[np.ndarray, " parts"], Int64[np.ndarray, " parts"], Int64[np.ndarray, " parts"]]:
        """The needed parts of pieces that fill the positions `first` to `stop` of a row.

        A piece is cut at every long gap between needed positions, which `zigzag` has and `striped` on a long ring; so
        it becomes no, one, or several parts. The first and the last step of each part are needed.

        Returns:
            For every part, in the pieces' order, the index of its piece, and the positions of the part's first step and
            of the step after its last.
        """
        low, high = np.searchsorted(self._stop, first, "right"), np.searchsorted(self._first, stop)
        count = np.maximum(high - low, 0)
        piece = np.repeat(np.arange(len(first)), count)
        run = np.arange(len(piece)) + np.repeat(low - np.cumsum(count) + count, count)
        bounds = np.stack([np.maximum(first[piece], self._first[run]), np.minimum(stop[piece], self._stop[run])])
        edge = np.searchsorted(self.needed, bounds)
        some = edge[1] > edge[0]
        return piece[some], self.needed[edge[0, some]], self.needed[edge[1, some] - 1] + 1


@dataclass(frozen=True, eq=False)
class StepPlacement:
    """Where each step of a chain goes.

    Attributes:
        row: the row's index in the batch.
        position: the step's position in the row.
        segment: the segment's number in the row, from 1 on.
        segment_first: the position in the row at which the segment begins.
        trial: index of the step's trajectory within its segment.
    """

    row: Int64[np.ndarray, " steps"]
    position: Int64[np.ndarray, " steps"]
    segment: Int64[np.ndarray, " steps"]
    segment_first: Int64[np.ndarray, " steps"]
    trial: Int64[np.ndarray, " steps"]


def assemble(
    chain: Chain,
    to: StepPlacement,
    rows: int,
    local: LocalPositions,
    normalizer: Normalizer,
    label: Float32[np.ndarray, "steps action"] | None = None,
    parameter: Float32[np.ndarray, "steps parameters"] | None = None,
) -> Batch:
    """The batch of `rows` rows and the wanted positions: each step of `chain` where `to` says, 0 elsewhere.

    With a `label` for each step of the chain it is a `LabelledBatch`, with a `parameter` too a `MemberBatch`.
    """
    width = len(local.needed)
    slot = np.searchsorted(local.needed, to.position)
    here = _as_slice(np.flatnonzero(local.needed[np.minimum(slot, width - 1)] == to.position))
    index = _as_slice(to.row[here] * width + slot[here])

    scatter = partial(_scatter, here=here, index=index, rows=rows, width=width)
    steps = {
        "observation": normalizer.normalize_observation(chain.observation),
        "action": chain.action,
        "reward": chain.reward / np.float32(normalizer.reward_scale),
        "return_to_go": chain.return_to_go / np.float32(normalizer.return_scale),
        "completion": chain.completion,
        "step": chain.step,
        "trial": to.trial.astype(np.int32),
        "position": (to.position - to.segment_first).astype(np.int32),
        "segment_ids": to.segment.astype(np.int32),
        "weight": np.ones(len(to.row), np.float32),
    }
    arrays = link_previous({name: scatter(values) for name, values in steps.items()})
    more = {name: x for name, x in (("label", label), ("parameter", parameter)) if x is not None}
    arrays |= {name: scatter(values) for name, values in more.items()}
    kind = (Batch, LabelledBatch, MemberBatch)[len(more)]
    return kind(**{name: array[:, local.order] for name, array in arrays.items()})


def _scatter(values: np.ndarray, *, here: _Index, index: _Index, rows: int, width: int) -> np.ndarray:
    """Rows of `width` positions with values[here] at `index`, counted over all rows, and 0 elsewhere."""
    out = np.zeros((rows * width, *values.shape[1:]), values.dtype)
    out[index] = values[here]
    return out.reshape(rows, width, *values.shape[1:])


def _as_slice(index: Int64[np.ndarray, " n"]) -> _Index:
    """An index of consecutive numbers as a slice, with which arrays are copied much faster; any other as it is."""
    if len(index) and index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
        return slice(int(index[0]), int(index[-1]) + 1)
    return index
