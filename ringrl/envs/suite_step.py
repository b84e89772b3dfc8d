"""dm_control's `Environment.step` without what a rollout does not look at; rewards, ends and states are the same bits.

Of small models, dm_control's Python takes longer than MuJoCo's step. Here no observation is computed of the steps of
an action repeat but the last, and nothing is looked up twice.
"""

from typing import Any

import mujoco
import numpy as np
from dm_control import mujoco as dm_mujoco
from dm_control.rl.control import Environment, PhysicsError

_library: Any = mujoco  # its functions are of C++, which type checkers do not see
_WARNINGS = tuple(_library.mjtWarning.__members__)


def repeat_action(env: Environment, control: np.ndarray, count: int) -> tuple[float, float | None, int]:
    """Apply `control`, float64 [A], for `count` environment steps or until the episode ends.

    Returns:
        The sum of the rewards, the last discount (None: the episode goes on), and the number of steps done.

    Raises:
        PhysicsError: if the simulation diverged.
    """
    task, physics = env.task, env.physics
    step = _step_physics if type(physics).step is dm_mujoco.Physics.step and physics.legacy_step else _call_step
    substeps, limit = env._n_sub_steps, env._step_limit
    reward, length, discount = 0.0, 0, None
    while discount is None and length < count:
        task.before_step(control, physics)
        step(physics, substeps)
        task.after_step(physics)
        reward += task.get_reward(physics)
        length += 1
        env._step_count += 1
        discount = 1.0 if env._step_count >= limit else task.get_termination(physics)
    env._reset_next_step = discount is not None
    return reward, discount, length


def _call_step(physics: Any, substeps: int) -> None:
    physics.step(substeps)


def _step_physics(physics: Any, substeps: int) -> None:
    """`Physics.step` of dm_control, where its tasks have not replaced it."""
    model, data, warnings = physics.model.ptr, physics.data.ptr, physics._warnings
    before = warnings.tobytes()
    if model.opt.integrator != _library.mjtIntegrator.mjINT_RK4:
        _library.mj_step2(model, data)
        if substeps > 1:
            _library.mj_step(model, data, substeps - 1)
    else:
        _library.mj_step(model, data, substeps)
    _library.mj_step1(model, data)
    if warnings.tobytes() != before:
        more = warnings > np.frombuffer(before, warnings.dtype)
        if more.any():
            raised = ", ".join(np.compress(more, _WARNINGS))
            raise PhysicsError(f"Physics state is invalid. Warning(s) raised: {raised}")
