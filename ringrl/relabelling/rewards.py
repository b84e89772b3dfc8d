"""Physics states -> rewards of any task of the domain.

A reward of dm_control's suite is a function of the state after the action, of the action where the task penalises it,
and of the parameters that the task draws at the episode's start, or once for each seed. Files contain the first two, so
a task whose reward depends on a drawn parameter, such as a target's position, cannot be relabelled, and is refused by
name. What is drawn once for each seed, as in hidden tasks, is known where the seed is given.
"""
# pyright: reportAttributeAccessIssue=false
# MuJoCo's functions live in a compiled module that has no type stubs.

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from ringrl.envs import DMControlEnv, family_of, make_env, members_in, split_task, tasks
from ringrl.envs.simulator import PhysicsError, mujoco
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.relabelling.reward_physics import Mode, Needs, Recorder, RowByRow, first_rejected, needs_of

__all__ = ["Examined", "Mode", "Relabeler", "examine", "relabelable_tasks"]

# Fields of MjModel that no reward reads: looks, and the gains that point_mass_hard draws.
_NOT_IN_REWARDS = ("light_", "wrap_prm")
# Those that are read when things collide, but not for positions and velocities.
_NOT_IN_KINEMATICS = (*_NOT_IN_REWARDS, "geom_size", "geom_rbound", "geom_aabb", "bvh_")


class Relabeler:
    """Rewards of several tasks of one domain from stored physics states.

    `exact` repeats what dm_control does: r_t = R(s_{t+1}, a_t), with the action a_t in the actuators and all positions
    and velocities of the state s_{t+1} after it. It equals the live reward in float32. `exorl` repeats what ExoRL's
    `relabel_episode` does (Yarats et al. 2022): r_t = R(s_{t+1}, 0), so rewards with a term for small control
    (cartpole's dense tasks, for example) come out higher than the live ones.

    Attributes:
        domain: such as `walker`.
        tasks: the task ids, in the order of the columns.
        mode: `exact` or `exorl`.
    """

    def __init__(self, task_ids: Sequence[str], mode: Mode = "exact", *, seed: int | None = None):
        """Load the tasks.

        Args:
            task_ids: a reward column each.
            mode: see above.
            seed: of the environments whose rewards these are: of hidden tasks it decides the reward. None: of any, so
                that hidden tasks are refused.

        Raises:
            UserError: if there is no task, a task is unknown or named twice, the tasks are of several domains, or a
                task's reward depends on more than a state and an action.
        """
        if not task_ids:
            raise UserError("no task to relabel with: name at least one")
        found = {split_task(task_id)[0] for task_id in task_ids}
        if len(found) > 1:
            raise UserError(f"tasks of several domains ({', '.join(sorted(found))}): one state fits only one of them")
        twice = [task_id for task_id in dict.fromkeys(task_ids) if task_ids.count(task_id) > 1]
        if twice:
            raise UserError(f"named twice: {', '.join(twice)}; each task is one column")
        self.domain = found.pop()
        self.tasks = tuple(task_ids)
        self.mode = mode
        self._environments = [_load_for_relabelling(task_id, mode, seed) for task_id in task_ids]
        needs = [needs_of(environment, mode) for environment in self._environments]
        fast = [column for column, need in enumerate(needs) if need is not None]
        slow = [column for column, need in enumerate(needs) if need is None]
        self._parts: list[tuple[Recorder | RowByRow, list[int]]] = []
        for columns in self._share_physics(fast, _NOT_IN_KINEMATICS):
            need = functools.reduce(Needs.__or__, (each for each in map(needs.__getitem__, columns) if each))
            self._parts.append((Recorder(self._environments_of(columns), need, mode), columns))
        for columns in self._share_physics(slow, _NOT_IN_REWARDS):
            self._parts.append((RowByRow(self._environments_of(columns), mode), columns))

    def __call__(self, episode: Episode) -> Float32[np.ndarray, "steps tasks"]:
        """The reward of every step under every task: of the states after the actions, `physics[1:]`.

        Args:
            episode: of this domain; its own rewards are not looked at.

        Raises:
            UserError: if the episode's widths are not the domain's, or MuJoCo rejects a state.
        """
        self._check_widths(episode)
        rewards = np.zeros((episode.length, len(self.tasks)), np.float32)
        states = episode.physics[1:]
        row = first_rejected(states, self._environments[0].physics.model)
        if row is not None:
            raise UserError(f"cannot relabel an episode of {self.domain}: MuJoCo rejects the state of row {row + 1}")
        try:
            for part, columns in self._parts:
                controls = self._environments[columns[0]].control(episode.action)
                rewards[:, columns] = part(states, controls)
        except PhysicsError as error:
            raise UserError(f"cannot relabel an episode of {self.domain}: {error}") from error
        return rewards

    def _check_widths(self, episode: Episode) -> None:
        for environment in self._environments:
            states, actions = environment.physics.get_state().size, environment.physics.model.nu
            if (episode.physics.shape[1], episode.action.shape[1]) != (states, actions):
                raise UserError(
                    f"cannot relabel with {environment.task_id}: it has states of width {states} and actions of width "
                    f"{actions}, the episode {episode.physics.shape[1]} and {episode.action.shape[1]}"
                )

    def _share_physics(self, columns: list[int], ignored: tuple[str, ...]) -> list[list[int]]:
        """`columns` in groups whose models differ in nothing but `ignored`: each state is computed once a group."""
        groups: list[list[int]] = []
        for column in columns:
            physics = self._environments[column].physics
            for group in groups:
                first = self._environments[group[0]].physics
                if type(first) is type(physics) and not _model_differences(first, physics, ignored):
                    group.append(column)
                    break
            else:
                groups.append([column])
        return groups

    def _environments_of(self, columns: list[int]) -> list[DMControlEnv]:
        return [self._environments[column] for column in columns]


class Examined(NamedTuple):
    """Whether the rewards of a task follow from stored states and actions, and from which.

    Attributes:
        obstacle: why they do not; None if they do.
        physics: the width of its states; None if the task cannot be started here.
        observation: the width of its observations, likewise.
    """

    obstacle: str | None
    physics: int | None = None
    observation: int | None = None

    def misfit(self, physics_width: int, observation_width: int | None = None) -> str | None:
        """Why rewards of files of these widths cannot be recomputed; None if they can.

        Without a width of the observations, those of the files may be any.
        """
        if self.obstacle is not None:
            return self.obstacle
        if self.physics != physics_width:
            return f"it has states of width {self.physics}"
        if observation_width not in (None, self.observation):
            return f"it has observations of width {self.observation}"
        return None


def examine(task_id: str, mode: Mode = "exact") -> Examined:
    """Whether a task's rewards can be recomputed; a task that cannot be started says why in its `obstacle`."""
    try:
        return _examine(task_id, mode)
    except UserError as error:
        return Examined(str(error))


def relabelable_tasks(
    domain: str, physics_width: int, mode: Mode = "exact", *, observation_width: int | None = None
) -> tuple[str, ...]:
    """The tasks of a domain, in the suite's order, whose rewards follow from stored states of the given width.

    With `observation_width` only those whose environments observe as much: an agent of the files can act in them.

    Raises:
        UserError: if the domain is unknown, or there is no such task, with the reason.
    """
    found = {task_id: examine(task_id, mode).misfit(physics_width, observation_width) for task_id in tasks(domain)}
    possible = tuple(task_id for task_id, misfit in found.items() if misfit is None)
    if not possible:
        fits = f"stored states of width {physics_width}"
        if observation_width is not None:
            fits += f" and observations of width {observation_width}"
        reasons = "; ".join(f"{task_id}: {misfit}" for task_id, misfit in found.items())
        raise UserError(f"no task of {domain} fits {fits}: {reasons}")
    return possible


def _load_for_relabelling(task_id: str, mode: Mode, seed: int | None) -> DMControlEnv:
    obstacle = _examine(task_id, mode, of_one_seed=seed is not None).obstacle
    if obstacle is not None:
        raise UserError(f"cannot relabel with {task_id}: {obstacle}; keep its recorded rewards instead")
    environment = make_env(task_id, seed=seed or 0)
    environment.reset()
    return environment


@functools.cache
def _examine(task_id: str, mode: Mode, *, of_one_seed: bool = False) -> Examined:
    """Of environments of all seeds or, `of_one_seed`, of those whose task is the same: then resets alone may differ."""
    environment, other = make_env(task_id), make_env(task_id, seed=0 if of_one_seed else 1)
    environment.reset(seed=0)
    other.reset(seed=1)
    obstacle = None
    drawn = _model_differences(environment.physics, other.physics)
    if drawn:
        obstacle = f"it draws {', '.join(drawn)} at random, which the stored states do not contain"
    elif members_in(task_id) is not None:
        obstacle = "its reward depends on which member a trial is of, which the stored states do not contain"
    elif not of_one_seed and (family_of(task_id) is not None or _reads_hidden(environment)):
        obstacle = "its reward depends on what is hidden, drawn for each seed, which the stored states do not contain"
    elif mode == "exact" and _reads_forces(environment):
        obstacle = "it rewards contact forces, which MuJoCo computes before it reaches the stored state"
    width = environment.physics.get_state().size
    return Examined(obstacle, width, math.prod(environment.observation_space.shape or ()))


def _model_differences(first: Any, second: Any, ignored: tuple[str, ...] = _NOT_IN_REWARDS) -> list[str]:
    """Names of the arrays in which two physics' models differ, but for looks and those that begin with `ignored`."""
    names = [name for name in dir(first.model.ptr) if isinstance(getattr(first.model.ptr, name), np.ndarray)]
    relevant = [name for name in names if not name.endswith("_rgba") and not name.startswith(ignored)]
    return [
        name for name in relevant if not np.array_equal(getattr(first.model.ptr, name), getattr(second.model.ptr, name))
    ]


def _reads_hidden(environment: DMControlEnv) -> bool:
    """Whether the reward changes with the parameter that is drawn once for each seed (`ringrl.envs.custom.hidden`)."""
    task, rewards = environment.task, set()
    drawn = getattr(task, "hidden", None)
    if drawn is None:
        return False
    for value in (drawn, 0.0 * drawn, 0.0 * drawn + 1e6):
        task.hidden = value
        rewards.add(float(task.get_reward(environment.physics)))
    task.hidden = drawn
    return len(rewards) > 1


def _reads_forces(environment: DMControlEnv) -> bool:
    """Whether the reward changes with the sensors of MuJoCo's acceleration stage.

    After a step they are those of the start of the last physics step (mj_step2 fills them, mj_step1 does not), a state
    that no file keeps.
    """
    model, data = environment.physics.model.ptr, environment.physics.data.ptr
    rewards = {float(environment.task.get_reward(environment.physics))}
    late = [sensor for sensor in range(model.nsensor) if model.sensor_needstage[sensor] == mujoco.mjtStage.mjSTAGE_ACC]
    for value in (0.0, 1e6):
        for sensor in late:
            start = model.sensor_adr[sensor]
            data.sensordata[start : start + model.sensor_dim[sensor]] = value
        rewards.add(float(environment.task.get_reward(environment.physics)))
    return len(rewards) > 1
