"""Many trials of many environments: while one group's are stepped, the model computes for another group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ringrl.policy import ContextPolicy
from ringrl.returns import TrialReturn
from ringrl.rollout.full_context import Dropped
from ringrl.rollout.session import Session


@runtime_checkable
class SteppedEnvs(Protocol):
    """What is asked of environments; `ringrl.envs.VectorEnv` describes it."""

    num_envs: int

    def reset(self) -> tuple[Any, dict[str, Any]]:
        """First observations."""
        ...

    def step_async(self, actions: Any, which: Any, *, restart: bool) -> None:
        """Begin a step; with `restart`, environments whose episode ends in it begin the next one."""
        ...

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Observation, reward, terminated, truncated, infos with `length`."""
        ...


@dataclass(frozen=True)
class TrialRows:
    """What the rows of a table say of all trials of a rollout.

    Attributes:
        agent: its name.
        task: the task's name.
        seed: the training run's.
    """

    agent: str
    task: str
    seed: int


@dataclass(frozen=True)
class Group:
    """Environments that act as one batch, and who acts in them.

    Attributes:
        session: batched, before its first trial.
        envs: which return a trial's last reward together with the next trial's first observation.
        rows: what their rows of the table say.
        first: index of the first of them among all environments.
    """

    session: Session
    envs: SteppedEnvs
    rows: TrialRows
    first: int = 0

    @property
    def dropped(self) -> list[Dropped]:
        """What its full contexts lost, of environments by their index among all."""
        policy = self.session.policy
        lost = policy.dropped if isinstance(policy, ContextPolicy) else ()
        return [replace(each, env=self.first + each.env) for each in lost]


def run_trials(
    groups: Sequence[Group], trials: int, *, on_step: Callable[[], None] = lambda: None
) -> list[TrialReturn]:
    """Roll out until every environment has finished its trials: `trials`, or as many as its context has room for.

    Environments are independent: each starts its next trial as soon as one has ended. One that has finished its trials
    is not stepped any more.

    Args:
        groups: which take turns, of one agent or of several.
        trials: in each environment.
        on_step: called after every agent step of a group; the next has begun.

    Returns:
        The return and the length, in environment steps, of every trial, in the order in which they ended.
    """
    results: list[TrialReturn] = []
    running = [_Running(group, trials, results) for group in groups]
    for each in running:
        each.begin()
    while running:
        for each in running:
            each.advance()
            on_step()
        running = [each for each in running if not each.finished]
    return results


class _Running:
    """A group during its rollout."""

    def __init__(self, group: Group, trials: int, results: list[TrialReturn]):
        self._session, self._envs, self._first = group.session, group.envs, group.first
        self._rows, self._results = group.rows, results
        count = group.envs.num_envs
        self._left = np.full(count, trials)  # trials to come, this one included
        self._earned, self._length, self._trial = np.zeros(count), np.zeros(count, int), np.zeros(count, int)
        target = group.session.policy.target
        self._target = np.nan if target is None else target
        self._shown, self._explored = group.session.demonstrations, group.session.explored

    @property
    def finished(self) -> bool:
        """Whether all environments have finished their trials."""
        return not (self._left > 0).any()

    def begin(self) -> None:
        """Start stepping."""
        self._act(self._envs.reset()[0])

    def advance(self) -> None:
        """Take what a step returned, and start the next one."""
        observation, reward, terminated, truncated, info = self._envs.step_wait()
        done = terminated | truncated
        self._session.observe(reward.astype(np.float32), done)
        self._earned += reward
        self._length += info["length"]
        for env in np.flatnonzero(done).tolist():
            self._record(env)
        if done.any():
            self._next_trials(done)
        if not self.finished:
            self._act(observation)

    def _act(self, observation: np.ndarray) -> None:
        self._envs.step_async(self._session.act(observation), self._left > 0, restart=True)

    def _record(self, env: int) -> None:
        rows = self._rows
        numbers = (int(self._trial[env]), float(self._earned[env]), int(self._length[env]), self._target)
        began = (self._shown, self._explored)
        self._results.append(TrialReturn(rows.agent, rows.task, rows.seed, self._first + env, *numbers, *began))

    def _next_trials(self, done: np.ndarray) -> None:
        self._left = np.where(self._session.room, self._left - done, np.where(done, 0, self._left))
        self._trial += done
        self._earned[done], self._length[done] = 0.0, 0
        # Those that have finished stay in the batch, with a context that costs little and that nothing is read from.
        self._session.new_trial(done & (self._left > 0))
        self._session.retire(self._left == 0)
