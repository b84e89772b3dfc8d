"""Any Gymnasium environment with Box observations and Box actions, behind dm_control's interface.

It is found by its id as `gymnasium.make` finds it: `Pendulum-v1`, or `my_module:Rig-v0`, for which `my_module` is
imported first, from the working folder too. `ringrl.envs.suite` wraps it as it wraps the suite's tasks.
"""

import difflib
import warnings
from types import SimpleNamespace
from typing import Any, NoReturn

import dm_env
import gymnasium
import numpy as np
from dm_env import specs
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from ringrl.envs.action_bounds import linear_bounds
from ringrl.errors import UserError, one_line
from ringrl.user_modules import import_named

_FRAMES_PER_SECOND = 30  # of a film, where an environment names no other


def find_spec(task_id: str) -> EnvSpec | None:
    """What Gymnasium has registered under an id; None if that is nothing. A module before a colon is imported.

    Raises:
        UserError: if the module cannot be imported, or does not register the id; it lists the nearest ids.
    """
    module, colon, name = task_id.rpartition(":")
    if not colon:
        return gymnasium.registry.get(task_id)
    import_named(module, task_id)
    found = gymnasium.registry.get(name)
    if found is None:
        near = difflib.get_close_matches(name, gymnasium.registry, n=4, cutoff=0.5)
        raise UserError(
            f"unknown task {task_id!r}: importing {module} registers no {name} with gymnasium.register; "
            + (f"did you mean {' or '.join(near)}?" if near else "register it there")
        )
    return found


def split_id(task_id: str) -> tuple[str, str]:
    """(domain, task name) of an id: `my_module:Rig-v0` is (`my_module:Rig`, `v0`); without a version both are equal."""
    domain, dash, version = task_id.rpartition("-v")
    return (domain, f"v{version}") if dash and version.isdigit() else (task_id, task_id)


def versions_of(domain: str) -> tuple[str, ...]:
    """The ids of a domain of `split_id`, newest first; none if nothing of that name is registered.

    Raises:
        UserError: if the module before a colon cannot be imported.
    """
    module, colon, name = domain.rpartition(":")
    if colon:
        import_named(module, domain)
    found = [(spec.version or 0, spec.id) for spec in gymnasium.registry.values() if split_id(spec.id)[0] == name]
    return tuple(f"{module}{colon}{task_id}" for _, task_id in sorted(found, reverse=True))


class GymnasiumBox(dm_env.Environment):
    """A Gymnasium environment, as `dm_control.rl.control.Environment` shows the suite's tasks.

    The observation is one part, `observation`, flat. The discount is 0 where it terminates.

    Attributes:
        task: `random.seed(n)` seeds the next reset. `get_reward` refuses: one state does not give a reward.
    """

    def __init__(self, task_id: str, seed: int, time_limit: int | None = None, render_mode: str | None = None):
        """Make `task_id`; `time_limit` in steps, None for the registered one.

        Raises:
            UserError: if Gymnasium cannot make it here, a space is not a Box, or its episodes have no limit.
        """
        spec = find_spec(task_id)
        name = task_id if spec is None else spec.id
        options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        try:
            with warnings.catch_warnings():
                # Data sets of v4 environments are evaluated in v4, regardless of newer versions.
                warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
                self._env = gymnasium.make(name, max_episode_steps=time_limit, disable_env_checker=True, **options)
        except Exception as error:  # the constructor may be a user's
            raise UserError(f"{task_id}: Gymnasium says: {one_line(error)}; {self._advise(error)}") from error
        self.task_id, self._draws = task_id, render_mode is not None
        observation: Any = self._env.observation_space
        action: Any = self._env.action_space
        for kind, space in (("observations", observation), ("actions", action)):
            if not isinstance(space, spaces.Box):
                raise UserError(
                    f"{task_id}: its {kind} are {type(space).__name__}, and only Box spaces can be used here; "
                    "wrap it in one that has them, under an id of its own"
                )
        limit = time_limit or self._env.spec and self._env.spec.max_episode_steps
        if not limit:
            raise UserError(
                f"{task_id} has no time limit, and a trial must end: register it with max_episode_steps=N, or give "
                "time_limit=N"
            )
        self._step_limit = float(limit)
        self._observations, self._actions = observation, action
        low, high = linear_bounds(action.low, action.high)
        self._clips = bool((low < action.low.ravel()).any() or (high > action.high.ravel()).any())
        self.task = SimpleNamespace(random=SimpleNamespace(seed=self._seed_next), get_reward=self._refuse_reward)
        self._seed: int | None = seed

    def _advise(self, error: Exception) -> str:
        missing = isinstance(error, (ImportError, gymnasium.error.DependencyNotInstalled))
        return "install what it needs" if missing else "give the id of one that can be made"

    @property
    def physics(self) -> Any:
        """Refused: raises UserError, for Gymnasium's interface has no state that could be stored and set."""
        raise UserError(
            f"{self.task_id} gives no physics state, which recomputing rewards and ExoRL's files need; "
            "keep recorded rewards, in a store of your own episodes (Episode.from_arrays)"
        )

    def state(self) -> np.ndarray:
        """float64 [0]: no physics state."""
        return np.zeros(0)

    def _seed_next(self, seed: int) -> None:
        self._seed = seed

    def _refuse_reward(self, physics: Any) -> NoReturn:
        raise UserError(f"the rewards of {self.task_id} do not follow from stored states; keep the recorded ones")

    def control_timestep(self) -> float:
        """Seconds per step, of a film."""
        return 1.0 / float(self._env.metadata.get("render_fps") or _FRAMES_PER_SECOND)

    def reset(self) -> dm_env.TimeStep:
        """Start an episode."""
        observation, _ = self._env.reset(seed=self._seed)
        self._seed = None
        return dm_env.restart(self._parts(observation))

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        """One step; `action` float64 [A] within the bounds of `action_spec`."""
        space = self._actions
        # Gymnasium prices the action in the dtype that it is given, so it gets the one that its space names.
        action = np.rint(action) if space.dtype.kind in "iu" else action
        if self._clips:
            action = np.clip(action, space.low.ravel(), space.high.ravel())
        action = action.astype(space.dtype).reshape(space.shape)
        observation, reward, terminated, truncated, _ = self._env.step(action)
        parts = self._parts(observation)
        if terminated:
            return dm_env.termination(float(reward), parts)
        return (dm_env.truncation if truncated else dm_env.transition)(float(reward), parts)

    def _parts(self, observation: Any) -> dict[str, np.ndarray]:
        flat = np.asarray(observation)
        if flat.shape != self._observations.shape:
            raise UserError(
                f"{self.task_id}: an observation of shape {flat.shape}, its space says {self._observations.shape}; "
                "correct one of them"
            )
        return {"observation": flat.reshape(-1)}

    def action_spec(self) -> specs.BoundedArray:
        """The space's bounds, flat."""
        low, high = (np.asarray(bound, np.float64).ravel() for bound in (self._actions.low, self._actions.high))
        return specs.BoundedArray(low.shape, np.float64, low, high, "action")

    def observation_spec(self) -> dict[str, specs.Array]:
        """Of the one part."""
        size = int(np.prod(self._observations.shape))
        return {"observation": specs.Array((size,), self._observations.dtype, "observation")}

    def render(self) -> np.ndarray:
        """The environment's own picture, uint8 [height, width, 3].

        Raises:
            UserError: if it gives none.
        """
        picture = self._env.render() if self._draws else None
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            why = "gives no picture" if self._draws else "was made without render_mode='rgb_array'; give that"
            raise UserError(f"cannot render {self.task_id}: it {why}")
        return picture.astype(np.uint8)

    def close(self) -> None:
        """Free what it uses."""
        self._env.close()
