"""Chains -> batches: normalised, padded or packed, in ring order, deterministic, and resumable in constant time.

The batch of step s of a run depends on (seed, s) alone. So a run that is stopped at any step continues with the batches
that it would have seen, and every process of a pod draws the same rows and reads only the steps that it holds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import grain
import numpy as np
from jaxtyping import Int64

from ringrl.batch import Batch, ContextPlan
from ringrl.sampling.batches import LocalPositions, StepPlacement, assemble, pad_batch, ring_order
from ringrl.sampling.chains import EpisodeReader, build_chain, decisions
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.packing import Packing, one_a_row, pack_first
from ringrl.sampling.samplers import ContextSampler

__all__ = ["Normalizer", "make_loader", "pad_batch", "ring_order"]

ROWS = 1 << 62
"""The loader's length: it never ends, but Grain's data sets have a length."""


def make_loader(
    store: EpisodeReader,
    sampler: ContextSampler,
    task: str,
    normalizer: Normalizer,
    *,
    batch: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    action_repeat: int = 1,
    packing: bool = False,
    ring_size: int = 1,
    layout: str = "contiguous",
    rows: Int64[np.ndarray, " rows"] | None = None,
    places: Int64[np.ndarray, " places"] | None = None,
    threads: int = 2,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """An endless stream of batches, read ahead of time by background threads.

    Args:
        store: where the episodes are.
        sampler: draws the chains; if it has a `horizon`, it is that of their returns-to-go (`build_chain`).
        task: whose rewards.
        normalizer: the data set's scales.
        batch: rows in a batch, over all processes.
        steps: decisions in a row, over all processes.
        seed: fixes every batch, together with the batch's index.
        start_step: index of the first batch to give; resuming at step s costs nothing more than starting.
        action_repeat: environment steps in a decision.
        packing: whether rows hold as many chains as fit (`ringrl.sampling.packing`), as their segments 1, 2, ...;
            else one each.
        ring_size: devices on the ring.
        layout: which device holds which steps; see `ringrl.attention.layout`.
        rows: which rows of a batch this process wants; None: all.
        places: which places of a row, counted in ring order, this process wants; None: all. Only what stands in them is
            read, and the step before; short gaps between them are read too, and with a horizon what lies within it.
        threads: batches made at the same time.
        prefetch: batches held ready.

    Returns:
        An iterator of this process's part of the batches.
        Closing it (or dropping it) stops its threads. A chain that does not fit its row raises UserError from `next`.

    Raises:
        UserError: the steps do not divide as the ring needs.
    """
    positions = ring_order(steps, ring_size, layout)[slice(None) if places is None else places]
    rows = np.arange(batch, dtype=np.int64) if rows is None else rows
    plan = _BatchPlanner(sampler, seed, batch, steps, action_repeat, packing, rows)
    horizon = getattr(sampler, "horizon", None)
    read = _BatchReader(store, task, normalizer, action_repeat, horizon, len(rows), plan, LocalPositions(positions))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return _closing(iter(grain.MapDataset.range(start_step, ROWS).map(read).to_iter_dataset(options)))


def _closing(iterator: grain.DatasetIterator) -> Iterator[Batch]:
    try:
        yield from iterator
    finally:
        iterator.close()


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Pieces of episodes, and where in a batch they stand."""

    plan: ContextPlan
    row: Int64[np.ndarray, " pieces"]  # counted among the rows that are held here
    first: Int64[np.ndarray, " pieces"]  # the position of the piece's first decision
    segment: Int64[np.ndarray, " pieces"]
    segment_first: Int64[np.ndarray, " pieces"]  # the position at which the segment begins
    trial: Int64[np.ndarray, " pieces"]  # the piece's number in its chain


@dataclass(frozen=True, eq=False)
class _BatchPlanner:
    """Step -> what stands where in the rows that this process holds. Nothing is read."""

    sampler: ContextSampler
    seed: int
    batch: int
    steps: int
    action_repeat: int
    packing: bool
    rows: Int64[np.ndarray, " rows"]

    def __call__(self, step: int) -> _Pieces:
        if self.packing:
            plans, packing = self._packed(step)
        else:
            plans = [self.sampler.sample(self._generator(step, int(row))) for row in self.rows]
            packing = one_a_row([self._length(plan) for plan in plans], self.steps)
        return self._pieces(plans, packing)

    def _packed(self, step: int) -> tuple[list[ContextPlan], Packing]:
        """All chains of the batch, drawn one after the other, and of their packing the rows that are held here."""
        plans, generator = [], self._generator(step)

        def draw() -> int:
            plans.append(self.sampler.sample(generator))
            return self._length(plans[-1])

        whole = pack_first(draw, self.batch, self.steps)
        local = np.full(self.batch, -1)
        local[self.rows] = np.arange(len(self.rows))
        held = np.flatnonzero(local[whole.row] >= 0)
        return [plans[chain] for chain in held], Packing(local[whole.row[held]], whole.first[held], whole.segment[held])

    def _generator(self, *index: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, *index]))

    def _length(self, plan: ContextPlan) -> int:
        return int(decisions(plan, self.action_repeat).sum())

    def _pieces(self, plans: list[ContextPlan], packing: Packing) -> _Pieces:
        counts = [decisions(plan, self.action_repeat) for plan in plans]
        pieces = [len(count) for count in counts]
        begin = np.repeat(packing.first, pieces)
        return _Pieces(
            plan=ContextPlan(
                **{f.name: np.concatenate([getattr(p, f.name) for p in plans]) for f in fields(ContextPlan)}
            ),
            row=np.repeat(packing.row, pieces),
            first=begin + np.concatenate([np.cumsum(count) - count for count in counts]),
            segment=np.repeat(packing.segment, pieces),
            segment_first=begin,
            trial=np.concatenate([np.arange(n) for n in pieces]),
        )


@dataclass(frozen=True, eq=False)
class _BatchReader:
    """Step -> this process's part of the batch."""

    store: EpisodeReader
    task: str
    normalizer: Normalizer
    action_repeat: int
    horizon: int | None
    rows: int
    plan: _BatchPlanner
    window: LocalPositions

    def __call__(self, step: int) -> Batch:
        pieces = self._seen(self.plan(int(step)))
        options = {"action_repeat": self.action_repeat, "horizon": self.horizon}
        chain = build_chain(self.store, pieces.plan, self.task, **options)
        count = decisions(pieces.plan, self.action_repeat)
        inside = np.arange(chain.length) - np.repeat(np.cumsum(count) - count, count)
        places = StepPlacement(
            row=pieces.row[chain.trial],
            place=pieces.first[chain.trial] + inside,
            segment=pieces.segment[chain.trial],
            segment_first=pieces.segment_first[chain.trial],
            trial=pieces.trial[chain.trial],
        )
        return assemble(chain, places, self.rows, self.window, self.normalizer)

    def _seen(self, pieces: _Pieces) -> _Pieces:
        """What is seen of the pieces here, each cut where a long gap is not."""
        plan, repeat = pieces.plan, self.action_repeat
        piece, first, stop = self.window.cut(pieces.first, pieces.first + decisions(plan, repeat))
        if not len(piece):  # a process may hold nothing but padding; one step tells it the shapes
            piece, first, stop = np.zeros(1, np.int64), pieces.first[:1], pieces.first[:1] + 1
        skip = first - pieces.first[piece]
        begin = plan.start[piece] + skip * repeat
        end = np.minimum(begin + (stop - first) * repeat, plan.stop[piece])
        return _Pieces(
            plan=ContextPlan(plan.episode[piece], begin, end, plan.target[piece], plan.completed[piece]),
            row=pieces.row[piece],
            first=first,
            segment=pieces.segment[piece],
            segment_first=pieces.segment_first[piece],
            trial=pieces.trial[piece],
        )
