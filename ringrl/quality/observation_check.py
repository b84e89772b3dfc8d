"""Stored observations against those of our environments in the same states."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from ringrl.envs import DMControlEnv, make_env
from ringrl.envs.simulator import mujoco
from ringrl.episode import Episode
from ringrl.quality.column_difference import ColumnDifference, agree
from ringrl.quality.consistency_report import ColumnComparison

NOT_IN_STATES = "not checkable from stored states: MuJoCo computes forces and accelerations before it reaches them"
DRAWN = "not checkable from stored states: drawn at random for each episode"


class ObservationCheck:
    """The parts of the observation; a part of which only some columns can be checked counts as two."""

    def __init__(self, env: DMControlEnv):
        """Compare with `env`, which has been reset."""
        self._env = env
        self._parts = _split_parts(env)
        self._differences = [ColumnDifference() for _ in self._parts]
        self._disagreeing: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, episode: Episode, dummy: Float32[np.ndarray, " action"]) -> None:
        """Compare every observation of an episode; `dummy`: the action of its file's row 0, before the first."""
        ours = np.empty_like(episode.observation)
        actions = np.concatenate([np.nan_to_num(dummy)[None], episode.action])  # that each state is said to follow
        for row, (state, action) in enumerate(zip(episode.physics, actions, strict=True)):
            self._env.set_state(state, action)
            ours[row] = _observe(self._env)
        for index, ((_, columns, _), difference) in enumerate(zip(self._parts, self._differences, strict=True)):
            difference.add(episode.observation[:, columns], ours[:, columns])
            if difference.share < 1.0:
                self._disagreeing.setdefault(index, (episode.observation, ours))

    def result(self) -> tuple[ColumnComparison, ...]:
        """A comparison each part."""
        found = []
        for index, ((name, columns, obstacle), difference) in enumerate(
            zip(self._parts, self._differences, strict=True)
        ):
            span = columns.start, columns.stop
            if obstacle:
                found.append(ColumnComparison(name, "", span, None, None, obstacle))
                continue
            note = self._find_elsewhere(columns, *self._disagreeing[index]) if index in self._disagreeing else ""
            found.append(ColumnComparison(name, "", span, difference.largest, difference.share, note))
        return tuple(found)

    def _find_elsewhere(self, columns: slice, stored: np.ndarray, ours: np.ndarray) -> str:
        """Which stored columns of an episode are what these should be."""
        width = columns.stop - columns.start
        for start in range(stored.shape[1] - width + 1):
            if start != columns.start and agree(stored[:, start : start + width], ours[:, columns]).all():
                return f"it is in columns {start}:{start + width}"
        return ""


def _split_parts(env: DMControlEnv) -> list[tuple[str, slice, str]]:
    """(name, columns, why a state does not tell them, if it does not) of the observation, in order.

    Columns that change with the sensors of MuJoCo's acceleration stage do not follow from a state; nor do parts that
    depend on what the task draws when an episode starts, such as a terrain or a target's place.
    """
    late, drawn = _late_columns(env), _drawn_columns(env)
    parts, start = [], 0
    for name, part in env.parts().items():
        # A whole part: where one column tells the draw, another may do so in other states.
        redrawn = bool((drawn & ~late)[start : start + part.size].any())
        for column in range(start, start + part.size):
            obstacle = NOT_IN_STATES if late[column] else DRAWN if redrawn else ""
            if column > start and obstacle == parts[-1][2]:
                parts[-1] = (name, slice(parts[-1][1].start, column + 1), obstacle)
            else:
                parts.append((name, slice(column, column + 1), obstacle))
        start += part.size
    return parts


def _late_columns(env: DMControlEnv) -> Bool[np.ndarray, " observation"]:
    model, data = env.physics.model.ptr, env.physics.data.ptr
    stage: Any = mujoco.mjtStage  # pyright: ignore[reportAttributeAccessIssue]
    observations = []
    for value in (0.0, 1.0, 1e6):
        for sensor in np.flatnonzero(model.sensor_needstage == stage.mjSTAGE_ACC):
            start = model.sensor_adr[sensor]
            data.sensordata[start : start + model.sensor_dim[sensor]] = value
        observations.append(_observe(env))
    return (observations[0] != observations[1]) | (observations[0] != observations[2])


def _drawn_columns(env: DMControlEnv) -> Bool[np.ndarray, " observation"]:
    """Those that differ between two episodes in the same state; those of `_late_columns` may."""
    other = make_env(env.task_id, seed=1)
    other.reset()
    state, action = env.physics.get_state(), np.zeros(env.action_space.shape or (), np.float32)
    for each in (env, other):
        each.set_state(state, action)
    return _observe(env) != _observe(other)


def _observe(env: DMControlEnv) -> Float32[np.ndarray, " observation"]:
    return np.concatenate(list(env.parts().values()))
