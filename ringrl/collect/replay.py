"""Transitions of whole episodes, and minibatches of them."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int64


class Transitions(NamedTuple):
    """Minibatches for a learner; a leading axis `updates` is of minibatches, one for each gradient step."""

    observation: Float32[Array, "*updates batch observation"]
    action: Float32[Array, "*updates batch action"]  # in [-1, 1]
    reward: Float32[Array, "*updates batch"]  # the n-step sum of discounted rewards
    discount: Float32[Array, "*updates batch"]  # of the value of `next_observation`: gamma^n, or 0 at a real end
    next_observation: Float32[Array, "*updates batch observation"]


class Replay:
    """A replay buffer of transitions in NumPy arrays: when it is full, new ones overwrite the oldest.

    Attributes:
        size: the transitions stored.
        batch: transitions in a minibatch.
        gamma: discount factor of one agent step.
        n_step: rewards summed before the bootstrap.
    """

    def __init__(
        self, capacity: int, observation_size: int, action_size: int, *, batch: int, gamma: float, n_step: int
    ) -> None:
        """An empty replay.

        Args:
            capacity: transitions that can be stored.
            observation_size: width of an observation.
            action_size: width of an action.
            batch: transitions in a minibatch.
            gamma: discount factor of one agent step.
            n_step: rewards summed before the bootstrap.
        """
        self.size, self._next, self.batch = 0, 0, batch
        self._capacity, self.gamma, self.n_step = capacity, np.float32(gamma), n_step
        shapes = ((observation_size,), (action_size,), (), (), (observation_size,))
        self._rows = tuple(np.zeros((capacity, *shape), np.float32) for shape in shapes)

    def add_episode(
        self,
        observation: Float32[np.ndarray, "agent_steps_plus_1 observation"],
        action: Float32[np.ndarray, "agent_steps action"],
        reward: Float32[np.ndarray, " agent_steps"],
        discount: Float32[np.ndarray, " agent_steps"],
    ) -> None:
        """Store an episode as n-step transitions (Sutton & Barto 2018, section 7.1).

        From step t: r = sum over k < n of gamma^k r_{t+k}, discount gamma^n (0 at a real end), next observation
        o_{t+n}. Near the end of the episode they are shorter, and none crosses into the next episode.

        Args:
            observation: the observations before each agent step, and the last one.
            action: in [-1, 1].
            reward: the sum over the environment steps of each agent step.
            discount: the environment's, 0 where the episode really ended; gamma is applied here.
        """
        n_reward, n_discount = reward.copy(), self.gamma * discount
        successor = np.arange(1, len(action) + 1)
        for k in range(1, self.n_step):
            longer = slice(max(len(action) - k, 0))  # the transitions that have a k-th further step
            n_reward[longer] += n_discount[longer] * reward[k:]
            n_discount[longer] *= self.gamma * discount[k:]
            successor[longer] += 1
        where = (self._next + np.arange(len(action))) % self._capacity
        new = (observation[:-1], action, n_reward, n_discount, observation[successor])
        for stored, rows in zip(self._rows, new, strict=True):
            stored[where] = rows
        self._next = (self._next + len(action)) % self._capacity
        self.size = min(self.size + len(action), self._capacity)

    def sample(self, updates: int, rng: np.random.Generator) -> Transitions:
        """`updates` minibatches, uniform with replacement, on JAX's default device."""
        return self._take(rng.integers(self.size, size=(updates, self.batch)))

    def sample_steps(self, start: int, stop: int, seed: int) -> Transitions:
        """The minibatches of the gradient steps `start:stop`, drawn as by `sample`, each a function of (seed, step)."""
        return self._take(np.stack([self.drawn(step, seed) for step in range(start, stop)]))

    def drawn(self, step: int, seed: int) -> Int64[np.ndarray, " batch"]:
        """The rows in the minibatch that `sample_steps` gives of gradient step `step`."""
        return np.random.default_rng((seed, step)).integers(self.size, size=self.batch)

    def state(self) -> dict[str, np.ndarray]:
        """All that is stored, for `restore`."""
        return {"next": np.asarray(self._next)} | {str(i): rows[: self.size] for i, rows in enumerate(self._rows)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Store what `state` gave, in a replay that is empty and of the same capacity."""
        self._next, self.size = int(state["next"]), len(state["0"])
        for index, rows in enumerate(self._rows):
            rows[: self.size] = state[str(index)]

    def take(self, index: Int64[np.ndarray, "*updates batch"]) -> tuple[np.ndarray, ...]:
        """The fields of `Transitions` in rows `index`, new NumPy arrays; rows are in the order of `add_episode`."""
        return tuple(rows[index] for rows in self._rows)

    def _take(self, index: Int64[np.ndarray, "updates batch"]) -> Transitions:
        return Transitions(*map(jnp.asarray, self.take(index)))
