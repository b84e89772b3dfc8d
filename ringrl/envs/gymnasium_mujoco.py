"""Gymnasium's MuJoCo environments (HalfCheetah-v5, Hopper-v5 ...): those of Gymnasium's that know physics states.

Steps, rewards and ends are Gymnasium's own; only the MuJoCo model and data that they are computed in belong to a
dm_control `Physics`, which knows states and renders.
"""

from typing import Any

import gymnasium
import numpy as np
from dm_control import mujoco
from dm_control.mujoco.wrapper import MjModel

from ringrl.envs.gymnasium_box import GymnasiumBox

_ENTRY_POINT = "gymnasium.envs.mujoco."
_FIRST_VERSION = 4  # the older ones need mujoco-py


def gymnasium_tasks() -> dict[str, tuple[str, str]]:
    """(domain, task name) of every task id: `HalfCheetah-v5` is (`HalfCheetah`, `v5`). Newest versions come first."""
    ours = [spec for spec in gymnasium.registry.values() if str(spec.entry_point).startswith(_ENTRY_POINT)]
    known = [(spec.name, spec.version or 0, spec.id) for spec in ours if (spec.version or 0) >= _FIRST_VERSION]
    ordered = sorted(known, key=lambda each: (each[0], -each[1]))
    return {task_id: (name, f"v{version}") for name, version, task_id in ordered}


class GymnasiumMujoco(GymnasiumBox):
    """One of Gymnasium's MuJoCo environments; its state is [qpos, qvel].

    `get_reward` refuses: Gymnasium's rewards are differences between states before and after a step.
    """

    def __init__(self, task_id: str, seed: int, time_limit: int | None = None):
        """Load `task_id` of `gymnasium_tasks()`; `time_limit` in steps, None for the environment's own.

        Raises:
            UserError: if Gymnasium cannot make it here.
        """
        super().__init__(task_id, seed, time_limit)
        core: Any = self._env.unwrapped
        self._physics = mujoco.Physics.from_model(MjModel(core.model))
        core.model, core.data = self._physics.model.ptr, self._physics.data.ptr
        self._timestep = float(core.dt)

    def _advise(self, error: Exception) -> str:
        missing = isinstance(error, (ModuleNotFoundError, gymnasium.error.DependencyNotInstalled))
        return "pip install 'gymnasium[mujoco]'" if missing else "choose another version"

    @property
    def physics(self) -> Any:
        """dm_control's `Physics` over the environment's own model and data."""
        return self._physics

    def state(self) -> np.ndarray:
        """[qpos, qvel], float64 [S]."""
        return self._physics.get_state()

    def control_timestep(self) -> float:
        """Seconds per step."""
        return self._timestep

    def close(self) -> None:
        """Free the renderer."""
        self._physics.free()
        super().close()
