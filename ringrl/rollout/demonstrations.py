"""Demonstrations: trajectories at the beginning of an agent's context, shown as training shows trajectories to it.

| agent | its demonstrations |
|---|---|
| Agentic Transformer | conditioned on the target return of its own trials, completed where they reach it |
| Algorithm Distillation | observations, actions and rewards; it has no returns-to-go |

All are conditioned on one target, as in a chain of hindsight, where in training it is the best trajectory's return
(Liu & Abbeel 2023, section 3). The rewards are those of the task that is evaluated. Where a task is hidden, every
environment has another, so each is shown the same trajectories with the rewards of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64

from ringrl.agent import Widths
from ringrl.batch import ContextPlan, TrajectoryOrder
from ringrl.envs import is_hidden, make_env, split_task
from ringrl.episode import Episode, StepSpan
from ringrl.errors import UserError
from ringrl.policy import RolloutSpec, StepFields
from ringrl.relabelling.rewards import Relabeler
from ringrl.sampling.batches import LocalPositions, StepPlacement, assemble
from ringrl.sampling.chains import EpisodeReader, agent_steps, build_chain
from ringrl.sampling.normalizer import Normalizer
from ringrl.store.episode_store import Store


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """The steps with which contexts begin.

    Attributes:
        fields: arrays of `ringrl.batch.Batch` by name, [steps, ...], of segment 1: one for all environments, or one for
            each. Trajectory j is trial j.
        returns: of every trajectory, in the order of the context, under the environment's task.
        lengths: agent steps of every trajectory, in the same order.
    """

    fields: tuple[dict[str, np.ndarray], ...]
    returns: Float64[np.ndarray, "contexts trajectories"]
    lengths: Int64[np.ndarray, "contexts trajectories"]

    def of(self, first: int, environments: int) -> StepFields | Sequence[StepFields]:
        """The steps of so many environments from `first` on: one for all where they are the same."""
        return self.fields[0] if len(self.fields) == 1 else self.fields[first : first + environments]


@dataclass(frozen=True, eq=False)
class ContextForm:
    """How an agent is shown a trajectory.

    Attributes:
        spec: how it is rolled out: with which target return, if any.
        normalizer: the run's scales.
        sizes: widths of the observation and the action.
        action_repeat: environment steps in an agent step.
    """

    spec: RolloutSpec
    normalizer: Normalizer
    sizes: Widths
    action_repeat: int = 1

    def show(self, episodes: Sequence[Episode], order: TrajectoryOrder | None = None) -> Demonstrations:
        """Episodes in memory, whose rewards are taken as they are, for all environments.

        Args:
            episodes: with one reward column, of environment steps.
            order: `ascending` sorts by return; None keeps the order given, and so does `random`.

        Raises:
            UserError: there is none, or one has other widths or several reward columns.
        """
        if not episodes:
            raise UserError("demonstrate: there are no episodes; give one or more")
        for index, episode in enumerate(episodes):
            width = {"observation": episode.dims.observation, "action": episode.dims.action}
            self.check_widths(f"demonstrate: episode {index}", width)
            if episode.dims.reward != 1:
                raise UserError(f"demonstrate: episode {index} has {episode.dims.reward} reward columns; give one")
        return self.demonstrate([EpisodeList(episodes)], np.arange(len(episodes)), "", order)

    def demonstrate(
        self,
        readers: Sequence[EpisodeReader],
        episodes: Int64[np.ndarray, " trajectories"],
        task: str,
        order: TrajectoryOrder | None,
    ) -> Demonstrations:
        """The same episodes of each reader, with its rewards of `task`, and sorted by them if `ascending`."""
        fields, returns, lengths = [], [], []
        for reader in readers:
            earned = reader.returns(task)[episodes]
            ranked = np.argsort(earned, kind="stable") if order == "ascending" else np.arange(len(episodes))
            plan = self._plan(reader, episodes[ranked], earned[ranked])
            fields.append(self._fields(reader, plan, task))
            returns.append(earned[ranked])
            lengths.append(agent_steps(plan, self.action_repeat))
        return Demonstrations(tuple(fields), np.stack(returns), np.stack(lengths))

    def check_widths(self, what: str, widths: Widths) -> None:
        """Raise UserError, beginning with `what`, where widths are not those that the agent was trained on."""
        for name, width in self.sizes.items():
            if widths[name] != width:
                raise UserError(f"{what}: its {name} has {widths[name]} numbers, the agent was trained on {width}")

    def _plan(
        self,
        reader: EpisodeReader,
        episodes: Int64[np.ndarray, " trajectories"],
        returns: Float64[np.ndarray, " trajectories"],
    ) -> ContextPlan:
        """Whole episodes, all conditioned on the target; on their own returns where there is none to reach."""
        target = self.spec.target
        asked = returns if target is None else np.full(len(returns), target)
        completed = returns >= (np.inf if target is None else target)
        return ContextPlan(episodes, np.zeros_like(episodes), reader.lengths[episodes], asked, completed)

    def _fields(self, reader: EpisodeReader, plan: ContextPlan, task: str) -> dict[str, np.ndarray]:
        chain = build_chain(reader, plan, task, action_repeat=self.action_repeat)
        if not self.spec.subtract_rewards:
            asked = plan.target[chain.trial].astype(np.float32)
            chain = replace(chain, return_to_go=asked)
        position = np.arange(chain.length)
        row = np.zeros_like(position)
        placement = StepPlacement(row, position, row + 1, row, chain.trial.astype(np.int64))
        batch = assemble(chain, placement, 1, LocalPositions(position), self.normalizer)
        return {name: value[0] for name, value in batch.asdict().items()}


class StoredTrajectories:
    """Trajectories that are drawn from a store once, with the rewards of the task, or tasks, that are evaluated.

    Where the store has the task's rewards, those are used; else they are computed from its physics states.

    Attributes:
        count: how many were drawn.
        steps: agent steps of each, in the order in which they were drawn.
    """

    def __init__(
        self,
        store: Store,
        task: str,
        count: int,
        form: ContextForm,
        *,
        environments: int,
        seed: int,
        order: TrajectoryOrder,
    ):
        """Draw `count` different trajectories and read or compute their rewards.

        Args:
            store: where they are.
            task: that is evaluated.
            count: how many.
            form: how the agent is shown them.
            environments: of the rollout; environment i has seed `seed` + i.
            seed: of the draw, and of environment 0.
            order: of the trajectories in a context: as they were drawn, or `ascending` by return.

        Raises:
            UserError: more than the store has; a store of other widths or of another domain; or rewards that do not
                follow from what it has.
        """
        if not 1 <= count <= store.episodes:
            raise UserError(f"--trajectories {count}: {store.path} has {store.episodes}; give 1 to {store.episodes}")
        form.check_widths(str(store.path), {"observation": store.dims.observation, "action": store.dims.action})
        self._form, self._task = form, task
        self._order: TrajectoryOrder = order
        drawn = np.random.default_rng(seed).permutation(store.episodes)[:count].astype(np.int64)
        self.count, self.steps = count, -(-store.lengths[drawn] // form.action_repeat)
        self._readers: list[EpisodeReader] = [store]
        self._drawn = drawn
        if is_hidden(task) or task not in store.tasks:
            _check_relabelling(store, task)
            seeds = range(seed, seed + environments) if is_hidden(task) else [None]
            episodes = [store.episode(index, store.tasks[0]) for index in drawn.tolist()]
            self._readers = [EpisodeList(_relabelled(episodes, task, each)) for each in seeds]
            self._drawn = np.arange(count)

    def first(self, count: int) -> Demonstrations:
        """The first `count` of those drawn, 1 or more: of two numbers, the fewer are among the more."""
        return self._form.demonstrate(self._readers, self._drawn[:count], self._task, self._order)


class EpisodeList:
    """Episodes in memory as an `EpisodeReader`, each with the rewards of one task."""

    def __init__(self, episodes: Sequence[Episode]):
        """`episodes`: with one reward column, which is that of any task that is asked for."""
        self._episodes = tuple(episodes)

    @property
    def lengths(self) -> Int64[np.ndarray, " episodes"]:
        """Environment steps of every episode."""
        return np.array([episode.length for episode in self._episodes], np.int64)

    def returns(self, task: str) -> Float64[np.ndarray, " episodes"]:
        """Undiscounted return of every episode."""
        return np.array([episode.returns[0] for episode in self._episodes], np.float64)

    def read_many(self, spans: Sequence[tuple[int, int, int]], task: str) -> list[StepSpan]:
        """Environment steps `start:stop` of each (episode, start, stop)."""
        return [_span(self._episodes[episode], start, stop) for episode, start, stop in spans]


def check_demonstrations(agent: str, *, across_trials: bool) -> None:
    """Raise UserError where the agent's context is one trial; `across_trials` as in `ringrl.agent.AgentDescription`."""
    if not across_trials:
        raise UserError(
            f"--demonstrations: {agent}'s context is the present trial alone, so no other trajectory can be in it"
        )


def check_room(steps: Int64[np.ndarray, " trajectories"], context_steps: int, trial_steps: int) -> None:
    """Raise UserError where a context has no room for a trial after the demonstrations; it says how many fit.

    Args:
        steps: agent steps of every demonstration, in the order in which they were drawn.
        context_steps: agent steps in the longest context.
        trial_steps: agent steps in the longest trial.
    """
    needed = np.cumsum(steps) + trial_steps
    fit = int((needed <= context_steps).sum())
    if fit < len(steps):
        advice = f"give at most --trajectories {fit}, or" if fit else "give"
        raise UserError(
            f"--trajectories {len(steps)}: they and one trial take a context of {needed[-1]} steps, and this one is of "
            f"{context_steps}; {advice} a longer --context, or an agent trained on more trajectories"
        )


def _check_relabelling(store: Store, task: str) -> None:
    """Raise UserError where rewards of the task cannot be the only thing that the store's trajectories lack."""
    domain = split_task(task)[0]
    if store.domain != domain:
        raise UserError(f"{store.path} is of {store.domain}, and {task} of {domain}: give a store of {domain}")
    if not store.dims.physics:
        raise UserError(
            f"{store.path} has no rewards of {task}, and no physics states to compute them from; build it from files "
            "that have physics states"
        )
    if is_hidden(task) and (obstacle := _beyond_rewards(task)):
        raise UserError(f"--demonstrations: trajectories of other tasks cannot demonstrate {task}: {obstacle}")


def _beyond_rewards(task: str) -> str | None:
    """In what, other than rewards, trajectories of two tasks of a family differ; None: in nothing.

    Two environments take the same actions from the same first state. What is hidden may be seen, or turn their motors.
    """
    first, second = make_env(task, seed=0), make_env(task, seed=1)
    observed, other = (env.reset(seed=0)[0] for env in (first, second))
    if not np.allclose(observed, other):
        return "their observations show the task"
    rng = np.random.default_rng(0)
    for _ in range(8):
        action = rng.uniform(-1, 1, first.action_space.shape).astype(np.float32)
        reached, there = (env.step(action)[4]["physics"] for env in (first, second))
        if not np.allclose(reached, there, atol=1e-6):
            return "the same action does not lead to the same state in them"
    return None


def _relabelled(episodes: Sequence[Episode], task: str, seed: int | None) -> list[Episode]:
    relabel = Relabeler((task,), seed=seed)
    return [replace(episode, reward=relabel(episode)) for episode in episodes]


def _span(episode: Episode, start: int, stop: int) -> StepSpan:
    reward = episode.reward[:, 0]
    return StepSpan(
        observation=episode.observation[start : stop + 1],
        action=episode.action[start:stop],
        reward=reward[start:stop],
        discount=episode.discount[start:stop],
        earlier=reward[:start],
    )
