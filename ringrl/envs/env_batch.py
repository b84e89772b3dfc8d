"""Some environments of one task, stepped one after the other into arrays: what a process does, main or worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from ringrl.envs.suite import DMControlEnv, make_env
from ringrl.errors import UserError


@dataclass(frozen=True)
class EnvSettings:
    """How the environments of a batch are made; the arguments are those of `make_env`."""

    task: str
    action_repeat: int = 1
    time_limit: int | None = None
    render_mode: str | None = None

    def make(self, seed: int) -> DMControlEnv:
        """One environment."""
        options = {"action_repeat": self.action_repeat, "time_limit": self.time_limit, "render_mode": self.render_mode}
        return make_env(self.task, seed=seed, **options)


class StepArrays(NamedTuple):
    """What goes into a step of a batch, and what comes out of it, in memory that processes may share.

    Attributes:
        action: in [-1, 1].
        which: the environments that are stepped or reset; the others stay as they are.
        observation: after the step.
        reward: summed over the environment steps of the agent step.
        terminated: whether the discount reached 0.
        truncated: whether the time limit was reached.
        length: environment steps done.
    """

    action: Float32[np.ndarray, "envs action"]
    which: Bool[np.ndarray, " envs"]
    observation: Float32[np.ndarray, "envs observation"]
    reward: Float64[np.ndarray, " envs"]
    terminated: Bool[np.ndarray, " envs"]
    truncated: Bool[np.ndarray, " envs"]
    length: Int64[np.ndarray, " envs"]

    @staticmethod
    def layout(envs: int, observation: int, action: int) -> tuple[list[tuple[tuple[int, ...], type]], int]:
        """Shape and dtype of each, and the bytes of all; each begins at a multiple of 64."""
        one: tuple[int, ...] = (envs,)
        fields: list[tuple[tuple[int, ...], type]] = [
            ((envs, action), np.float32),
            (one, np.bool_),
            ((envs, observation), np.float32),
            (one, np.float64),
            (one, np.bool_),
            (one, np.bool_),
            (one, np.int64),
        ]
        return fields, sum(_padded(shape, dtype) for shape, dtype in fields)

    @classmethod
    def over(cls, buffer: Any, envs: int, observation: int, action: int) -> "StepArrays":
        """The arrays in a buffer of as many bytes as `layout` says."""
        arrays, start = [], 0
        for shape, dtype in cls.layout(envs, observation, action)[0]:
            arrays.append(np.ndarray(shape, dtype, buffer, start))
            start += _padded(shape, dtype)
        return cls(*arrays)

    def part(self, first: int, stride: int) -> "StepArrays":
        """Every `stride`-th environment from `first` on, in the same memory."""
        return StepArrays(*(array[first::stride] for array in self))


def _padded(shape: tuple[int, ...], dtype: type) -> int:
    return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64


class EnvBatch:
    """Environments of one task and the arrays through which they are stepped."""

    def __init__(self, settings: EnvSettings, seeds: Sequence[int], arrays: StepArrays):
        """Make an environment for each of `seeds`; `arrays` has a row for each.

        Raises:
            UserError: as `make_env`.
        """
        self.envs = [settings.make(seed) for seed in seeds]
        self._arrays, self._task = arrays, settings.task

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Reset the environments of `which`, each with its seed where that is not None."""
        for index in np.flatnonzero(self._arrays.which).tolist():
            self.envs[index].start(self._arrays.observation[index], seeds[index])

    def step(self, restart: bool) -> None:
        """One agent step of each environment of `which`; with `restart`, what ended is reset at once."""
        action, which, observation, reward, terminated, truncated, length = self._arrays
        reward[:], terminated[:], truncated[:], length[:] = 0.0, False, False, 0
        controls = self.envs[0].control(action)
        for index in np.flatnonzero(which).tolist():
            env, out = self.envs[index], observation[index]
            reward[index], terminated[index], truncated[index], length[index] = env.advance(controls[index], out)
            if restart and (terminated[index] or truncated[index]):
                env.start(out)

    def expert(self) -> None:
        """Write into `action` what the task's `expert` does in each environment's present physics state.

        Raises:
            UserError: if the task has none.
        """
        for index, env in enumerate(self.envs):
            if not hasattr(env.task, "expert"):
                raise UserError(f"{self._task} has no expert; leave it out")
            self._arrays.action[index] = env.task.expert(env.physics)

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()
