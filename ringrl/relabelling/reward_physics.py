"""Rewards from states in two ways: row by row as dm_control does it, and all rows of an episode in one pass.

`Recorder`, the fast way, does for each row only what MuJoCo must: it sets the state, computes the positions and
velocities that the rewards read (never collisions, constraints or forces), and copies them. Which they are is found by
running the task's own code once on a physics that records which fields are read. The rewards of all rows then come from
one run of that same code on arrays of all rows (`PerRow`). A task whose code does not allow it is computed by
`RowByRow`, the slow way.
"""
# pyright: reportAttributeAccessIssue=false
# MuJoCo's functions live in a compiled module that has no type stubs.

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64

from ringrl.envs.simulator import mujoco
from ringrl.relabelling.per_row import PerRow
from ringrl.relabelling.physics_view import view_of_rows

Mode = Literal["exact", "exorl"]
Paying = Any
"""A `ringrl.envs.DMControlEnv`, or what is like one but for its task's reward (`ringrl.relabelling.features`)."""
States = Float64[np.ndarray, "rows state"]
Controls = Float64[np.ndarray, "rows control"]

log = logging.getLogger(__name__)

# What each of MuJoCo's functions fills, of the fields and sensors that rewards may read in the fast way.
_STATE_FIELDS = frozenset({"qpos", "qvel", "act", "ctrl"})
_KINEMATICS_FIELDS = frozenset(
    {"xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"}
)
_POSITION_SENSORS = frozenset(
    f"mjSENS_{name}"
    for name in "JOINTPOS BALLQUAT FRAMEPOS FRAMEQUAT FRAMEXAXIS FRAMEYAXIS FRAMEZAXIS SUBTREECOM".split()
)
_VELOCITY_SENSORS = frozenset(
    f"mjSENS_{name}"
    for name in "VELOCIMETER GYRO JOINTVEL BALLANGVEL FRAMELINVEL FRAMEANGVEL SUBTREELINVEL SUBTREEANGMOM".split()
)
# MuJoCo fills these only for the sensors that show them.
_SUBTREE_FIELDS = frozenset({"subtree_linvel", "subtree_angmom"})
_SUBTREE_SENSORS = {int(mujoco.mjtSensor.mjSENS_SUBTREELINVEL), int(mujoco.mjtSensor.mjSENS_SUBTREEANGMOM)}
_CALLS = ("mj_kinematics", "mj_comPos", "mj_sensorPos", "mj_comVel", "mj_subtreeVel", "mj_sensorVel")
_POSITION_CALLS = set(_CALLS[:3])
# mj_sensorVel computes a subtree's velocity only if mj_step1 has marked the last one as stale: mj_subtreeVel is first.
_VELOCITY_CALLS = {"mj_kinematics", "mj_comPos", "mj_comVel", "mj_subtreeVel", "mj_sensorVel"}
# Beyond it mj_checkPos and mj_checkVel call a state bad, and reset it.
_STATE_LIMIT = mujoco.mjMAXVAL
# Rows in memory at once: an episode of the suite in one go, one of millions of rows in bounded memory.
_ROWS_AT_ONCE = 1024
# A float64 has 29 bits more than a float32; where the two ways differ in the last one, a reward near 0 may amplify it.
_SLACK = 2.0**-40
_COMPARED_STEPS = 8
# The controls that are set for all rows at once, from those of the actions.
_CONTROLS: dict[Mode, Callable[[Controls], Controls]] = {"exact": lambda controls: controls, "exorl": np.zeros_like}


class RowByRow:
    """The rewards of tasks with equal models, from dm_control's own functions, a row at a time.

    `exact` leaves the physics as `Physics.step` does after an environment step (mj_step1, with the row's control set);
    `exorl` as `reset_context` does, the actuators at zero. The two differ in nothing but the control and the sensors
    of contact forces, which need the acceleration.
    """

    def __init__(self, environments: Sequence[Paying], mode: Mode):
        """Take the physics of the first environment for all tasks; it is changed by every call."""
        self.physics, self._tasks = environments[0].physics, [environment.task for environment in environments]
        self._set = {"exact": self._set_exact, "exorl": self._set_exorl}[mode]

    def __call__(self, states: States, controls: Controls) -> Float32[np.ndarray, "rows tasks"]:
        """The rewards.

        Raises:
            PhysicsError: if MuJoCo warns about a state.
        """
        rewards = np.empty((len(states), len(self._tasks)), np.float32)
        with self.physics.check_invalid_state():
            for row, (state, control) in enumerate(zip(states, controls, strict=True)):
                self._set(state, control)
                for column, task in enumerate(self._tasks):
                    rewards[row, column] = task.get_reward(self.physics)
        return rewards

    def field(self, name: str, states: States, controls: Controls) -> np.ndarray:
        """The field `name` of MjData in every state: [rows, *shape]."""
        rows = []
        for state, control in zip(states, controls, strict=True):
            self._set(state, control)
            rows.append(np.array(getattr(self.physics.data, name)))
        return np.stack(rows)

    def _set_state(self, state: np.ndarray) -> None:
        model, data = self.physics.model.ptr, self.physics.data.ptr
        data.qpos[:], data.qvel[:], data.act[:] = np.split(state, [model.nq, model.nq + model.nv])

    def _set_exact(self, state: np.ndarray, control: np.ndarray) -> None:
        self._set_state(state)
        self.physics.data.ctrl[:] = control
        # What dm_control's Physics.step ends with. A bare change of state would leave derived quantities stale.
        mujoco.mj_step1(self.physics.model.ptr, self.physics.data.ptr)

    def _set_exorl(self, state: np.ndarray, control: np.ndarray) -> None:
        mujoco.mj_resetData(self.physics.model.ptr, self.physics.data.ptr)
        self._set_state(state)
        self.physics.after_reset()


@dataclass(frozen=True)
class Needs:
    """The quantities that a reward reads.

    Attributes:
        fields: of MjData.
        calls: MuJoCo's functions that fill them, in the order in which they are to be called.
    """

    fields: frozenset[str]
    calls: tuple[str, ...]

    def __or__(self, other: "Needs") -> "Needs":
        """The quantities that either reads."""
        return Needs(self.fields | other.fields, tuple(name for name in _CALLS if name in self.calls + other.calls))


def needs_of(environment: Paying, mode: Mode) -> Needs | None:
    """The quantities that the task's reward reads, or None where only the slow way computes it exactly.

    The fast way is compared with the slow way on the states of a short rollout of `environment`.

    Raises:
        UserError: if the task's reward does not follow from a state at all.
    """
    states, controls = _short_rollout(environment)
    slow = RowByRow([environment], mode)
    wanted = slow(states, controls)
    reads: dict[str, set[int]] = {}

    def read(name: str, key: Any) -> PerRow:
        values = PerRow(slow.field(name, states, controls))
        reads.setdefault(name, set()).update(np.arange(values.size).reshape(values.shape)[key].ravel().tolist())
        return values[key]

    try:
        _rewards(environment.task, view_of_rows(environment.physics, read), len(states))
        needs = _needs(environment.physics.model, reads)
        fast = Recorder([environment], needs, mode)
        same = np.array_equal(fast(states, controls), wanted)
    except Exception as error:  # a task's code may do anything with arrays that it does not expect
        log.debug("%s is relabelled row by row: %s", environment.task_id, error)
        return None
    if not same:
        log.warning("%s is relabelled row by row: in one pass its reward comes out different", environment.task_id)
    return needs if same else None


def _short_rollout(environment: Paying) -> tuple[States, Controls]:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (_COMPARED_STEPS, environment.physics.model.nu)).astype(np.float32)
    states = []
    for action in actions:
        if not environment._running:
            environment.reset()
        states.append(environment.step(action)[4]["physics"])
    return np.stack(states), environment.control(actions)


def _needs(model: Any, reads: dict[str, set[int]]) -> Needs:
    """The calls that fill what was read; TypeError if that takes more than positions and velocities."""
    calls: set[str] = set()
    for name, addresses in reads.items():
        if name in _KINEMATICS_FIELDS:
            calls.add("mj_kinematics")
        elif name == "subtree_com":
            calls |= {"mj_kinematics", "mj_comPos"}
        elif name in _SUBTREE_FIELDS and _SUBTREE_SENSORS & set(model.sensor_type.tolist()):
            calls |= _VELOCITY_CALLS
        elif name == "sensordata":
            sensors = np.searchsorted(model.sensor_adr, sorted(addresses), side="right") - 1
            kinds = {mujoco.mjtSensor(kind).name for kind in np.asarray(model.sensor_type)[sensors].tolist()}
            if kinds - _POSITION_SENSORS - _VELOCITY_SENSORS:
                raise TypeError(f"it reads sensors of types {kinds}")
            calls |= _POSITION_CALLS if kinds & _POSITION_SENSORS else set()
            calls |= _VELOCITY_CALLS if kinds & _VELOCITY_SENSORS else set()
        elif name not in _STATE_FIELDS:
            raise TypeError(f"it reads {name}")
    return Needs(frozenset(reads), tuple(name for name in _CALLS if name in calls))


class Recorder:
    """The rewards of tasks whose models have the same kinematics, computed for all rows at once."""

    def __init__(self, environments: Sequence[Paying], needs: Needs, mode: Mode):
        """Take the physics of the first environment for all; each task still reads the constants of its own model."""
        self._environments, self._needs = tuple(environments), needs
        self._control = _CONTROLS[mode]
        self._slow = [RowByRow([environment], mode) for environment in environments]

    def __call__(self, states: States, controls: Controls) -> Float32[np.ndarray, "rows tasks"]:
        """The rewards; equal to `RowByRow`'s in float32."""
        rewards = np.empty((len(states), len(self._environments)), np.float32)
        for start in range(0, len(states), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            self._some_rows(states[rows], controls[rows], rewards[rows])
        return rewards

    def _some_rows(self, states: States, controls: Controls, out: np.ndarray) -> None:
        recorded = self._record(states, controls)
        for column, (environment, slow) in enumerate(zip(self._environments, self._slow, strict=True)):
            view = view_of_rows(environment.physics, lambda name, key: recorded[name][key])
            rewards = _rewards(environment.task, view, len(states))
            # A scalar's ** goes through the C library's pow, an array's does not: float64's last digit may differ.
            # Where that might change the float32, the slow way decides.
            unsure = ~_is_certain(rewards)
            out[:, column] = rewards
            if unsure.any():
                out[unsure, column] = slow(states[unsure], controls[unsure])[:, 0]

    def _record(self, states: States, controls: Controls) -> dict[str, PerRow]:
        physics = self._environments[0].physics
        model, data = physics.model.ptr, physics.data.ptr
        splits = np.split(states, [model.nq, model.nq + model.nv], axis=1)
        recorded: dict[str, np.ndarray] = dict(zip(("qpos", "qvel", "act"), splits, strict=True))
        recorded["ctrl"] = self._control(controls)
        calls = [getattr(mujoco, name) for name in self._needs.calls]
        if calls:
            names = sorted(self._needs.fields - _STATE_FIELDS)
            fields = [getattr(data, name) for name in names]  # MuJoCo's own memory, which every call changes
            arrays = [np.empty((len(states), *field.shape)) for field in fields]
            set_qpos, set_qvel = data.qpos, data.qvel
            for row, (qpos, qvel) in enumerate(zip(recorded["qpos"], recorded["qvel"], strict=True)):
                set_qpos[:] = qpos
                set_qvel[:] = qvel
                for call in calls:
                    call(model, data)
                for array, field in zip(arrays, fields, strict=True):
                    array[row] = field
            recorded |= dict(zip(names, arrays, strict=True))
        return {name: PerRow(values) for name, values in recorded.items()}


def first_rejected(states: States, model: Any) -> int | None:
    """The first row that MuJoCo would call a bad state of `model`, and reset; None: it takes all.

    `Recorder` computes what rewards read of such a state without a word.
    """
    good = (np.abs(states[:, : model.nq + model.nv]) <= _STATE_LIMIT).all(axis=1)
    return None if good.all() else int(np.argmin(good))


def _is_certain(rewards: Float64[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Whether a reward is the same float32 if its last float64 digits were others."""
    slack = np.abs(rewards) * _SLACK
    return np.equal((rewards - slack).astype(np.float32), (rewards + slack).astype(np.float32))


def _rewards(task: Any, view: Any, rows: int) -> Float64[np.ndarray, " rows"]:
    reward = task.get_reward(view)
    if not isinstance(reward, PerRow):
        return np.full(rows, float(reward))
    if reward.shape:
        raise TypeError(f"its reward has shape {reward.shape}")
    return reward.values.astype(np.float64)
