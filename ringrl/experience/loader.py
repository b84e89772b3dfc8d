"""Chains -> batches: normalised, padded or packed, in ring order, deterministic, and resumable in constant time.

Row r of step s of a run depends on (seed, s, r) alone. So a run that is stopped at any step continues with the batches
that it would have seen, and every process of a pod draws the same rows and reads only the trajectories that it holds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Float32, Int64

from ringrl.attention.layout import to_ring_order
from ringrl.episode import Batch, Chain, ChainPlan
from ringrl.errors import UserError
from ringrl.experience.chain import Planner
from ringrl.experience.normalizer import Normalizer
from ringrl.experience.reader import EpisodeReader, build_chain, decisions

__all__ = ["Normalizer", "make_loader", "pad_batch"]

ROWS = 1 << 62
"""The loader's length in rows: it never ends, but Grain's data sets have a length."""


def pad_batch(
    chains: Sequence[Chain],
    length: int,
    normalizer: Normalizer,
    *,
    chains_per_row: int = 1,
    ring_size: int = 1,
    layout: str = "contiguous",
) -> Batch:
    """Chains as rows of one length: normalised, packed, padded with segment 0, and put in ring order.

    Args:
        chains: as many as there are rows, times `chains_per_row`.
        length: steps in a row.
        normalizer: the data set's scales.
        chains_per_row: consecutive chains that share a row, as its segments 1, 2, ...
        ring_size: devices on the ring.
        layout: which device holds which steps; see `ringrl.attention.layout`.

    Raises:
        UserError: a row's chains are longer than `length`, chains do not fill the last row, or the length cannot be
            spread over the ring.
    """
    if len(chains) % chains_per_row:
        raise UserError(f"{len(chains)} chains do not make whole rows of chains_per_row={chains_per_row}")
    order = ring_order(length, ring_size, layout)
    groups = [chains[first : first + chains_per_row] for first in range(0, len(chains), chains_per_row)]
    rows = [_row(group, length, normalizer) for group in groups]
    return Batch(**{name: np.stack([row[name] for row in rows])[:, order] for name in rows[0]})


def make_loader(
    store: EpisodeReader,
    planner: Planner,
    task: str,
    normalizer: Normalizer,
    *,
    batch: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    action_repeat: int = 1,
    chains_per_row: int = 1,
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
        planner: draws the chains.
        task: whose rewards.
        normalizer: the data set's scales.
        batch: rows in a batch, over all processes.
        steps: decisions in a row, over all processes.
        seed: fixes every batch, together with the batch's index.
        start_step: index of the first batch to give; resuming at step s costs nothing more than starting.
        action_repeat: environment steps in a decision.
        chains_per_row: chains packed into a row, as its segments 1, 2, ...
        ring_size: devices on the ring.
        layout: which device holds which steps; see `ringrl.attention.layout`.
        rows: which rows of a batch this process wants; None: all.
        places: which places of a row, counted in ring order, this process wants; None: all. Only trajectories that
            reach into one of them are read.
        threads: rows read at the same time.
        prefetch: batches held ready.

    Returns:
        An iterator of this process's part of the batches.
        Closing it (or dropping it) stops its threads. A chain that does not fit its row raises UserError from `next`.

    Raises:
        UserError: the steps do not divide as the ring needs.
    """
    positions = ring_order(steps, ring_size, layout)[slice(None) if places is None else places]
    rows = np.arange(batch, dtype=np.int64) if rows is None else rows
    reader = _RowReader(store, planner, task, normalizer, seed, rows, steps, action_repeat, chains_per_row, positions)
    dataset = grain.MapDataset.range(start_step * len(rows), ROWS).map(reader)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch * len(rows))
    return _batches(dataset.to_iter_dataset(options).batch(len(rows), drop_remainder=True))


def _batches(dataset: grain.IterDataset) -> Iterator[Batch]:
    iterator = iter(dataset)
    try:
        for arrays in iterator:
            yield Batch(**arrays)
    finally:
        iterator.close()


@dataclass(frozen=True, eq=False)
class _RowReader:
    """Element i of the data set: row i of this process, counted through all batches."""

    store: EpisodeReader
    planner: Planner
    task: str
    normalizer: Normalizer
    seed: int
    rows: Int64[np.ndarray, " rows"]  # of every batch, that this process holds
    steps: int
    action_repeat: int
    chains_per_row: int
    positions: Int64[np.ndarray, " local"]  # positions in the row of the steps that this process holds, in its order

    @cached_property
    def _seen(self) -> Int64[np.ndarray, " seen"]:
        """Positions that the steps held here show anything of, ascending: a step shows what the one before it did."""
        return np.union1d(self.positions, self.positions - 1)

    def __call__(self, element: int) -> dict[str, np.ndarray]:
        step, local = divmod(int(element), len(self.rows))
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, step, int(self.rows[local])]))
        chains, offset = [], 0
        for _ in range(self.chains_per_row):
            plan = self.planner.plan(rng)
            chains.append(self._read(plan, offset))
            offset += chains[-1].length
        arrays = _row(chains, self.steps, self.normalizer)
        return {name: array[self.positions] for name, array in arrays.items()}

    def _read(self, plan: ChainPlan, offset: int) -> Chain:
        """The chain that begins `offset` steps into the row; what this process does not hold of it may be zero."""
        count = decisions(plan, self.action_repeat)
        edges = np.searchsorted(self._seen, offset + np.append(0, np.cumsum(count)))
        needed = edges[1:] > edges[:-1]
        if needed.all():
            return build_chain(self.store, plan, self.task, action_repeat=self.action_repeat)
        needed[0] |= not needed.any()  # one trajectory at least: it tells the shapes
        chosen = ChainPlan(**{field.name: getattr(plan, field.name)[needed] for field in fields(ChainPlan)})
        part = build_chain(self.store, chosen, self.task, action_repeat=self.action_repeat)
        return _among_zeros(part, np.repeat(needed, count), np.repeat(np.arange(len(count)), count))


def _among_zeros(part: Chain, present: Bool[np.ndarray, " steps"], trial: Int64[np.ndarray, " steps"]) -> Chain:
    """A chain of which only the steps `present` were read."""
    whole = {}
    for field in fields(Chain):
        values = getattr(part, field.name)
        whole[field.name] = np.zeros((len(present), *values.shape[1:]), values.dtype)
        whole[field.name][present] = values
    return Chain(**(whole | {"trial": trial.astype(np.int32)}))


def ring_order(length: int, ring_size: int, layout: str) -> Int64[np.ndarray, " length"]:
    """Position in the row of every step in ring order."""
    try:
        return to_ring_order(np.arange(length, dtype=np.int64), ring_size, layout, axis=0)
    except ValueError as error:
        raise UserError(f"rows of {length} steps: {error}") from error


def _row(chains: Sequence[Chain], length: int, normalizer: Normalizer) -> dict[str, np.ndarray]:
    """One row in the order of time: the fields of `Batch` without the batch axis."""
    counts = [chain.length for chain in chains]
    if sum(counts) > length:
        raise UserError(
            f"a row of {length} steps is too short for {' + '.join(map(str, counts))} = {sum(counts)} steps; "
            f"make rows of at least {sum(counts)} steps or chains of fewer trajectories"
        )

    def padded(parts: Sequence[np.ndarray]) -> Any:
        filler = np.zeros((length - sum(counts), *parts[0].shape[1:]), parts[0].dtype)
        return np.concatenate([*parts, filler])

    reward = [chain.reward / np.float32(normalizer.reward_scale) for chain in chains]
    return {
        "observation": padded([normalizer.normalize_observation(chain.observation) for chain in chains]),
        "action": padded([chain.action for chain in chains]),
        "reward": padded(reward),
        "return_to_go": padded([chain.return_to_go / np.float32(normalizer.return_scale) for chain in chains]),
        "completion": padded([chain.completion for chain in chains]),
        "previous_action": padded([_shifted(chain.action) for chain in chains]),
        "previous_reward": padded([_shifted(each) for each in reward]),
        "previous_completion": padded([_shifted(chain.completion) for chain in chains]),
        "step": padded([chain.step for chain in chains]),
        "trial": padded([chain.trial for chain in chains]),
        "position": padded([np.arange(n, dtype=np.int32) for n in counts]),
        "segment_ids": padded([np.full(n, i, np.int32) for i, n in enumerate(counts, start=1)]),
        "weight": padded([np.ones(n, np.float32) for n in counts]),
    }


def _shifted(x: Float32[np.ndarray, "steps ..."]) -> Float32[np.ndarray, "steps ..."]:
    """Each step's predecessor; 0 at the first."""
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])
