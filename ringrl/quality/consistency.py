"""Whether stored episodes are what our environments would have recorded, row by row.

Each row's physics state is set, with its action as the control, and the observation and the rewards that follow are
compared with the stored ones. Nothing is simulated: MuJoCo's dynamics differ between versions, its kinematics do not.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ringrl.envs import DMControlEnv, make_env, split_task, tasks
from ringrl.episode import Dims, Episode
from ringrl.errors import UserError
from ringrl.formats.exorl import DummyRow
from ringrl.quality.column_difference import ATOL
from ringrl.quality.consistency_report import ConsistencyReport, ExpectedFact
from ringrl.quality.observation_check import ObservationCheck
from ringrl.quality.reward_check import RewardCheck


def check_episodes(
    episodes: Iterable[tuple[Episode, DummyRow]], domain: str, dims: Dims, expected_tasks: Sequence[str] | None = None
) -> ConsistencyReport:
    """Compare episodes with the environments of a domain.

    Args:
        episodes: with their files' dummy rows; all of the widths `dims`.
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
    facts, observation = _Facts(env), ObservationCheck(env)
    rewards = RewardCheck(domain, dims, expected)
    for episode, dummy in episodes:
        facts.add(episode, dummy)
        observation.add(episode, dummy.action)
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

    def add(self, episode: Episode, dummy: DummyRow) -> None:
        self.episodes += 1
        self.rows += episode.length + 1
        self._lengths.add(episode.length)
        ended = bool(episode.discount[-1] == 0.0)
        self._whole &= episode.length == self._limit or (ended and episode.length < self._limit)
        self._lowest = min(self._lowest, float(episode.action.min()))
        self._highest = max(self._highest, float(episode.action.max()))
        self._discounts |= set(np.unique(episode.discount).tolist())
        self._discounts_right &= bool((episode.discount[:-1] == 1.0).all()) and episode.discount[-1] in (0.0, 1.0)
        self._dummies &= dummy.standard

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
            ExpectedFact("discount", "1; 0 only in the last step", discounts, self._discounts_right),
            ExpectedFact(
                "dummy row",
                "action 0, reward 0, discount 1",
                "so in every episode" if self._dummies else "not so in some episode",
                self._dummies,
            ),
        )
