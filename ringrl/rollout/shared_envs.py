"""The environments of a rollout by many processes: process 0 steps them, and all see what came of it."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float32

from ringrl.envs import EnvPool, VectorEnv, make_env, make_groups
from ringrl.training.processes import is_first


class SharedEnvs:
    """A `ringrl.rollout.trials.SteppedEnvs` whose results are the same bits in every process.

    Every process must make the same calls in the same order: a step's results are one broadcast.

    Attributes:
        num_envs: environments.
        first: index of the first of them among all.
        agent_steps: agent steps in the longest episode.
        pool: process 0's worker processes, if there are any.
    """

    def __init__(self, envs: VectorEnv | None, num_envs: int, observation_size: int, first: int, agent_steps: int):
        """`envs` in process 0, None in the others; the numbers are those of `envs`."""
        self._envs, self.num_envs, self.first, self.agent_steps = envs, num_envs, first, agent_steps
        self.pool = None if envs is None else envs.pool
        none = np.zeros(num_envs, bool)
        lengths = np.zeros(num_envs, np.int64)
        self._like = (np.zeros((num_envs, observation_size), np.float32), np.zeros(num_envs), none, none, lengths)

    def reset(self) -> tuple[Float32[np.ndarray, "envs observation"], dict[str, Any]]:
        """First observations."""
        observation = self._like[0] if self._envs is None else self._envs.reset()[0]
        return self._shared((observation, *self._like[1:]))[0], {}

    def step_async(
        self, actions: Float32[np.ndarray, "envs action"], which: Bool[np.ndarray, " envs"], *, restart: bool
    ) -> None:
        """Begin a step, in process 0."""
        if self._envs is not None:
            self._envs.step_async(actions, which, restart=restart)

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """What came of it."""
        values = self._like
        if self._envs is not None:
            *results, info = self._envs.step_wait()
            values = (*results, info["length"])
        *results, length = self._shared(values)
        return results[0], results[1], results[2], results[3], {"length": length}

    def close(self) -> None:
        """Close the environments, in process 0."""
        if self._envs is not None:
            self._envs.close()

    def _shared(self, values: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Process 0's values in every process, as bytes: JAX would make float32 of float64."""
        joined = np.concatenate([np.ascontiguousarray(value).view(np.uint8).ravel() for value in values])
        received, shared, start = np.asarray(multihost_utils.broadcast_one_to_all(joined)), [], 0
        for like in self._like:
            piece = received[start : start + like.nbytes]
            shared.append(piece.view(like.dtype).reshape(like.shape).copy())
            start += like.nbytes
        return shared


def trial_envs(
    task: str,
    count: int,
    groups: int,
    *,
    seed: int,
    action_repeat: int,
    alone: bool,
    workers: EnvPool | int | None,
    trials: int,
) -> list[VectorEnv] | list[SharedEnvs]:
    """The environments of `ringrl.envs.make_groups`, in every process of a rollout by many; `alone`: in this one."""
    options = {"seed": seed, "action_repeat": action_repeat, "workers": workers, "trials": trials}
    if alone or jax.process_count() == 1:
        return make_groups(task, count, groups, **options)
    example = make_env(task, seed=seed, action_repeat=action_repeat)
    width, steps = example.widths[0], example.agent_steps
    example.close()
    made = make_groups(task, count, groups, **options) if is_first() else None
    parts = np.array_split(np.arange(count), min(groups, count))
    return [
        SharedEnvs(made[i] if made else None, len(part), width, int(part[0]), steps) for i, part in enumerate(parts)
    ]
