"""Collectors that act at random: independent draws, or draws that last."""

import numpy as np
from jaxtyping import Float32

from ringrl.collect.correlated_noise import CorrelatedNoise
from ringrl.collect.record import AgentSteps
from ringrl.collect.unfinished import State


class RandomCollector:
    """Independent uniform actions."""

    def __init__(self, action_size: int, seed: int | list[int]) -> None:
        """`seed`: of the actions."""
        self._shape, self._rng = (action_size,), np.random.default_rng(seed)

    def act(self, observation: Float32[np.ndarray, " observation"]) -> Float32[np.ndarray, " action"]:
        """Uniform in [-1, 1], regardless of the observation."""
        return self._rng.uniform(-1.0, 1.0, self._shape).astype(np.float32)

    def learn(self, episode: AgentSteps) -> None:
        """Nothing is learned."""

    def state(self) -> State:
        """Of the draws."""
        return {"rng": self._rng.bit_generator.state}, {}

    def restore(self, state: State) -> None:
        """Draw what follows."""
        self._rng.bit_generator.state = state[0]["rng"]


class CorrelatedCollector:
    """Actions clip(scale z, -1, 1), z an autoregressive process begun anew in every episode."""

    def __init__(self, action_size: int, correlation: float, scale: float, seed: int | list[int]) -> None:
        """`correlation`: of an agent step's z and the next's. `scale`: z's deviation is 1. `seed`: of the actions."""
        self._size, self._correlation, self._scale = action_size, correlation, scale
        self._rng = np.random.default_rng(seed)
        self._begin()

    def _begin(self) -> None:
        self._before = self._rng.bit_generator.state
        self._noise = CorrelatedNoise(self._size, self._correlation, self._rng)

    def act(self, observation: Float32[np.ndarray, " observation"]) -> Float32[np.ndarray, " action"]:
        """The next of the process, regardless of the observation."""
        return np.clip(self._scale * self._noise.draw(), -1.0, 1.0).astype(np.float32)

    def learn(self, episode: AgentSteps) -> None:
        """Begin the process anew; nothing is learned."""
        self._begin()

    def state(self) -> State:
        """Of the draws, before the process that is begun."""
        return {"rng": self._before}, {}

    def restore(self, state: State) -> None:
        """Begin it again."""
        self._rng.bit_generator.state = state[0]["rng"]
        self._begin()
