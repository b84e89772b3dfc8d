"""Demonstrations: trajectories at the beginning of an agent's context, shown as training shows trajectories to it.

| agent | its demonstrations |
|---|---|
| Agentic Transformer | conditioned on the target return of its own trials, completed where they reach it |
| Algorithm Distillation | observations, actions and rewards; it has no returns-to-go |

All are conditioned on one target, as in a chain of hindsight, where in training it is the best trajectory's return
(Liu & Abbeel 2023, section 3). The rewards are those of the task that is evaluated. Which trajectories of a store an
environment is shown, and with whose rewards, is `ringrl.rollout.stored_trajectories`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64, Int64

from ringrl.agent import Widths
from ringrl.batch import ContextPlan
from ringrl.choices import TrajectoryOrder
from ringrl.episode import Episode, StepSpan
from ringrl.errors import UserError
from ringrl.policy import RolloutSpec, StepFields
from ringrl.sampling.batches import LocalPositions, StepPlacement, assemble
from ringrl.sampling.chains import EpisodeReader, agent_steps, build_chain
from ringrl.sampling.normalizer import Normalizer


@dataclass(frozen=True, eq=False)
class Given:
    """The trajectories that one context begins with, in the order in which they were drawn.

    Attributes:
        reader: where they are.
        episodes: their indices there.
        returns: of each, under the environment's task.
        parameter: of the member of a family of rewards that pays each; None: `reader` has the task's rewards.
    """

    reader: EpisodeReader
    episodes: Int64[np.ndarray, " trajectories"]
    returns: Float64[np.ndarray, " trajectories"]
    parameter: Float32[np.ndarray, "trajectories parameters"] | None = None

    def picked(self, which: Int64[np.ndarray, " some"]) -> "Given":
        """Some of the trajectories, in that order."""
        parameter = None if self.parameter is None else self.parameter[which]
        return replace(self, episodes=self.episodes[which], returns=self.returns[which], parameter=parameter)


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """The steps with which contexts begin, of one for all environments or of one for each; read when asked for.

    Attributes:
        returns: of every trajectory, in the order of the context, under the environment's task.
        lengths: agent steps of every trajectory, in the same order.
        read: the steps of a context by its index: arrays of `ringrl.batch.Batch` by name, [steps, ...], of segment 1.
            Trajectory j is trial j.
    """

    returns: Float64[np.ndarray, "contexts trajectories"]
    lengths: Int64[np.ndarray, "contexts trajectories"]
    read: Callable[[int], dict[str, np.ndarray]]

    @property
    def fields(self) -> tuple[dict[str, np.ndarray], ...]:
        """The steps of all contexts."""
        return tuple(map(self.read, range(len(self.returns))))

    def of(self, first: int, environments: int) -> StepFields | Sequence[StepFields]:
        """The steps of so many environments from `first` on: one for all where they are the same."""
        if len(self.returns) == 1:
            return self.read(0)
        return [self.read(context) for context in range(first, first + environments)]


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
        reader = EpisodeList(episodes)
        return self.demonstrate([Given(reader, np.arange(len(episodes)), reader.returns(""))], "", order)

    def demonstrate(self, contexts: Sequence[Given], task: str, order: TrajectoryOrder | None) -> Demonstrations:
        """Contexts of equally many trajectories, with the rewards of `task`, and sorted by return if `ascending`."""
        ranked = [_ascending(each) if order == "ascending" else each for each in contexts]
        plans = [self._plan(each) for each in ranked]
        return Demonstrations(
            np.stack([each.returns for each in ranked]),
            np.stack([agent_steps(plan, self.action_repeat) for plan in plans]),
            lambda context: self._fields(ranked[context].reader, plans[context], task),
        )

    def check_widths(self, what: str, widths: Widths) -> None:
        """Raise UserError, beginning with `what`, where widths are not those that the agent was trained on."""
        for name, width in self.sizes.items():
            if widths[name] != width:
                raise UserError(f"{what}: its {name} has {widths[name]} numbers, the agent was trained on {width}")

    def _plan(self, given: Given) -> ContextPlan:
        """Whole episodes, all conditioned on the target; on their own returns where there is none to reach."""
        target, episodes, returns = self.spec.target, given.episodes, given.returns
        asked = returns if target is None else np.full(len(returns), target)
        completed = returns >= (np.inf if target is None else target)
        whole = (episodes, np.zeros_like(episodes), given.reader.lengths[episodes])
        return ContextPlan(*whole, asked, completed, parameter=given.parameter)

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


def usual_order(spec: RolloutSpec) -> TrajectoryOrder:
    """The order of demonstrations where none is asked for: that of the agent's training.

    A target return for several trials is a chain of hindsight's (Agentic Transformer), which ascends to it. Contexts of
    other agents are sets of trajectories, or histories whose order returns alone do not tell: as they were drawn.
    """
    return "random" if spec.target is None else "ascending"


def check_room(steps: Int64[np.ndarray, "contexts trajectories"], context_steps: int, trial_steps: int) -> None:
    """Raise UserError where a context has no room for a trial after the demonstrations; it says how many fit.

    Args:
        steps: agent steps of every demonstration, in the order in which they were drawn.
        context_steps: agent steps in the longest context.
        trial_steps: agent steps in the longest trial.
    """
    needed = np.cumsum(steps, axis=1).max(axis=0) + trial_steps
    fit = int((needed <= context_steps).sum())
    if fit < len(needed):
        advice = f"give at most --trajectories {fit}, or" if fit else "give"
        raise UserError(
            f"--trajectories {len(needed)}: they and one trial take a context of {needed[-1]} steps, and this one is "
            f"of {context_steps}; {advice} a longer --context, or an agent trained on more trajectories"
        )


def _ascending(given: Given) -> Given:
    return given.picked(np.argsort(given.returns, kind="stable"))


def _span(episode: Episode, start: int, stop: int) -> StepSpan:
    reward = episode.reward[:, 0]
    return StepSpan(
        observation=episode.observation[start : stop + 1],
        action=episode.action[start:stop],
        reward=reward[start:stop],
        discount=episode.discount[start:stop],
        earlier=reward[:start],
    )
