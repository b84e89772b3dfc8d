"""dm_control under Gymnasium's API: flat float32 observations in ExoRL's order, actions in [-1, 1]."""

import math
import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import gymnasium
import mujoco
import numpy as np
from dm_control.rl.control import Environment, PhysicsError
from gymnasium.error import ResetNeeded
from jaxtyping import Float32, Float64, UInt8

from ringrl.envs.action_bounds import linear_bounds
from ringrl.envs.gymnasium_box import GymnasiumBox
from ringrl.envs.suite_step import repeat_action
from ringrl.envs.tasks import load, split_task
from ringrl.errors import UserError

_RENDERING_ERRORS = (RuntimeError, mujoco.FatalError)  # pyright: ignore[reportAttributeAccessIssue]
_RENDERING_ADVICE = "Install EGL (libegl1) or set MUJOCO_GL to egl, osmesa or glfw"


class DMControlEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A task of dm_control's suite or of ExoRL's, or one of Gymnasium's (`HalfCheetah-v5`, `my_module:Rig-v0`).

    The observation is float32 [O], the parts of dm_control's observation in its own order, as ExoRL stores them. The
    action is float32 [A] in [-1, 1], clipped and mapped linearly onto the actuators' bounds, as by dm_control's
    `action_scale` wrapper. It is repeated for `action_repeat` environment steps, whose rewards are summed, or until the
    episode ends. `terminated` means that the discount reached 0; `truncated` that the time limit was reached.

    `info` has `physics` (float64 [S], MuJoCo's [qpos, qvel, act]; S is 0 where Gymnasium gives no state) and, after a
    step, `discount` (float), `length` (k, the environment steps done: `action_repeat`, or fewer at the end of an
    episode) and `rows`: of each of them `observation` float32 [k, O], `reward` float32 [k], `discount` float32 [k] and
    `physics` float64 [k, S].

    Attributes:
        task_id: such as `cartpole_swingup`.
        domain: such as `cartpole`.
        task_name: such as `swingup`.
        time_limit_steps: environment steps in a whole episode, regardless of the action repeat.
        action_repeat: environment steps per agent step.
        agent_steps: agent steps in a whole episode.
        widths: of the observation and of the action.
        control_timestep: seconds per environment step (one control step of dm_control); of Gymnasium's environments
            without physics, of its films.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        task_id: str,
        *,
        seed: int = 0,
        action_repeat: int = 1,
        time_limit: int | None = None,
        render_mode: str | None = None,
        parameter: Sequence[Any] | np.ndarray | None = None,
    ):
        """Load the task; arguments and errors are those of `make_env`."""
        for name, steps in (("action_repeat", action_repeat), ("time_limit", time_limit)):
            if steps is not None and steps < 1:
                raise UserError(f"{name} is {steps}: give a whole number of environment steps, 1 or more")
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode is {render_mode!r}: give 'rgb_array' or none")
        self.task_id = task_id
        self.domain, self.task_name = split_task(task_id)
        self.action_repeat = action_repeat
        self.render_mode = render_mode
        self._env = load(task_id, seed, time_limit, render_mode, parameter)
        self.control_timestep = float(self._env.control_timestep())
        # dm_control ends an episode at the first step whose count is not below this, possibly fractional, number.
        self.time_limit_steps = math.ceil(self._env._step_limit)
        self.agent_steps = -(-self.time_limit_steps // action_repeat)
        self.metadata = {**type(self).metadata, "render_fps": round(1 / (self.control_timestep * action_repeat))}
        spec = self._env.action_spec()
        self._low, self._high = linear_bounds(
            *(np.broadcast_to(end, spec.shape) for end in (spec.minimum, spec.maximum))
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, spec.shape, np.float32)
        size = sum(math.prod(part.shape) for part in self._env.observation_spec().values())
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.widths = size, math.prod(spec.shape)
        self._running = False

    @property
    def physics(self) -> Any:
        """dm_control's `Physics`, with the current state.

        Raises:
            UserError: for Gymnasium's environments but those of its MuJoCo: they give no state.
        """
        return self._env.physics

    def _state(self) -> Float64[np.ndarray, " state"]:
        return self._env.state() if isinstance(self._env, GymnasiumBox) else self._env.physics.get_state()

    @property
    def task(self) -> Any:
        """dm_control's `Task`, whose `get_reward` takes `physics`."""
        return self._env.task

    @property
    def action_bounds(self) -> list[list[float]]:
        """What the actuators get for actions of -1 and of 1, [[low ...], [high ...]]."""
        return [self._low.tolist(), self._high.tolist()]

    def control(self, action: Float32[np.ndarray, "*rows action"]) -> Float64[np.ndarray, "*rows action"]:
        """What the actuators get for actions in [-1, 1]; actions outside are clipped."""
        unit = np.clip(action.astype(np.float64), -1.0, 1.0)
        return self._low + (self._high - self._low) * (unit + 1.0) / 2.0

    def set_state(self, state: Float64[np.ndarray, " state"], action: Float32[np.ndarray, " action"]) -> None:
        """Set the physics to a stored state and the action that led to it.

        As after a step, all that follows from positions, velocities and controls is that of `state` and `action`, but
        the sensors of MuJoCo's acceleration stage (forces, torques, touch, accelerometers) are not computed again: a
        step leaves in them the values at the start of its last substep, which do not follow from the state.

        Raises:
            UserError: if the state is of another width, or MuJoCo rejects it.
        """
        model, data = self.physics.model.ptr, self.physics.data.ptr
        if state.size != model.nq + model.nv + model.na:
            raise UserError(f"a state of {self.task_id} has width {model.nq + model.nv + model.na}, not {state.size}")
        data.qpos[:], data.qvel[:], data.act[:] = np.split(state, [model.nq, model.nq + model.nv])
        data.ctrl[:] = self.control(action)
        try:
            with self.physics.check_invalid_state():
                # What dm_control's Physics.step ends with.
                mujoco.mj_step1(model, data)  # pyright: ignore[reportAttributeAccessIssue]
        except PhysicsError as error:
            raise UserError(f"MuJoCo rejects a state of {self.task_id}: {error}") from error

    def parts(self) -> dict[str, Float32[np.ndarray, "_"]]:
        """The parts of the current observation, flat and in their order; not for Gymnasium's environments."""
        parts = self.task.get_observation(self.physics)
        return {name: np.asarray(part, np.float32).ravel() for name, part in parts.items()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32[np.ndarray, " observation"], dict[str, Any]]:
        """Start an episode; with a seed, its initial state and those after it are a function of the seed alone.

        Raises:
            UserError: if the task needs a renderer to begin, and this machine has none.
        """
        super().reset(seed=seed, options=options)
        observation = np.empty(self.widths[0], np.float32)
        self.start(observation, seed)
        return observation, {"physics": self._state()}

    def start(self, out: Float32[np.ndarray, " observation"], seed: int | None = None) -> None:
        """As `reset`, but the observation is written into `out` and nothing else is gathered.

        Raises:
            UserError: as `reset`.
        """
        if seed is not None:
            self.task.random.seed(seed % 2**32)
        try:
            timestep = self._env.reset()
        except PhysicsError:
            raise
        except _RENDERING_ERRORS as error:  # quadruped_escape uploads its terrain to the renderer
            if isinstance(self._env, GymnasiumBox):
                raise
            raise UserError(f"cannot start {self.task_id}: {error} {_RENDERING_ADVICE}") from error
        self._running = True
        _flatten_into(out, timestep.observation)

    def step(
        self, action: Float32[np.ndarray, " action"]
    ) -> tuple[Float32[np.ndarray, " observation"], float, bool, bool, dict[str, Any]]:
        """Repeat `action` for `action_repeat` environment steps; the class docstring describes what is returned.

        Raises:
            gymnasium.error.ResetNeeded: if the episode has ended.
        """
        self._check_running()
        control = self.control(np.asarray(action, np.float32))
        observation, reward, discount, physics = [], [], [], []
        while self._running and len(reward) < self.action_repeat:
            timestep = self._env.step(control)
            observation.append(np.empty(self.widths[0], np.float32))
            _flatten_into(observation[-1], timestep.observation)
            reward.append(timestep.reward)
            discount.append(timestep.discount)
            physics.append(self._state())
            self._running = not timestep.last()
        rows = {
            "observation": np.stack(observation),
            "reward": np.asarray(reward, np.float32),
            "discount": np.asarray(discount, np.float32),
            "physics": np.stack(physics),
        }
        terminated = bool(discount[-1] == 0.0)
        info = {"physics": physics[-1], "discount": float(discount[-1]), "length": len(reward), "rows": rows}
        total = float(reduce(operator.add, reward))  # as `advance` adds: from Python 3.12 on `sum` rounds otherwise
        return observation[-1], total, terminated, not self._running and not terminated, info

    def advance(
        self, control: Float64[np.ndarray, " action"], out: Float32[np.ndarray, " observation"]
    ) -> tuple[float, bool, bool, int]:
        """As `step`, without its rows and physics states, which take as long as the simulation of a small model.

        Args:
            control: what the actuators get, from `control`.
            out: where the observation is written.

        Returns:
            Reward, terminated, truncated, and the number of environment steps done.

        Raises:
            gymnasium.error.ResetNeeded: if the episode has ended.
        """
        self._check_running()
        env, discount = self._env, None
        if isinstance(env, Environment):
            reward, discount, length = repeat_action(env, control, self.action_repeat)
            observation = env.task.get_observation(env.physics)
        else:
            reward, length = 0.0, 0
            while discount is None and length < self.action_repeat:
                timestep = env.step(control)
                reward, length = reward + timestep.reward, length + 1
                discount = timestep.discount if timestep.last() else None
            observation = timestep.observation
        self._running = discount is None
        _flatten_into(out, observation)
        return float(reward), discount == 0.0, discount is not None and discount != 0.0, length

    def _check_running(self) -> None:
        if not self._running:
            raise ResetNeeded(f"{self.task_id}: the episode has ended or not begun; call reset() first")

    def render(self, width: int = 320, height: int = 240) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of the current state from the model's first camera.

        Raises:
            UserError: if this machine has no OpenGL backend that works.
        """
        if type(self._env) is GymnasiumBox:  # those of its MuJoCo have a model
            return self._env.render()
        camera = 0 if self.physics.model.ncam else -1
        try:
            return self.physics.render(height=height, width=width, camera_id=camera)
        except _RENDERING_ERRORS as error:
            raise UserError(f"cannot render {self.task_id}: {error} {_RENDERING_ADVICE}") from error

    def close(self) -> None:
        """Free the renderer."""
        self._env.close()


def _flatten_into(out: Float32[np.ndarray, " observation"], observation: Any) -> None:
    np.concatenate([np.asarray(part).ravel() for part in observation.values()], out=out, casting="same_kind")


def make_env(
    task: str,
    *,
    seed: int = 0,
    action_repeat: int = 1,
    time_limit: int | None = None,
    render_mode: str | None = None,
    parameter: Sequence[Any] | np.ndarray | None = None,
) -> DMControlEnv:
    """The environment of a task id such as `cartpole_swingup`, under Gymnasium's API.

    Observations are float32 [O], actions float32 [A] in [-1, 1]; `DMControlEnv` describes what `step` returns.

    >>> import ringrl
    >>> env = ringrl.make_env("cartpole_swingup", action_repeat=4, time_limit=10)
    >>> observation, info = env.reset(seed=1)
    >>> [len(env.step(env.action_space.sample())[4]["rows"]["reward"]) for _ in range(3)]
    [4, 4, 2]

    Args:
        task: one of `tasks(domain)`: `{domain}_{task}`, or an id of Gymnasium's, for `my_module:Rig-v0` importing
            `my_module`, from the working folder too. Its spaces must be Box, its episodes limited.
        seed: of the initial states; `reset(seed=...)` overrides it.
        action_repeat: environment steps per agent step: each action is repeated, and the rewards are summed.
        time_limit: environment steps after which an episode is truncated, regardless of `action_repeat` (Gymnasium's
            `max_episode_steps`; dm_control's `time_limit` is this times `control_timestep` seconds). None: the task's
            own limit.
        render_mode: `rgb_array` or none. Nothing is loaded for rendering before the first `render()`.
        parameter: of a task of a family of rewards, which member, [P], of a library all of them, each after its cue,
            [M, P]; None: the seed's.

    Raises:
        UserError: for an unknown task, with the nearest names, or an argument out of range.
    """
    options: dict[str, Any] = {"action_repeat": action_repeat, "time_limit": time_limit, "render_mode": render_mode}
    options["parameter"] = parameter
    return DMControlEnv(task, seed=seed, **options)
