"""A trained transformer as a policy over a batch of environments, with returns-to-go and trials as in training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64

from ringrl.agent import Widths
from ringrl.batch import BATCH_SCHEMA, PREVIOUS
from ringrl.errors import UserError
from ringrl.policy import RolloutSetting, RolloutSpec, StepFields
from ringrl.rollout.ablation import AblatedContext
from ringrl.rollout.context import CachedContext, RecomputedContext
from ringrl.rollout.exploration import Exploration
from ringrl.rollout.full_context import Dropped
from ringrl.rollout.model_calls import ModelCalls
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.relabelled import PAID


class SequencePolicy:
    """A transformer agent. Where `across_trials`, earlier trials stay in its context.

    Args:
        calls: the trained model's.
        normalizer: the run's scales.
        spec: how it is rolled out.
        setting: in what, and for how long.
        sizes: widths of the observation and the action.
        across_trials: as in `ringrl.agent.AgentDescription`.
    """

    def __init__(
        self,
        calls: ModelCalls,
        normalizer: Normalizer,
        spec: RolloutSpec,
        setting: RolloutSetting,
        sizes: Widths,
        *,
        across_trials: bool,
    ):
        self._calls, self._normalizer, self._spec, self._setting = calls, normalizer, spec, setting
        self._sizes, self._across_trials, self.target = sizes, across_trials, spec.target
        self.demonstrations = self._demonstrated = self._agent_steps = 0  # trajectories, their steps, steps acted
        self._made: Context | None = None
        self._exploration = Exploration(setting)
        envs = setting.environments
        self._earned = np.zeros(envs)  # in this trial so far, float64 as the data set's returns
        # The last step's action, reward and completion.
        self._outcome = {name: BATCH_SCHEMA[name].zeros((envs,), sizes) for name in PREVIOUS}
        self._step = np.zeros(envs, np.int32)

    @property
    def _context(self) -> "Context":
        """Made when it is first needed, for demonstrations decide its size, and two caches might not fit."""
        if self._made is None:
            self._made = self._make_context(())
        return self._made

    def _make_context(self, steps: StepFields | Sequence[StepFields]) -> "Context":
        """A context that begins with the demonstrations `steps`."""
        spec, setting, trial_steps = self._spec, self._setting, self._setting.trial_steps
        if not self._across_trials:
            if spec.context_steps < trial_steps:
                return RecomputedContext(self._calls, setting.environments, spec.context_steps, self._sizes)
            return CachedContext(self._calls.decoder, trial_steps, setting, self._sizes)
        total = trial_steps * setting.trials + self._demonstrated
        most = min(spec.context_steps, total)
        if not self._demonstrated and trial_steps < most < min(total, 2 * trial_steps):
            most = trial_steps  # there is no room for two trials, so each has the context to itself
        if setting.ablation is None:
            return CachedContext(self._calls.decoder, most, setting, self._sizes, steps)
        target, paid = (spec.target or 0.0) / self._normalizer.return_scale, PAID / self._normalizer.reward_scale
        shown = {"target": target, "paid": paid, "demonstrations": steps}
        return AblatedContext(self._calls.decoder, most, setting, self._sizes, **shown)

    def demonstrate(self, steps: StepFields | Sequence[StepFields]) -> None:
        """See `ringrl.policy.ContextPolicy`, which says when it raises UserError."""
        if not self._across_trials:
            raise UserError("demonstrations: this agent's context is the present trial alone; leave them out")
        if self._made is not None and self._made.begun:
            raise UserError("demonstrations: the context has begun already; give them once, before the first act")
        rows = [steps] if isinstance(steps, Mapping) else steps
        longest, room = max(len(row["step"]) for row in rows), self._spec.context_steps - self._setting.trial_steps
        if longest > room:
            raise UserError(
                f"demonstrations of {longest} agent steps do not fit: a context of {self._spec.context_steps} that "
                f"leaves room for a trial takes {max(room, 0)}; give fewer, or a longer --context"
            )
        self.demonstrations = max(int(row["trial"].max(initial=-1)) + 1 for row in rows)
        self._demonstrated, self._made = longest, None
        self._made = self._make_context(steps)

    @property
    def explored(self) -> int:
        """See `ringrl.policy.ContextPolicy`."""
        return self._exploration.trials

    @property
    def dropped(self) -> Sequence[Dropped]:
        """See `ringrl.policy.ContextPolicy`."""
        return self._context.dropped

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """These environments were reset: their time restarts, and their context too unless it goes across trials."""
        self._step = np.where(which, 0, self._step).astype(np.int32)
        self._earned = np.where(which, 0.0, self._earned)
        self._exploration.begin_trial(which)
        if not self._across_trials and self._made is not None:
            self._made.clear(which)

    def forget(self, which: Bool[np.ndarray, " envs"]) -> None:
        """See `ringrl.policy.ContextPolicy`."""
        self._context.clear(which)
        self._exploration.forget(which)
        if which.all():
            self.demonstrations = 0

    def retire(self, which: Bool[np.ndarray, " envs"]) -> None:
        """See `ringrl.policy.ContextPolicy`."""
        self._context.retire(which)
        self._exploration.forget(which)

    def act(self, observation: Float32[np.ndarray, "envs observation"]) -> Float32[np.ndarray, "envs action"]:
        """The head's mode, or a draw where the agent samples; a random action in trials that explore."""
        step = {
            "observation": self._normalizer.normalize_observation(observation),
            "return_to_go": (self._to_go() / self._normalizer.return_scale).astype(np.float32),
            "step": self._step,
        }
        exploring, action = self._exploration.draw(self._sizes["action"])
        if exploring.all():
            self._context.follow(step)
        else:
            raw = self._context.predict(step)
            draw = (self._setting.seed, self._setting.first, self._agent_steps) if self._spec.sample else None
            action = np.where(exploring[:, None], action, self._calls.act(raw, draw))
        self._outcome["action"] = action
        return action

    def _to_go(self) -> Float64[np.ndarray, " envs"]:
        return (self.target or 0.0) - (self._earned if self._spec.subtract_rewards else np.zeros_like(self._earned))

    def observe(self, reward: Float32[np.ndarray, " envs"], done: Bool[np.ndarray, " envs"]) -> None:
        """Add the step's outcome to the context; completion is 1 where a trial ends with at least its target return."""
        self._earned = self._earned + reward
        reached = done & (self._earned >= (np.inf if self.target is None else self.target))
        self._outcome["reward"] = (reward / np.float32(self._normalizer.reward_scale)).astype(np.float32)
        self._outcome["completion"] = reached.astype(np.float32)
        self._context.amend(self._outcome)
        self._step = self._step + 1
        self._agent_steps += 1

    def room(self) -> Bool[np.ndarray, " envs"]:
        """Whether another trial may begin in each environment."""
        return self._context.room() | (not self._across_trials)

    def state(self) -> dict[str, np.ndarray]:
        """See `ringrl.policy.ContextPolicy`."""
        own = {"earned": self._earned, "step_of_trial": self._step, "agent_steps": np.array(self._agent_steps)}
        shown = {"demonstrations": self.demonstrations, "demonstrated_steps": self._demonstrated}
        own |= self._exploration.state()
        return self._context.state() | own | {name: np.array(value) for name, value in shown.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `ringrl.policy.ContextPolicy`."""
        # Demonstrations are among the context's steps; their number decides its size.
        self.demonstrations, self._demonstrated = int(state["demonstrations"]), int(state["demonstrated_steps"])
        self._made = None
        self._context.restore(state)
        self._earned, self._step = state["earned"].copy(), state["step_of_trial"].copy()
        self._agent_steps = int(state["agent_steps"])
        self._exploration.restore(state)


Context = CachedContext | RecomputedContext


@dataclass(frozen=True, eq=False)
class TrainedSequencePolicy:
    """A `ringrl.policy.TrainedPolicy`: a transformer agent of a checkpoint."""

    calls: ModelCalls
    """The model's."""
    normalizer: Normalizer
    """The run's scales."""
    sizes: Widths
    """Widths of the observation and the action."""
    step: int
    """Optimiser steps that it was trained for."""
    across_trials: bool
    """As in `ringrl.agent.AgentDescription`."""

    def start(self, spec: RolloutSpec, setting: RolloutSetting) -> SequencePolicy:
        """See `ringrl.policy.TrainedPolicy`."""
        return SequencePolicy(self.calls, self.normalizer, spec, setting, self.sizes, across_trials=self.across_trials)
