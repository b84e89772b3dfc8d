"""Agents that see which member of a family of rewards pays, where no observation shows it.

Retrieval is such an agent in the hidden task, sent to the best-paid state of its context. A reference, not an agent.

An agent of `visible_NAME` sees which member of a family of rewards pays. Rolled out in `hidden_NAME`, it is given a
guess in its place: what is known to a learner that keeps the one best state of its context and acts as this agent does.
It bounds nothing: an agent that reads several rewards together may know more, as of goals three distances tell where.

| the context | the guess |
|---|---|
| was paid | a member that pays in the best-paid state in which one does (`RewardFamily.hindsight`) |
| was not, or where no member pays | a member drawn as tasks are, by the environment's seed, not its own |

States beyond the arena in which goals lie may be paid a little, and no goal can lie there: then the next best counts.
Rewards and states are those of environment steps, and rewards of any size are read: of goals whose rewards never end
(maze, jaco) also those that are nothing beside the numbers of order 1 that a model sees. Its own trials teach it
nothing, for a rollout has no features.

In a canonical task of the family, such as walker_walk, nothing is hidden: there it is given the member that the task is
(`as_canonical`), and called by its own name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from ringrl.agent import AgentDescription
from ringrl.batch import ContextPlan
from ringrl.envs import RewardFamily, family_of, is_visible
from ringrl.errors import UserError
from ringrl.policy import UNBOUNDED, Policy, RolloutSetting, RolloutSpec, StepFields, TrainedPolicy
from ringrl.rollout.demonstrations import ContextForm
from ringrl.rollout.evaluable import check_other_task
from ringrl.rollout.full_context import Dropped
from ringrl.rollout.trained_agent import TrainedAgent
from ringrl.sampling.chains import EpisodeReader
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.relabelled import RelabelledEpisodes

NAME = "retrieval"
_GUESS, _HINDSIGHT = 12, 13  # streams of an environment's seed
_PAID = 0.01  # the least reward of a guess in the state that it is made of, as of members made in hindsight in training
_AT_ONCE = 64  # states for which guesses are made together


def is_retrieval(own: str, task: str) -> bool:
    """Whether an agent of the task `own` is retrieval in `task`: it sees a member of a family, and that hides one."""
    return is_visible(own) and family_of(own) is not None and family_of(task) is not None and not is_visible(task)


def is_canonical(own: str, task: str) -> bool:
    """Whether `task` is a canonical one of the family whose members an agent of the task `own` sees."""
    family = family_of(own)
    return family is not None and is_visible(own) and task in family.canonical


def as_retrieval(run: Path, agent: TrainedAgent, task: str, *, knows: bool = False) -> TrainedAgent:
    """An agent that sees members of a family, given a guess in `task`, which hides them.

    Args:
        run: its directory.
        agent: of the family's visible task, with one observation as its context.
        task: `is_retrieval`; of the agent's domain, with members of as many numbers.
        knows: it is given the environments' own members instead, of which a guess falls short.

    Raises:
        UserError: an agent with a context of its own, or a task of another domain or of other widths, or a library.
    """
    family, own = family_of(task), family_of(agent.config.data.task)
    assert family is not None and own is not None
    if family.cue:
        raise UserError(f"--task {task}: retrieval keeps one state, and a library has several members; leave it out")
    if family.domain != own.domain:
        raise UserError(
            f"--task {task}: is of {family.domain}, and {agent.name} sees members of {own.name}, of {own.domain}; give "
            "a task of that domain"
        )
    sizes = _without_member(run, agent, task, len(family.parameters))
    return replace(
        agent.in_task(task),
        name=NAME,
        description=AgentDescription("Retrieval", across_trials=True),
        sizes=sizes,
        spec=RolloutSpec(context_steps=UNBOUNDED),
        form_of=FeatureForm,
        _policy=TrainedRetrieval(agent._policy, family, family.member if knows else None),
    )


def as_canonical(run: Path, agent: TrainedAgent, task: str) -> TrainedAgent:
    """An agent that sees members of a family, given the member that `task` is; `is_canonical`.

    Raises UserError as `as_retrieval`.
    """
    family = family_of(agent.config.data.task)
    assert family is not None
    member = np.asarray(family.canonical[task], np.float32)
    return replace(
        agent.in_task(task),
        sizes=_without_member(run, agent, task, len(member)),
        _policy=TrainedRetrieval(agent._policy, family, lambda seed: member),
    )


def _without_member(run: Path, agent: TrainedAgent, task: str, parameters: int) -> dict[str, int]:
    """The widths of `task`, in which the agent's observation lacks the member's numbers."""
    if agent.has_context or agent.description.across_trials:
        raise UserError(
            f"--task {task}: {agent.name} has a context of its own, and a member is given to an agent that sees one "
            "observation, such as td3; evaluate it in its visible task"
        )
    sizes = dict(agent.sizes) | {"observation": agent.sizes["observation"] - parameters}
    check_other_task(run, task, sizes)
    return sizes


class FeatureForm(ContextForm):
    """How retrieval is shown trajectories: by the environment steps' rewards and what those read of the physics."""

    def _fields(self, reader: EpisodeReader, plan: ContextPlan, task: str) -> dict[str, np.ndarray]:
        if not isinstance(reader, RelabelledEpisodes) or plan.parameter is None:
            raise UserError(f"--demonstrations: retrieval in {task} needs a store of its domain, with its features")
        spans = list(zip(plan.episode.tolist(), plan.start.tolist(), plan.stop.tolist(), strict=True))
        count = plan.stop - plan.start
        return {
            "trial": np.repeat(np.arange(len(count), dtype=np.int32), count),
            "reward": np.concatenate(reader.rewards(spans, plan.parameter)),
            "feature": np.concatenate(reader.features(spans)),
        }


@dataclass(frozen=True, eq=False)
class TrainedRetrieval:
    """A `ringrl.policy.TrainedPolicy`.

    Attributes:
        inner: of the agent that sees the member.
        family: of the members.
        known: the member of an environment's seed, where it is given that; None: it has to guess.
    """

    inner: TrainedPolicy
    family: RewardFamily
    known: Callable[[int], Float32[np.ndarray, " parameters"]] | None = None

    @property
    def step(self) -> int:
        """Gradient steps that the agent was trained for."""
        return self.inner.step

    @property
    def normalizer(self) -> Normalizer:
        """The agent's scales, of observations that end with the member."""
        return self.inner.normalizer

    def start(self, spec: RolloutSpec, setting: RolloutSetting) -> "RetrievalPolicy":
        """See `ringrl.policy.TrainedPolicy`."""
        return RetrievalPolicy(self.inner.start(spec, setting), self.family, setting, self.known)


class RetrievalPolicy:
    """A `ringrl.policy.ContextPolicy`, whose context is what it was shown first.

    Attributes:
        target: None, for it is not conditioned on a return.
        dropped: nothing ever is.
        explored: 0, for its own trials teach it nothing.
        demonstrations: trajectories with which the context began.
        parameter: float32 [envs, P], the member that each environment's observation is made to end with.
    """

    target: None = None
    dropped: Sequence[Dropped] = ()
    explored: int = 0

    def __init__(
        self,
        inner: Policy,
        family: RewardFamily,
        setting: RolloutSetting,
        known: Callable[[int], Float32[np.ndarray, " parameters"]] | None,
    ):
        """`inner` sees the member; environment i of the setting has the seed `seed + first + i`, of which `known`."""
        self._inner, self._family, self.demonstrations = inner, family, 0
        self._seeds = [setting.seed + setting.first + env for env in range(setting.environments)]
        self._unpaid = np.stack([(known or self._guess)(seed) for seed in self._seeds])
        self.parameter: Float32[np.ndarray, "envs parameters"] = self._unpaid.copy()

    def _guess(self, seed: int) -> Float32[np.ndarray, " parameters"]:
        return self._family.members(np.random.default_rng((seed, _GUESS)), 1)[0]

    def demonstrate(self, steps: StepFields | Sequence[StepFields]) -> None:
        """Take the best-paid state of each context in which a member pays, if any. `steps` are of `FeatureForm`."""
        rows = [steps] * len(self._seeds) if isinstance(steps, Mapping) else steps
        for env, row in enumerate(rows):
            self.demonstrations = max(self.demonstrations, int(row["trial"].max(initial=-1)) + 1)
            rng = np.random.default_rng((self._seeds[env], _HINDSIGHT))
            found = _best_paid(self._family, rng, row["reward"], row["feature"])
            if found is not None:
                self.parameter[env] = found

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to remember."""
        self._inner.begin_trial(which)

    def act(self, observation: Float32[np.ndarray, "envs observation"]) -> Float32[np.ndarray, "envs action"]:
        """The agent's action, for observations that end with the guess."""
        return self._inner.act(np.concatenate([observation, self.parameter], axis=1))

    def observe(self, reward: Float32[np.ndarray, " envs"], done: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to learn."""
        self._inner.observe(reward, done)

    def room(self) -> Bool[np.ndarray, " envs"]:
        """Always."""
        return np.ones(len(self._seeds), bool)

    def forget(self, which: Bool[np.ndarray, " envs"]) -> None:
        """See `ringrl.policy.ContextPolicy`."""
        self.parameter[which] = self._unpaid[which]
        if which.all():
            self.demonstrations = 0

    def retire(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Its environments cost nothing."""

    def state(self) -> dict[str, np.ndarray]:
        """See `ringrl.policy.ContextPolicy`."""
        return {"parameter": self.parameter.copy(), "demonstrations": np.array(self.demonstrations)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `ringrl.policy.ContextPolicy`."""
        self.parameter, self.demonstrations = state["parameter"].copy(), int(state["demonstrations"])


def _best_paid(
    family: RewardFamily,
    rng: np.random.Generator,
    reward: Float32[np.ndarray, " steps"],
    feature: Float32[np.ndarray, "steps features"],
) -> Float32[np.ndarray, " parameters"] | None:
    """A member that pays in the best-paid state in which one does; None where there is no such state."""
    paid = np.flatnonzero(reward > 0)
    best = paid[np.argsort(-reward[paid], kind="stable")]
    for first in range(0, len(best), _AT_ONCE):
        seen = feature[best[first : first + _AT_ONCE]]
        guess = family.hindsight(rng, seen)
        pays = family.reward(seen, guess) >= _PAID
        if pays.any():
            return guess[pays.argmax()]
    return None
