"""Who acts in the same environments for comparison: at random, or knowing the task."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float32

from ringrl.envs import DMControlEnv, VectorEnv, make_env
from ringrl.rollout.session import Session


class RandomPolicy:
    """Uniform actions: the reference that scores are normalised by."""

    target = None

    def __init__(self, envs: int, action_size: int, seed: int, first: int = 0):
        """`first`: index of the first environment; an environment's draws depend on its index and the seed."""
        self._size, self._rngs = action_size, [np.random.default_rng((seed, first + env)) for env in range(envs)]

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to remember."""

    def act(self, observation: Float32[np.ndarray, "envs observation"]) -> Float32[np.ndarray, "envs action"]:
        """Uniform in [-1, 1]."""
        return np.stack([rng.uniform(-1.0, 1.0, self._size) for rng in self._rngs]).astype(np.float32)

    def observe(self, reward: Float32[np.ndarray, " envs"], done: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to learn."""

    def room(self) -> Bool[np.ndarray, " envs"]:
        """Always."""
        return np.ones(len(self._rngs), bool)


class ExpertPolicy:
    """The task's own `expert`, which sees the physics state and the hidden task: a bound on what agents can earn."""

    target = None

    def __init__(self, envs: VectorEnv):
        self._envs = envs

    @staticmethod
    def knows(env: DMControlEnv) -> bool:
        """Whether the environment's task has one: a method `expert(physics)`, float64 [A] in [-1, 1]."""
        return hasattr(env.task, "expert")

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to remember."""

    def act(self, observation: Float32[np.ndarray, "envs observation"]) -> Float32[np.ndarray, "envs action"]:
        """Each expert's action in the environment's present physics state; `observation` is not used."""
        return self._envs.expert()

    def observe(self, reward: Float32[np.ndarray, " envs"], done: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to learn."""

    def room(self) -> Bool[np.ndarray, " envs"]:
        """Always."""
        return np.ones(self._envs.num_envs, bool)


def references(task: str, seed: int) -> dict[str, Callable[[VectorEnv, int], Session]]:
    """By name, who acts in the same environments for comparison: `random` and, where the task has one, `expert`.

    Args:
        task: its id.
        seed: of the random actions.

    Returns:
        Functions of the environments and the index of the first of them.
    """
    env = make_env(task)
    observation, action = (math.prod(space.shape or ()) for space in (env.observation_space, env.action_space))
    knows = ExpertPolicy.knows(env)
    env.close()

    def chance(envs: VectorEnv, first: int) -> Session:
        return Session(RandomPolicy(envs.num_envs, action, seed, first), envs.num_envs, observation, batched=True)

    def expert(envs: VectorEnv, first: int) -> Session:
        return Session(ExpertPolicy(envs), envs.num_envs, observation, batched=True)

    return {"random": chance, "expert": expert} if knows else {"random": chance}
