"""Stores in memory, and what tests of sampling read from them and measure with."""

from collections.abc import Sequence

import numpy as np

from ringrl.batch import ContextPlan
from ringrl.episode import StepSpan
from ringrl.sampling.normalizer import Normalizer


class MemoryStore:
    """Random episodes of two observation and one action dimension; it records the spans that are read."""

    def __init__(self, lengths: list[int], seed: int = 0):
        rng = np.random.default_rng(seed)
        self.lengths = np.array(lengths, np.int64)
        self.observation = [rng.normal(3, 2, (n, 2)).astype(np.float32) for n in lengths]
        self.action = [rng.uniform(-1, 1, (n, 1)).astype(np.float32) for n in lengths]
        self.reward = [rng.uniform(0, 1, n).astype(np.float32) for n in lengths]
        self.spans: list[tuple[int, int, int]] = []

    def returns(self, task: str) -> np.ndarray:
        return np.array([each.sum(dtype=np.float64) for each in self.reward])

    def read_many(self, spans: Sequence[tuple[int, int, int]], task: str) -> list[StepSpan]:
        self.spans.extend(spans)
        return [
            StepSpan(
                observation=np.concatenate([self.observation[e][a:b], np.full((1, 2), np.nan, np.float32)]),
                action=self.action[e][a:b],
                reward=self.reward[e][a:b],
                discount=np.ones(b - a, np.float32),
                earlier=self.reward[e][:a],
            )
            for e, a, b in spans
        ]


def unit_normalizer(**changes) -> Normalizer:
    values = {
        "observation_mean": np.zeros(2, np.float32),
        "observation_std": np.ones(2, np.float32),
        "return_scale": 1.0,
        "reward_scale": 1.0,
    }
    return Normalizer(**(values | changes))


class NumberedStore:
    """Episodes in memory; rewards are given, observation and action tell which step of which episode they are."""

    def __init__(self, rewards: list[list[float]]):
        self.rewards = [np.array(each, np.float32) for each in rewards]
        self.lengths = np.array([len(each) for each in rewards], np.int64)
        self.spans: list[tuple[int, int, int]] = []

    def returns(self, task: str) -> np.ndarray:
        return np.array([each.sum() for each in self.rewards], np.float64)

    def read_many(self, spans: Sequence[tuple[int, int, int]], task: str) -> list[StepSpan]:
        self.spans.extend(spans)
        return [self._steps(*span) for span in spans]

    def _steps(self, episode: int, start: int, stop: int) -> StepSpan:
        step = np.arange(start, stop + 1, dtype=np.float32)
        return StepSpan(
            observation=np.stack([np.full_like(step, episode), step], axis=1),
            action=step[:-1, None] / 10,
            reward=self.rewards[episode][start:stop],
            discount=np.ones(stop - start, np.float32),
            earlier=self.rewards[episode][:start],
        )


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def plan(episode, start, stop, target, completed, horizon=None) -> ContextPlan:
    return ContextPlan(ints(*episode), ints(*start), ints(*stop), floats(*target), np.array(completed), horizon)
