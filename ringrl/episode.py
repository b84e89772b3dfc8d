"""The types that rooms hand to each other. Everything here is NumPy on the host, and frozen.

Time index: an episode has T steps. Step t observes `observation[t]`, takes `action[t]`, is paid `reward[t]` for the
state that it reaches, and is followed by `observation[t + 1]`, so there are T + 1 observations. An environment that
ends the episode by its own rules at that state says so by `discount[t] = 0`; a time limit leaves it 1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped

from ringrl.errors import UserError

ACTION_LIMIT = 1 + 1e-5
"""The largest size of an action: 1, and what float32 arithmetic may add to it."""

MAGNITUDE_LIMIT = 1e10
"""The largest size of a number of an observation, a reward or a physics state.

MuJoCo takes a position or velocity beyond it for that of a simulation that has diverged (mjMAXVAL), so no environment
of it has larger ones. Its square, 1e20, is far from float32's largest number, 3e38: a sum of 1e18 of them still fits.
"""

_SEVERAL = "only the last step can end an episode; make an episode of each, up to its end"

_DTYPES = {name: np.dtype(np.float32) for name in ("observation", "action", "reward", "discount")}
_DTYPES |= {"physics": np.dtype(np.float64), "demonstrator": np.dtype(np.float32)}


class Dims(NamedTuple):
    """The widths of an episode's arrays: numbers in an observation, an action, a reward (tasks) and a physics state."""

    observation: int
    action: int
    reward: int
    physics: int

    def __str__(self) -> str:
        """All widths on one line, for messages."""
        return ", ".join(f"{name} {width}" for name, width in zip(self._fields, self, strict=True))


@dataclass(frozen=True)
class Episode:
    """One trajectory of T steps, checked when it is made.

    Attributes:
        observation: float32 [T + 1, O]; the last one follows the last action.
        action: float32 [T, A], in [-1, 1].
        reward: float32 [T, tasks], one column a task.
        discount: float32 [T], in [0, 1]; 0 only at the last step, where the episode ended and no time limit cut it.
        physics: float64 [T + 1, S], the simulator's state at every observation (MuJoCo's [qpos, qvel, act]); S may
            be 0.
        demonstrator: float32 [T, A], in [-1, 1], what a demonstrator of the task would have done in the state before
            each step, regardless of what was done; None: not known.

    Raises:
        UserError: if a dtype, a number of axes or a length is not that; if T is 0; if a number is NaN, infinite or
            beyond `MAGNITUDE_LIMIT`, an action outside [-1, 1], a discount outside [0, 1], or 0 before the last step;
            if a demonstrator's actions are wider or narrower than the actions. The message names no file.

    Example:
        >>> import numpy as np
        >>> import ringrl
        >>> observation, action, reward = np.zeros((4, 2)), np.zeros((3, 1)), np.array([0.0, 0.5, 1.0])
        >>> episode = ringrl.Episode.from_arrays(observation, action, reward, terminated=True)
        >>> episode.length, episode.returns.tolist(), episode.discount.tolist()
        (3, [1.5], [1.0, 1.0, 0.0])
    """

    observation: Float32[np.ndarray, "_steps_and_one _observation"]
    action: Float32[np.ndarray, "_steps _action"]
    reward: Float32[np.ndarray, "_steps _tasks"]
    discount: Float32[np.ndarray, " _steps"]
    physics: Float64[np.ndarray, "_steps_and_one _state"]
    demonstrator: Float32[np.ndarray, "_steps _action"] | None = None

    def __post_init__(self):
        """Check the arrays."""
        known = {name: getattr(self, name) for name in _DTYPES if getattr(self, name) is not None}
        for name, values in known.items():
            dtype, shape = _DTYPES[name], "[steps]" if name == "discount" else "[steps, width]"
            if values.dtype != dtype:
                raise UserError(f"{name} is {values.dtype}, not {dtype}; Episode.from_arrays converts it")
            if values.ndim != shape.count(",") + 1:
                raise UserError(f"{name} has shape {values.shape}: give it as {shape}")
        self._check_lengths()
        for name, values in known.items():
            if not np.isfinite(values).all():
                raise UserError(f"{name} is NaN or infinite in step {int(np.argwhere(~np.isfinite(values))[0, 0])}")
        for name in ("observation", "reward", "physics"):
            _check_magnitude(name, known[name])
        self._check_actions()
        self._check_discount()

    def _check_lengths(self) -> None:
        steps = len(self.action)
        wanted = {"observation": steps + 1, "reward": steps, "discount": steps, "physics": steps + 1}
        wanted |= {} if self.demonstrator is None else {"demonstrator": steps}
        found = {name: len(getattr(self, name)) for name in wanted}
        wrong = [f"{found[name]} of {name} for {n}" for name, n in wanted.items() if found[name] != n]
        if wrong or not steps:
            raise UserError(f"an episode of {steps} actions has {', '.join(wrong) or 'no steps'}")

    def _check_actions(self) -> None:
        shown = self.demonstrator
        for what, actions in {"an action": self.action, "a demonstrator's action": shown}.items():
            largest = 0.0 if actions is None else float(np.abs(actions).max(initial=0.0))
            if largest > ACTION_LIMIT:
                raise UserError(f"{what} is {largest:g}, outside [-1, 1]; clip the actions (`clip`), or scale them")
        if shown is not None and shown.shape != self.action.shape:
            raise UserError(f"demonstrator is {shown.shape[1]} wide, and the actions are {self.action.shape[1]} wide")

    def _check_discount(self) -> None:
        outside = np.flatnonzero((self.discount < 0) | (self.discount > 1))
        if len(outside):
            step = int(outside[0])
            raise UserError(f"discount is {self.discount[step]:g} in step {step}, outside [0, 1]")
        ends = np.flatnonzero(self.discount[:-1] == 0)
        if len(ends):
            step = int(ends[0])
            raise UserError(f"discount is 0 in step {step} of {self.length}: {_SEVERAL}")

    @classmethod
    def from_arrays(
        cls,
        observation: Shaped[np.ndarray, "*_steps_and_one_observation"],
        action: Shaped[np.ndarray, "_steps action"],
        reward: Shaped[np.ndarray, "*_steps_tasks"],
        *,
        terminated: Shaped[np.ndarray, "*_steps"] | np.bool_ | int,
        truncated: Shaped[np.ndarray, "*_steps"] | np.bool_ | int = False,
        physics: Shaped[np.ndarray, "_steps_and_one state"] | None = None,
        demonstrator: Shaped[np.ndarray, "_steps action"] | None = None,
        clip: bool = False,
    ) -> "Episode":
        """An episode of T steps from arrays of any real dtype.

        Args:
            observation: [T + 1, O]. Where there are only T, the one after the last action is unknown, and the last is
                repeated for it.
            action: [T, A], in [-1, 1]; clipped to that where rounding has gone beyond.
            reward: [T], of one task, or [T, tasks], a column a task.
            terminated: [T], truth values or numbers that mean them: where the episode ended by the environment's own
                rules, not at a time limit; a single value is that of the last step.
            truncated: likewise, where a time limit cut it. Nothing is kept of it: it shows episodes that follow each
                other in the same arrays.
            physics: [T + 1, S], the simulator's state at every observation, if it is known.
            demonstrator: [T, A], what a demonstrator would have done, if it is known; clipped as the actions are.
            clip: clip actions to [-1, 1] however far they are beyond: for an environment that does so too.

        Raises:
            UserError: as `Episode`; if a number is infinite in float32, the observations are pixels, or `truncated` is
                set before the last step.
        """
        steps = len(action)
        ends, cuts = (_flags(*each, steps) for each in (("terminated", terminated), ("truncated", truncated)))
        if cuts[:-1].any():
            raise UserError(f"truncated is set in step {int(cuts.argmax())} of {steps}: {_SEVERAL}")
        if np.ndim(reward) not in (1, 2):
            raise UserError(f"reward has shape {np.shape(reward)}: give it as [steps], or as [steps, tasks]")
        refuse_pixels(np.asarray(observation), most_axes=2)
        with np.errstate(over="ignore"):  # a number beyond float32 is reported as infinite
            observed, paid = (np.asarray(each).astype(np.float32) for each in (observation, reward))
            taken, shown = (None if each is None else _rounded_off(each, clip) for each in (action, demonstrator))
        assert taken is not None
        return cls(
            observation=np.concatenate([observed, observed[-1:]]) if len(observed) == steps else observed,
            action=taken,
            reward=paid[:, None] if paid.ndim == 1 else paid,
            discount=np.where(ends, np.float32(0), np.float32(1)),
            physics=np.zeros((steps + 1, 0)) if physics is None else np.asarray(physics).astype(np.float64),
            demonstrator=shown,
        )

    @property
    def length(self) -> int:
        """T, the number of steps."""
        return len(self.action)

    @property
    def dims(self) -> Dims:
        """The widths of the arrays."""
        return Dims(self.observation.shape[1], self.action.shape[1], self.reward.shape[1], self.physics.shape[1])

    @property
    def returns(self) -> Float64[np.ndarray, " tasks"]:
        """The undiscounted return under every task, float64 [tasks]."""
        return self.reward.sum(axis=0, dtype=np.float64)


def refuse_pixels(observation: Shaped[np.ndarray, "..."], most_axes: int) -> None:
    """Raise UserError where observations [steps, ...] are pixels: bytes, or more axes than `most_axes`."""
    if observation.dtype == np.uint8 or observation.ndim > most_axes:
        what = f"{observation.dtype} of shape {observation.shape}"
        raise UserError(
            f"observation is {what}, as pixels are: give state observations, float32 [steps, width], for nothing here "
            "learns from pixels"
        )


def clipped(action: Shaped[np.ndarray, "steps action"]) -> Shaped[np.ndarray, "steps action"]:
    """Actions clipped to [-1, 1], but for what is NaN or infinite: that is a fault, which `Episode` reports."""
    return np.where(np.isfinite(action), np.clip(action, -1, 1), action).astype(action.dtype)


def _check_magnitude(name: str, values: Shaped[np.ndarray, "steps width"]) -> None:
    largest = float(np.abs(values).max(initial=0.0))
    if largest > MAGNITUDE_LIMIT:
        step = int(np.argwhere(np.abs(values) > MAGNITUDE_LIMIT)[0, 0])
        raise UserError(
            f"{name} is {largest:g} in size, beyond {MAGNITUDE_LIMIT:g}, first in step {step}: a fault of the data, or "
            "of their units; correct it, or scale them"
        )


def _flags(name: str, given: Shaped[np.ndarray, "*_steps"] | np.bool_ | int, steps: int) -> Bool[np.ndarray, " steps"]:
    """Truth values [steps] of what is given for each step, or for the last alone."""
    values = np.asarray(given)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{name} has a NaN or an infinite number: give truth values")
    flags = values.astype(np.bool_)
    flags = (np.arange(1, steps + 1) == steps) & flags if flags.ndim == 0 else flags
    if len(flags) != steps:
        raise UserError(f"an episode of {steps} actions has {len(flags)} of {name} for {steps}")
    return flags


def _rounded_off(action: Shaped[np.ndarray, "steps action"], clip: bool) -> Float32[np.ndarray, "steps action"]:
    """Actions as float32; within [-1, 1] if `clip`, or where no more than rounding went beyond, else as they are."""
    taken = np.asarray(action).astype(np.float32)
    return clipped(taken) if clip or np.abs(taken).max(initial=0.0) <= ACTION_LIMIT else taken


@dataclass(frozen=True)
class StepSpan:
    """n consecutive environment steps of one episode, `start` to `start + n`, with the rewards of one task.

    Attributes:
        observation: float32 [n + 1, O]: that of every step, and the one that follows the last action.
        action: float32 [n, A], in [-1, 1].
        reward: float32 [n].
        discount: float32 [n].
        earlier: float32 [start], the rewards of the episode's steps before these.
        demonstrator: float32 [n, A], what a demonstrator would have done; None: not asked for.
    """

    observation: Float32[np.ndarray, "steps_and_one observation"]
    action: Float32[np.ndarray, "steps action"]
    reward: Float32[np.ndarray, " steps"]
    discount: Float32[np.ndarray, " steps"]
    earlier: Float32[np.ndarray, " start"]
    demonstrator: Float32[np.ndarray, "steps action"] | None = None
