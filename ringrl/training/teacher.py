"""What the steps of a student are labelled with: the actions of a teacher, a trained agent that sees what the student
has to find out, or those of a demonstrator that a store has.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ringrl.agent import Agent, PolicySource, make_agent
from ringrl.batch import Chain, LabelSource
from ringrl.config import RunConfig
from ringrl.envs import family_of, is_task, is_visible
from ringrl.errors import UserError
from ringrl.policy import Policy, RolloutSetting
from ringrl.run import RunDirectory
from ringrl.sampling.relabelled import Episodes, RelabelledEpisodes

ROWS = 4096
"""Observations in one call of a teacher: always as many, so that it is compiled once, however long contexts are."""


@dataclass(frozen=True)
class Labels:
    """What a run's steps are labelled with.

    Attributes:
        of: where they come from.
        about: what dataset.json says of them; a run continues with the same alone.
    """

    of: LabelSource
    about: dict


@dataclass(frozen=True)
class Teacher:
    """A trained agent that sees one observation and, of a family's task, the member.

    Attributes:
        run: its run directory; the newest checkpoint is read.
        agent: what was trained, which has no sequence model.
        config: its run's.
        sizes: widths of what it sees, and of its action.
        sees_member: whether the parameter of the member comes after the student's observation.
        cue: numbers of a cue, with which the student's observation ends and the parameter begins: it sees none.
    """

    run: RunDirectory
    agent: Agent
    config: RunConfig
    sizes: dict[str, int]
    sees_member: bool
    cue: int = 0

    @property
    def policy(self) -> PolicySource:
        """How it acts."""
        assert self.agent.policy is not None
        return self.agent.policy

    def about(self, step: int) -> dict:
        """What the student's dataset.json says of it; `step`: of its checkpoint.

        Its seed and a checksum of its scales tell it from others of its label.
        """
        named = {"teacher": self.run.label(), "task": self.config.data.task, "step": step}
        scales = zlib.crc32(self.run.normalizer_file.read_bytes())
        return named | {"seed": self.config.seed, "scales": scales}


def find_teacher(run: Path, config: RunConfig, episodes: Episodes) -> Teacher:
    """The teacher of a student.

    Args:
        run: its run directory, of the student's task or of its visible twin; the newest checkpoint is read.
        config: the student's.
        episodes: whose steps are to be labelled.

    Raises:
        UserError: there is no such run, its agent has a context, or it is of another task, action repeat or width.
    """
    directory = RunDirectory(run)
    own, dataset = directory.config(), directory.dataset()
    agent = make_agent(own.agent)
    if agent.decoder is not None or agent.policy is None:
        raise UserError(f"{run}: a teacher sees one observation, as td3 does, and {directory.label()} does not")
    _refuse_other(run, own, config)
    twin = is_task(own.data.task) and is_visible(own.data.task) and not is_visible(config.data.task)
    sizes, family = episodes.sizes, episodes.family if isinstance(episodes, RelabelledEpisodes) else None
    cue = 0 if family is None else family.cue
    more = 0 if family is None or not twin else len(family.parameters) - cue
    expected = {"observation": sizes["observation"] - cue + more, "action": sizes["action"]}
    if dataset["sizes"] != expected:
        raise UserError(f"{run}: a teacher of widths {dataset['sizes']}, and these episodes need one of {expected}")
    return Teacher(directory, agent, own, dataset["sizes"], twin, cue)


def teacher_labels(run: Path, config: RunConfig, episodes: Episodes) -> Labels:
    """The actions of a teacher; arguments and errors are those of `find_teacher`."""
    teacher = find_teacher(run, config, episodes)
    trained = teacher.policy.load_policy(run, teacher.config, teacher.sizes, "latest")
    returns = np.asarray(teacher.run.dataset()["returns"], np.float64)
    spec = teacher.policy.rollout_spec(1, returns)
    policy = trained.start(spec, RolloutSetting(environments=ROWS, trial_steps=1, trials=1))

    def labels(
        chain: Chain, parameter: Float32[np.ndarray, "steps parameters"] | None
    ) -> Float32[np.ndarray, "steps action"]:
        seen = chain.observation[:, : chain.observation.shape[1] - teacher.cue]
        if teacher.sees_member:
            assert parameter is not None, "contexts of a family's task say which member pays"
            seen = np.concatenate([seen, parameter[:, teacher.cue :]], axis=1)
        return act_in_blocks(policy, seen)

    return Labels(labels, teacher.about(trained.step))


def demonstrator_labels(episodes: Episodes, task: str) -> Labels:
    """The actions of a store's demonstrator.

    Args:
        episodes: whose steps are to be labelled.
        task: the student's.

    Raises:
        UserError: the store has no demonstrator, one of another task, or members of a family pay.
    """
    if isinstance(episodes, RelabelledEpisodes):
        raise UserError(
            f"agent.teacher: give the run of an agent that sees the members of {episodes.family.name}, as td3 on "
            f"visible_{episodes.family.name}; a store's demonstrator does not"
        )
    if not episodes.demonstrator:
        raise UserError(
            f"{episodes.path} has no actions of a demonstrator to learn from; collect it anew with `ringrl data "
            "collect_histories --demonstrator`, or give agent.teacher, the run of an agent that sees the task"
        )
    others = {source.task for source in episodes.sources if source.task is not None} - {task}
    if others:
        raise UserError(
            f"{episodes.path}: its demonstrator acts for {', '.join(sorted(others))}, and data.task is {task}; give "
            "agent.teacher, the run of an agent that sees the task"
        )
    return Labels("demonstrator", {"teacher": "demonstrator"})


def act_in_blocks(
    policy: Policy, observation: Float32[np.ndarray, "steps observation"]
) -> Float32[np.ndarray, "steps action"]:
    """A policy's actions for any number of observations, `ROWS` of them at a time."""
    count = len(observation)
    padded = np.zeros((-(-count // ROWS) * ROWS, observation.shape[1]), np.float32)
    padded[:count] = observation
    blocks = np.split(padded, len(padded) // ROWS) if count else []
    return np.concatenate([policy.act(block) for block in blocks])[:count]


def _refuse_other(run: Path, own: RunConfig, config: RunConfig) -> None:
    """Raise UserError where the teacher's task or action repeat does not go with the student's."""
    task, mine = own.data.task, config.data.task
    family = family_of(mine) if is_task(mine) else None
    twins = family is not None and task == f"visible_{family.name}"
    if task != mine and not twins:
        fitting = f"visible_{family.name}" if family is not None else mine
        raise UserError(f"{run}: a teacher of {task}; the steps of {mine} can be labelled by one of {fitting}")
    if own.data.action_repeat != config.data.action_repeat:
        raise UserError(
            f"{run}: a teacher of data.action_repeat {own.data.action_repeat}, and here it is "
            f"{config.data.action_repeat}; the two must be equal"
        )
