"""Whether stored episodes are what our environments would have recorded, row by row.

Each row's physics state is set, with its action as the control, and the observation and the rewards that follow are
compared with the stored ones. Nothing is simulated: MuJoCo's dynamics differ between versions, its kinematics do not.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import mujoco
import numpy as np
from jaxtyping import Bool, Float32

from ringrl.envs import DMControlEnv, make_env, split_task, tasks
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.formats.exorl import Dims
from ringrl.quality.consistency_report import ColumnComparison, ConsistencyReport, ExpectedFact
from ringrl.relabelling.rewards import Mode, Relabeler, examine

RTOL = ATOL = 1e-5
"""Two numbers agree if they differ by no more than ATOL + RTOL * |ours|: what float32 keeps, with some to spare."""

NOT_IN_STATES = "not checkable from stored states: MuJoCo computes forces and accelerations before it reaches them"
DRAWN = "not checkable from stored states: drawn at random for each episode"
ALL_ZERO = "says nothing: all these rewards are 0"


class _Difference:
    """Running comparison of two arrays [rows, columns], fed episode by episode."""

    def __init__(self) -> None:
        self.largest, self._agreeing, self._rows = 0.0, 0, 0
        self.says_something = False

    def add(self, stored: Float32[np.ndarray, "rows columns"], ours: Float32[np.ndarray, "rows columns"]) -> None:
        difference = np.abs(stored.astype(np.float64) - ours)
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        self._agreeing += int(_agree(stored, ours).all(axis=1).sum())
        self._rows += len(stored)
        self.says_something |= bool(max(np.abs(stored).max(initial=0.0), np.abs(ours).max(initial=0.0)) > ATOL)

    @property
    def share(self) -> float:
        return self._agreeing / max(self._rows, 1)


def _agree(
    stored: Float32[np.ndarray, "rows columns"], ours: Float32[np.ndarray, "rows columns"]
) -> Bool[np.ndarray, "rows columns"]:
    return np.isclose(stored, ours, rtol=RTOL, atol=ATOL)


def check_episodes(
    episodes: Iterable[Episode], domain: str, dims: Dims, expected_tasks: Sequence[str] | None = None
) -> ConsistencyReport:
    """Compare episodes with the environments of a domain.

    Args:
        episodes: all of the widths `dims`.
        domain: of dm_control or ExoRL.
        dims: the widths of the episodes' arrays.
        expected_tasks: of the reward columns, in order. None: any task of the domain may be meant.

    Raises:
        UserError: if there is no such domain or task, a task is of another domain, or states cannot be replayed.
    """
    expected = tuple(expected_tasks) if expected_tasks else None
    for task_id in expected or ():
        if split_task(task_id)[0] != domain:
            raise UserError(f"{task_id} is no task of {domain}: name one of {', '.join(tasks(domain))}")
    env, known = _find_environment(expected or tasks(domain), dims)
    widths = [ExpectedFact("widths", known, _widths(dims.observation, dims.action, dims.physics), env is not None)]
    if expected:
        columns = f"{len(expected)}, of {', '.join(expected)}"
        widths.append(ExpectedFact("reward columns", columns, f"{dims.reward}", len(expected) == dims.reward))
    if env is None or not all(fact.agrees for fact in widths):
        return ConsistencyReport(domain, None, expected, 0, 0, tuple(widths))
    facts, observation = _Facts(env), _Observation(env)
    rewards = _Rewards(domain, dims, expected)
    for episode in episodes:
        facts.add(episode)
        observation.add(episode)
        rewards.add(episode)
    return ConsistencyReport(
        domain,
        env.task_id,
        expected,
        facts.episodes,
        facts.rows,
        (*widths, *facts.result()),
        observation.result(),
        rewards.result(),
    )


def _widths(observation: int, action: int, state: int) -> str:
    return f"observation {observation}, action {action}, physics {state}"


def _find_environment(task_ids: Iterable[str], dims: Dims) -> tuple[DMControlEnv | None, str]:
    """The first of these tasks that has the files' widths, started; and the widths that there are."""
    known: list[str] = []
    for task_id in task_ids:
        env = make_env(task_id)
        if not hasattr(env.task, "get_observation"):
            raise UserError(f"states of {task_id} cannot be checked: it is not an environment of dm_control")
        observation, action = (math.prod(space.shape or ()) for space in (env.observation_space, env.action_space))
        sizes = observation, action, env.physics.get_state().size
        if sizes == (dims.observation, dims.action, dims.physics):
            env.reset()
            return env, _widths(*sizes)
        known.append(_widths(*sizes))
    return None, " or ".join(dict.fromkeys(known))


class _Facts:
    """Lengths, ranges and the dummy row."""

    def __init__(self, env: DMControlEnv):
        self._limit = env.time_limit_steps
        self._lengths: set[int] = set()
        self._whole = self._dummies = self._discounts_right = True
        self._lowest, self._highest = np.inf, -np.inf
        self._discounts: set[float] = set()
        self.episodes = self.rows = 0

    def add(self, episode: Episode) -> None:
        self.episodes += 1
        self.rows += episode.length + 1
        self._lengths.add(episode.length)
        ended = bool(episode.discount[-1] == 0.0)
        self._whole &= episode.length == self._limit or (ended and episode.length < self._limit)
        self._lowest = min(self._lowest, float(episode.action.min()))
        self._highest = max(self._highest, float(episode.action.max()))
        self._discounts |= set(np.unique(episode.discount).tolist())
        self._discounts_right &= bool((episode.discount[:-1] == 1.0).all()) and episode.discount[-1] in (0.0, 1.0)
        self._dummies &= not (episode.action[0].any() or episode.reward[0].any() or episode.discount[0] != 1.0)

    def result(self) -> tuple[ExpectedFact, ...]:
        lengths = " to ".join(str(each) for each in sorted({min(self._lengths), max(self._lengths)}))
        discounts = ", ".join(f"{each:g}" for each in sorted(self._discounts))
        return (
            ExpectedFact("length", f"{self._limit}, or less with a last discount of 0", lengths, self._whole),
            ExpectedFact(
                "action",
                "-1 to 1",
                f"{self._lowest:.4g} to {self._highest:.4g}",
                self._lowest >= -1.0 - ATOL and self._highest <= 1.0 + ATOL,
            ),
            ExpectedFact("discount", "1; 0 only in a last row", discounts, self._discounts_right),
            ExpectedFact(
                "dummy row",
                "action 0, reward 0, discount 1",
                "so in every episode" if self._dummies else "not so in some episode",
                self._dummies,
            ),
        )


class _Observation:
    """The parts of the observation; a part of which only some columns can be checked counts as two."""

    def __init__(self, env: DMControlEnv):
        self._env = env
        self._parts = _split_parts(env)
        self._differences = [_Difference() for _ in self._parts]
        self._disagreeing: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, episode: Episode) -> None:
        ours = np.empty_like(episode.observation)
        for row, (state, action) in enumerate(zip(episode.physics, episode.action, strict=True)):
            self._env.set_state(state, action)
            ours[row] = _observe(self._env)
        for index, ((_, columns, _), difference) in enumerate(zip(self._parts, self._differences, strict=True)):
            difference.add(episode.observation[:, columns], ours[:, columns])
            if difference.share < 1.0:
                self._disagreeing.setdefault(index, (episode.observation, ours))

    def result(self) -> tuple[ColumnComparison, ...]:
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
        """Which stored columns of an episode hold what these should."""
        width = columns.stop - columns.start
        for start in range(stored.shape[1] - width + 1):
            if start != columns.start and _agree(stored[:, start : start + width], ours[:, columns]).all():
                return f"it stands in columns {start}:{start + width}"
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


class _Rewards:
    """Every reward column against every task that it may be of, in both modes."""

    def __init__(self, domain: str, dims: Dims, expected: tuple[str, ...] | None):
        self._expected, self._columns = expected, dims.reward
        self._relabelers: list[Relabeler] = []
        self._refused: dict[str, str] = {}
        for mode in get_args(Mode):
            found = [task_id for task_id in tasks(domain) if self._possible(task_id, dims, mode)]
            if found:
                self._relabelers.append(Relabeler(found, mode))
        self._differences = {
            (column, task_id, relabel.mode): _Difference()
            for column in range(dims.reward)
            for relabel in self._relabelers
            for task_id in relabel.tasks
        }

    def _possible(self, task_id: str, dims: Dims, mode: Mode) -> bool:
        examined = examine(task_id, mode)
        misfit = examined.misfit(dims.physics, dims.observation)
        # Where nothing tells the task, it may be any that has the files' widths. One that is refused in one mode may
        # disagree in the other though its rewards are right.
        fits = (examined.physics, examined.observation) == (dims.physics, dims.observation)
        if misfit and (task_id in self._expected if self._expected else fits):
            self._refused[task_id] = f"cannot be recomputed: {misfit}"
        return misfit is None

    def add(self, episode: Episode) -> None:
        rewards = {relabel.mode: relabel(episode)[1:] for relabel in self._relabelers}
        columns = {relabel.mode: relabel.tasks.index for relabel in self._relabelers}
        for (column, task_id, mode), difference in self._differences.items():
            place = columns[mode](task_id)
            difference.add(episode.reward[1:, column : column + 1], rewards[mode][:, place : place + 1])

    def result(self) -> tuple[ColumnComparison, ...]:
        found = [
            ColumnComparison(
                task_id,
                mode,
                (column, column + 1),
                difference.largest,
                difference.share,
                "" if difference.says_something else ALL_ZERO,
            )
            for (column, task_id, mode), difference in self._differences.items()
        ]
        for column in range(self._columns):
            for task_id, note in self._refused.items():
                if not self._expected or self._expected[column] == task_id:
                    found.append(ColumnComparison(task_id, "", (column, column + 1), None, None, note))
        return tuple(found)
