"""The arrays of a batch, from chains whose numbers a reader can check."""

import numpy as np

from ringrl.batch import Batch, Chain
from ringrl.sampling.batches import LocalPositions, StepPlacement, assemble
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.packing import Packing, one_a_row
from tests.sampling.stores import unit_normalizer


def chain(*trials: int, first: float = 1) -> Chain:
    """A chain of trials of these lengths whose step number t, from `first` on, has action t / 100 and reward t."""
    step = np.concatenate([np.arange(n, dtype=np.int32) for n in trials])
    count = first + np.arange(len(step), dtype=np.float32)
    ends = np.zeros(len(step), np.float32)
    ends[np.cumsum(trials) - 1] = 1
    return Chain(
        observation=np.stack([count, -count], axis=1),
        action=count[:, None] / 100,
        reward=count,
        return_to_go=10 * count,
        completion=ends,
        step=step,
        trial=np.repeat(np.arange(len(trials), dtype=np.int32), trials),
    )


def batch_of(chains: list[Chain], length: int, normalizer: Normalizer, packing: Packing | None = None) -> Batch:
    """Chains as rows of one length: as `packing` says, or one a row."""
    counts = [each.length for each in chains]
    packing = packing or one_a_row(counts, length)
    there = [name for name, values in vars(chains[0]).items() if values is not None]
    joined = Chain(**{name: np.concatenate([getattr(each, name) for each in chains]) for name in there})
    to = StepPlacement(
        row=np.repeat(packing.row, counts),
        position=np.concatenate([np.arange(n) + first for n, first in zip(counts, packing.first, strict=True)]),
        segment=np.repeat(packing.segment, counts),
        segment_first=np.repeat(packing.first, counts),
        trial=joined.trial.astype(np.int64),
    )
    return assemble(joined, to, int(packing.row.max()) + 1, LocalPositions(np.arange(length)), normalizer)


def test_a_padded_row_of_two_trials():
    batch = batch_of([chain(2, 3)], 7, unit_normalizer(reward_scale=2.0, return_scale=10.0))
    assert batch.reward[0].tolist() == [0.5, 1, 1.5, 2, 2.5, 0, 0]
    # The first step of trial 1 does not see the last reward and the completion of trial 0.
    assert batch.previous_reward[0].tolist() == [0, 0.5, 0, 1.5, 2, 0, 0]
    assert batch.previous_completion[0].tolist() == [0] * 7
    assert batch.completion[0].tolist() == [0, 1, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(batch.previous_action[0, :, 0], [0, 0.01, 0, 0.03, 0.04, 0, 0], rtol=1e-6)
    assert batch.return_to_go[0].tolist() == [1, 2, 3, 4, 5, 0, 0]
    assert batch.step[0].tolist() == [0, 1, 0, 1, 2, 0, 0]
    assert batch.trial[0].tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert batch.position[0].tolist() == [0, 1, 2, 3, 4, 0, 0]
    assert batch.segment_ids[0].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert batch.weight[0].tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_packed_chains_do_not_see_each_other():
    chains = [chain(2), chain(3, first=5), chain(1), chain(4)]
    packing = Packing(np.array([0, 0, 1, 1]), np.array([0, 2, 0, 1]), np.array([1, 2, 1, 2]))
    batch = batch_of(chains, 6, unit_normalizer(), packing)
    assert batch.segment_ids.tolist() == [[1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 2, 0]]
    assert batch.position.tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 1, 2, 3, 0]]
    assert batch.step.tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 1, 2, 3, 0]]
    assert batch.previous_reward.tolist() == [[0, 1, 0, 5, 6, 0], [0, 0, 1, 2, 3, 0]]
    assert batch.previous_completion.tolist() == [[0] * 6, [0] * 6]
