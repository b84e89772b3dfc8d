"""Gymnasium's MuJoCo environments (HalfCheetah-v5, Hopper-v5 ...) behind dm_control's interface.

`ringrl.envs.suite` wraps them as it wraps the suite's tasks. Steps, rewards and ends are Gymnasium's own; only the
MuJoCo model and data that they are computed in belong to a dm_control `Physics`, which knows states and renders.
"""

import warnings
from types import SimpleNamespace
from typing import Any, NoReturn

import dm_env
import gymnasium
import numpy as np
from dm_control import mujoco
from dm_control.mujoco.wrapper import MjModel
from dm_env import specs

from ringrl.errors import UserError

_ENTRY_POINT = "gymnasium.envs.mujoco."
_FIRST_VERSION = 4  # the older ones need mujoco-py


def gymnasium_tasks() -> dict[str, tuple[str, str]]:
    """(domain, task name) of every task id: `HalfCheetah-v5` is (`HalfCheetah`, `v5`). Newest versions come first."""
    ours = [spec for spec in gymnasium.registry.values() if str(spec.entry_point).startswith(_ENTRY_POINT)]
    known = [(spec.name, spec.version or 0, spec.id) for spec in ours if (spec.version or 0) >= _FIRST_VERSION]
    ordered = sorted(known, key=lambda each: (each[0], -each[1]))
    return {task_id: (name, f"v{version}") for name, version, task_id in ordered}


class GymnasiumMujoco(dm_env.Environment):
    """One of Gymnasium's MuJoCo environments, as `dm_control.rl.control.Environment` shows the suite's tasks.

    The observation is one part, `observation`, of the environment's dtype. The discount is 0 where it terminates.

    Attributes:
        physics: dm_control's `Physics` over the environment's own model and data; its state is [qpos, qvel].
        task: `random.seed(n)` seeds the next reset. `get_reward` refuses: Gymnasium's rewards are differences between
            states before and after a step, which one state does not tell.
    """

    def __init__(self, task_id: str, seed: int, time_limit: int | None = None):
        """Load `task_id` of `gymnasium_tasks()`; `time_limit` in steps, None for the environment's own.

        Raises:
            UserError: if Gymnasium cannot make it here.
        """
        try:
            with warnings.catch_warnings():
                # Data sets of v4 environments are evaluated in v4, regardless of newer versions.
                warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
                self._env = gymnasium.make(task_id, max_episode_steps=time_limit, disable_env_checker=True)
        except (ImportError, gymnasium.error.Error) as error:
            missing = isinstance(error, (ModuleNotFoundError, gymnasium.error.DependencyNotInstalled))
            advice = "pip install 'gymnasium[mujoco]'" if missing else "choose another version"
            raise UserError(f"{task_id}: Gymnasium says: {' '.join(str(error).split())[:200]}; {advice}") from error
        core: Any = self._env.unwrapped
        self.physics = mujoco.Physics.from_model(MjModel(core.model))
        core.model, core.data = self.physics.model.ptr, self.physics.data.ptr
        self.task = SimpleNamespace(random=SimpleNamespace(seed=self._seed_next), get_reward=_refuse_reward(task_id))
        self._seed: int | None = seed
        self._timestep = float(core.dt)
        self._step_limit = float(time_limit or gymnasium.spec(task_id).max_episode_steps or np.inf)

    def _seed_next(self, seed: int) -> None:
        self._seed = seed

    def control_timestep(self) -> float:
        """Seconds per step."""
        return self._timestep

    def reset(self) -> dm_env.TimeStep:
        """Start an episode."""
        observation, _ = self._env.reset(seed=self._seed)
        self._seed = None
        return dm_env.restart({"observation": observation})

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        """One step; `action` float [A] within the bounds of `action_spec`."""
        # Gymnasium prices the action in the dtype that it is given, so it gets the one that its space names.
        action = action.astype(self._env.action_space.dtype)
        observation, reward, terminated, truncated, _ = self._env.step(action)
        parts = {"observation": observation}
        if terminated:
            return dm_env.termination(float(reward), parts)
        return (dm_env.truncation if truncated else dm_env.transition)(float(reward), parts)

    def action_spec(self) -> specs.BoundedArray:
        """The actuators' bounds."""
        space: Any = self._env.action_space
        return specs.BoundedArray(space.shape, space.dtype, space.low, space.high, "action")

    def observation_spec(self) -> dict[str, specs.Array]:
        """Of the one part."""
        space: Any = self._env.observation_space
        return {"observation": specs.Array(space.shape, space.dtype, "observation")}

    def close(self) -> None:
        """Free the renderer."""
        self.physics.free()
        self._env.close()


def _refuse_reward(task_id: str) -> Any:
    def get_reward(physics: Any) -> NoReturn:
        raise UserError(f"the rewards of {task_id} do not follow from stored states; keep the recorded ones")

    return get_reward
