"""A store and a context sampler -> batches: deterministic, read ahead of time, and resumable in constant time.

The batch of step s of a run depends on (seed, s) alone. So a run that is stopped at any step continues with the batches
of the uninterrupted run, and every process of a pod draws the same rows and reads only its shard of the steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import grain
import numpy as np
from jaxtyping import Float32, Int32, Int64

from ringrl.batch import Batch, Chain, ContextPlan, LabelSource
from ringrl.errors import UserError
from ringrl.sampling.batches import LocalPositions, StepPlacement, assemble
from ringrl.sampling.chains import EpisodeReader, agent_steps, build_chain
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.packing import Packing, one_a_row, pack_first
from ringrl.sampling.samplers import ContextSampler

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
    rows: Int64[np.ndarray, " rows"] | None = None,
    positions: Int64[np.ndarray, " positions"] | None = None,
    labels: LabelSource | None = None,
    members: bool = False,
    threads: int = 2,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """An endless stream of batches, read ahead of time by background threads.

    Args:
        store: where the episodes are.
        sampler: draws the contexts. All plans have a horizon, the same, or none has.
        task: whose rewards.
        normalizer: the data set's scales.
        batch: rows in a batch, over all processes.
        steps: agent steps in a row, over all processes.
        seed: fixes every batch, together with the batch's index.
        start_step: index of the first batch to give; resuming at step s costs nothing more than starting.
        action_repeat: environment steps in an agent step.
        packing: whether rows contain as many chains as fit (`ringrl.sampling.packing`), as their segments 1, 2, ...;
            else one each.
        rows: indices of the rows that are wanted here; None: all.
        positions: positions of the row that are wanted here, in the order wanted; None: all. Only these steps are read,
            and the one before each; short gaps between them are read too, and with a horizon the steps within it.
        labels: the action of another policy at each step; batches are then `ringrl.batch.LabelledBatch`. It is called
            with the steps that are read here, whose observations are not normalised, by several threads. Or
            "demonstrator": the store's.
        members: whether the labelled batches are `ringrl.batch.MemberBatch`, with the member that pays each step; where
            none does, with 0 parameters.
        threads: batches made at the same time.
        prefetch: batches kept ready.

    Returns:
        An iterator over the wanted part of every batch, [rows, positions, ...]. Closing it (or dropping it) stops its
        threads. A chain that does not fit its row raises UserError from `next`.
    """
    rows = np.arange(batch, dtype=np.int64) if rows is None else rows
    local = LocalPositions(np.arange(steps, dtype=np.int64) if positions is None else positions)
    draw = _BatchSampler(sampler, seed, batch, steps, action_repeat, packing, rows)
    read = _BatchReader(store, task, normalizer, action_repeat, len(rows), draw, local, labels, members)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return closing_at_end(iter(grain.MapDataset.range(start_step, ROWS).map(read).to_iter_dataset(options)))


def batch_episodes(
    sampler: ContextSampler, *, seed: int, step: int, batch: int, steps: int, action_repeat: int, packing: bool
) -> Int64[np.ndarray, " pieces"]:
    """The episode of each piece of the contexts in batch `step` of a loader with these settings; nothing is read."""
    rows = np.arange(batch, dtype=np.int64)
    return _BatchSampler(sampler, seed, batch, steps, action_repeat, packing, rows)(step).plan.episode


def row_segments(
    sampler: ContextSampler, *, seed: int, batch: int, rows: int, steps: int, action_repeat: int, packing: bool
) -> Int32[np.ndarray, "rows steps"]:
    """Segment ids of the first rows of a loader with these settings, as `ringrl.batch.Batch` has; nothing is read."""
    wanted = np.arange(rows, dtype=np.int64)
    pieces = _BatchSampler(sampler, seed, batch, steps, action_repeat, packing, wanted)(0)
    segments = np.zeros((rows, steps), np.int32)
    for row, first, count, segment in zip(
        pieces.row, pieces.first, agent_steps(pieces.plan, action_repeat), pieces.segment, strict=True
    ):
        segments[row, first : first + count] = segment
    return segments


def closing_at_end(iterator: grain.DatasetIterator) -> Iterator[Any]:
    """What `iterator` gives; when this is closed or dropped, the iterator's threads end."""
    try:
        yield from iterator
    finally:
        iterator.close()


@dataclass(frozen=True, eq=False)
class _PlacedPieces:
    """Pieces of episodes, and where in a batch each goes."""

    plan: ContextPlan
    row: Int64[np.ndarray, " pieces"]  # index among the rows that are wanted here
    first: Int64[np.ndarray, " pieces"]  # the row position of the piece's first agent step
    segment: Int64[np.ndarray, " pieces"]
    segment_first: Int64[np.ndarray, " pieces"]  # the row position at which the segment begins
    trial: Int64[np.ndarray, " pieces"]  # the piece's index in its chain


@dataclass(frozen=True, eq=False)
class _BatchSampler:
    """Index of a batch -> the contexts in the rows that are wanted here, and their positions. Nothing is read."""

    sampler: ContextSampler
    seed: int
    batch: int
    steps: int
    action_repeat: int
    packing: bool
    rows: Int64[np.ndarray, " rows"]

    def __call__(self, step: int) -> _PlacedPieces:
        if self.packing:
            plans, packing = self._packed(step)
        else:
            plans = [self.sampler.sample(self._generator(step, int(row))) for row in self.rows]
            packing = one_a_row([self._length(plan) for plan in plans], self.steps)
        return self._pieces(plans, packing)

    def _packed(self, step: int) -> tuple[list[ContextPlan], Packing]:
        """All contexts of the batch, drawn one after the other, and of their packing the rows that are wanted here."""
        plans: list[ContextPlan] = []
        whole = pack_first(partial(self._draw, plans, self._generator(step)), self.batch, self.steps)
        local = np.full(self.batch, -1)
        local[self.rows] = np.arange(len(self.rows))
        mine = np.flatnonzero(local[whole.row] >= 0)
        return [plans[chain] for chain in mine], Packing(local[whole.row[mine]], whole.first[mine], whole.segment[mine])

    def _draw(self, plans: list[ContextPlan], generator: np.random.Generator) -> int:
        """One more plan; returns the agent steps of its context."""
        plans.append(self.sampler.sample(generator))
        return self._length(plans[-1])

    def _generator(self, *index: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, *index]))

    def _length(self, plan: ContextPlan) -> int:
        return int(agent_steps(plan, self.action_repeat).sum())

    def _pieces(self, plans: list[ContextPlan], packing: Packing) -> _PlacedPieces:
        counts = [agent_steps(plan, self.action_repeat) for plan in plans]
        pieces = [len(count) for count in counts]
        begin = np.repeat(packing.first, pieces)
        return _PlacedPieces(
            plan=_joined(plans),
            row=np.repeat(packing.row, pieces),
            first=begin + np.concatenate([np.cumsum(count) - count for count in counts]),
            segment=np.repeat(packing.segment, pieces),
            segment_first=begin,
            trial=np.concatenate([np.arange(n) for n in pieces]),
        )


def _joined(plans: list[ContextPlan]) -> ContextPlan:
    """The pieces of all plans, in order, as one plan. UserError where their horizons differ."""
    horizons = {plan.horizon for plan in plans}
    if len(horizons) > 1:
        raise UserError(f"contexts of one batch have the horizons {horizons}; a context sampler gives all the same")
    relabelled = plans[0].parameter is not None
    arrays = [each.name for each in fields(ContextPlan) if each.name not in ("horizon", "parameter")]
    arrays += ["parameter"] if relabelled else []
    joined = {name: np.concatenate([getattr(plan, name) for plan in plans]) for name in arrays}
    return ContextPlan(**joined, horizon=horizons.pop())


@dataclass(frozen=True, eq=False)
class _BatchReader:
    """Index of a batch -> the part of it that is wanted here."""

    store: EpisodeReader
    task: str
    normalizer: Normalizer
    action_repeat: int
    rows: int
    draw: _BatchSampler
    local: LocalPositions
    labels: LabelSource | None
    members: bool

    def __call__(self, step: int) -> Batch:
        pieces = self._needed(self.draw(int(step)))
        shown = self.labels == "demonstrator"
        chain = build_chain(self.store, pieces.plan, self.task, action_repeat=self.action_repeat, demonstrator=shown)
        count = agent_steps(pieces.plan, self.action_repeat)
        inside = np.arange(chain.length) - np.repeat(np.cumsum(count) - count, count)
        to = StepPlacement(
            row=pieces.row[chain.trial],
            position=pieces.first[chain.trial] + inside,
            segment=pieces.segment[chain.trial],
            segment_first=pieces.segment_first[chain.trial],
            trial=pieces.trial[chain.trial],
        )
        label, parameter = self._label(chain, pieces.plan), None
        if self.members:
            paid = pieces.plan.parameter
            parameter = np.zeros((chain.length, 0), np.float32) if paid is None else paid[chain.trial]
        return assemble(chain, to, self.rows, self.local, self.normalizer, label, parameter)

    def _label(self, chain: Chain, plan: ContextPlan) -> Float32[np.ndarray, "steps action"] | None:
        if self.labels is None or self.labels == "demonstrator":
            return chain.demonstrator
        return self.labels(chain, None if plan.parameter is None else plan.parameter[chain.trial])

    def _needed(self, pieces: _PlacedPieces) -> _PlacedPieces:
        """The parts of the pieces that are needed here, each piece cut at long gaps."""
        plan, repeat = pieces.plan, self.action_repeat
        piece, first, stop = self.local.cut(pieces.first, pieces.first + agent_steps(plan, repeat))
        if not len(piece):  # a shard may be all padding; the shapes come from one step
            piece, first, stop = np.zeros(1, np.int64), pieces.first[:1], pieces.first[:1] + 1
        skip = first - pieces.first[piece]
        begin = plan.start[piece] + skip * repeat
        end = np.minimum(begin + (stop - first) * repeat, plan.stop[piece])
        return _PlacedPieces(
            plan=replace(
                plan,
                episode=plan.episode[piece],
                start=begin,
                stop=end,
                target=plan.target[piece],
                completed=plan.completed[piece],
                parameter=None if plan.parameter is None else plan.parameter[piece],
            ),
            row=pieces.row[piece],
            first=first,
            segment=pieces.segment[piece],
            segment_first=pieces.segment_first[piece],
            trial=pieces.trial[piece],
        )
