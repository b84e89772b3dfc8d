"""Chains joined along time -> the arrays of a batch: each step to its place, normalised, the places in ring order."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Int64

from ringrl.attention.layout import to_ring_order
from ringrl.batch import Batch, Chain
from ringrl.errors import UserError
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.packing import Packing, one_a_row


def pad_batch(
    chains: Sequence[Chain],
    length: int,
    normalizer: Normalizer,
    *,
    packing: Packing | None = None,
    ring_size: int = 1,
    layout: str = "contiguous",
) -> Batch:
    """Chains as rows of one length: normalised, packed, padded with segment 0, and put in ring order.

    Args:
        chains: what the rows hold.
        length: steps in a row.
        normalizer: the data set's scales.
        packing: where each chain stands; None: one a row.
        ring_size: devices on the ring.
        layout: which device holds which steps; see `ringrl.attention.layout`.

    Raises:
        UserError: a chain is longer than `length`, or the length cannot be spread over the ring.
    """
    counts = [chain.length for chain in chains]
    packing = packing or one_a_row(counts, length)
    joined = Chain(**{f.name: np.concatenate([getattr(each, f.name) for each in chains]) for f in fields(Chain)})
    steps = StepPlacement(
        row=np.repeat(packing.row, counts),
        place=np.concatenate([np.arange(n) + first for n, first in zip(counts, packing.first.tolist(), strict=True)]),
        segment=np.repeat(packing.segment, counts),
        segment_first=np.repeat(packing.first, counts),
        trial=joined.trial.astype(np.int64),
    )
    positions = ring_order(length, ring_size, layout)
    return assemble(joined, steps, int(packing.row.max()) + 1, LocalPositions(positions), normalizer)


def ring_order(length: int, ring_size: int, layout: str) -> Int64[np.ndarray, " length"]:
    """Position in the row of every step in ring order."""
    try:
        return to_ring_order(np.arange(length, dtype=np.int64), ring_size, layout, axis=0)
    except ValueError as error:
        raise UserError(f"rows of {length} steps: {error}") from error


def _run(index: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"] | slice:
    """An index of consecutive places as a slice, with which arrays are copied much faster; any other as it is."""
    if len(index) and index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


_NEAR = 250
"""Steps between two runs of held places that are read rather than left out: a store's chunk has no fewer."""


class LocalPositions:
    """The places of a row that are held here.

    Attributes:
        seen: positions in the row of the steps held here and of the ones before them, ascending: a step shows what the
            one before it did.
        order: where in `seen` the steps held here are, in their order.
    """

    def __init__(self, positions: Int64[np.ndarray, " local"]):
        """The window of the steps at `positions` of a row, in the order in which this process holds them."""
        self.seen = np.union1d(positions, np.maximum(positions - 1, 0))
        self.order = _run(np.searchsorted(self.seen, positions))
        gap = np.flatnonzero(np.diff(self.seen) > _NEAR)
        self._first, self._stop = self.seen[np.append(0, gap + 1)], self.seen[np.append(gap, -1)] + 1

    def cut(
        self, first: Int64[np.ndarray, " pieces"], stop: Int64[np.ndarray, " pieces"]
    ) -> tuple[Int64[np.ndarray, " parts"], Int64[np.ndarray, " parts"], Int64[np.ndarray, " parts"]]:
        """What is seen of pieces that fill the positions `first` to `stop` of a row.

        A piece is cut at every long gap between places that are seen, which `zigzag` has and `striped` on a long ring;
        so it becomes no, one, or several parts. Each begins and ends with a step that is seen.

        Returns:
            For every part, in the pieces' order, the piece, and the positions of the part's first step and of its stop.
        """
        low, high = np.searchsorted(self._stop, first, "right"), np.searchsorted(self._first, stop)
        count = np.maximum(high - low, 0)
        piece = np.repeat(np.arange(len(first)), count)
        run = np.arange(len(piece)) + np.repeat(low - np.cumsum(count) + count, count)
        bounds = np.stack([np.maximum(first[piece], self._first[run]), np.minimum(stop[piece], self._stop[run])])
        edge = np.searchsorted(self.seen, bounds)
        some = edge[1] > edge[0]
        return piece[some], self.seen[edge[0, some]], self.seen[edge[1, some] - 1] + 1


@dataclass(frozen=True, eq=False)
class StepPlacement:
    """Where each step of a chain goes."""

    row: Int64[np.ndarray, " steps"]
    place: Int64[np.ndarray, " steps"]  # its position in the row
    segment: Int64[np.ndarray, " steps"]
    segment_first: Int64[np.ndarray, " steps"]
    trial: Int64[np.ndarray, " steps"]


def assemble(chain: Chain, to: StepPlacement, rows: int, window: LocalPositions, normalizer: Normalizer) -> Batch:
    """The batch's fields, [rows, places held here, ...]; 0 wherever no step goes."""
    width = len(window.seen)
    slot = np.searchsorted(window.seen, to.place)
    here = _run(np.flatnonzero(window.seen[np.minimum(slot, width - 1)] == to.place))
    index = _run(to.row[here] * width + slot[here])

    def spread(values: np.ndarray) -> np.ndarray:
        out = np.zeros((rows * width, *values.shape[1:]), values.dtype)
        out[index] = values[here]
        return out.reshape(rows, width, *values.shape[1:])

    position = spread((to.place - to.segment_first).astype(np.int32))

    def previous(x: np.ndarray) -> np.ndarray:
        shifted = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
        shifted[position == 0] = 0
        return shifted

    action, completion = spread(chain.action), spread(chain.completion)
    reward = spread(chain.reward / np.float32(normalizer.reward_scale))
    arrays = {
        "observation": spread(normalizer.normalize_observation(chain.observation)),
        "action": action,
        "reward": reward,
        "return_to_go": spread(chain.return_to_go / np.float32(normalizer.return_scale)),
        "completion": completion,
        "previous_action": previous(action),
        "previous_reward": previous(reward),
        "previous_completion": previous(completion),
        "step": spread(chain.step),
        "trial": spread(to.trial.astype(np.int32)),
        "position": position,
        "segment_ids": spread(to.segment.astype(np.int32)),
        "weight": spread(np.ones(len(to.row), np.float32)),
    }
    return Batch(**{name: array[:, window.order] for name, array in arrays.items()})
