"""A trained agent in an environment of the user's own: act, observe, and again, over many trials."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float32

from ringrl.choices import TrajectoryOrder
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.policy import ContextPolicy, Policy, StepFields
from ringrl.rollout.demonstrations import ContextForm
from ringrl.rollout.saved_session import write_session

# A number, or anything that NumPy makes an array of.
Numbers = np.ndarray | np.generic | jax.Array | Sequence[Any] | float | int


class Session:
    """One rollout of a trained agent: its context, in one environment or in several at once.

    Time index: `act` takes o_t and gives a_t; `observe` takes the reward r_t that a_t earned, and whether the trial
    ended with it. With `environments=1` all arrays are those of the one environment, without a leading axis.

    Attributes:
        policy: who acts.
    """

    def __init__(
        self,
        policy: Policy,
        environments: int,
        observation_size: int,
        *,
        batched: bool = False,
        origin: Mapping[str, Any] | None = None,
        form: ContextForm | None = None,
    ):
        """Begin the first trial; `ringrl.rollout.trained_agent.TrainedAgent.start` makes sessions.

        Args:
            policy: of that many environments, before its first trial.
            environments: how many.
            observation_size: numbers in an observation.
            batched: whether arrays have a leading axis also where there is one environment.
            origin: of what `TrainedAgent.resume` makes the policy again.
            form: how the agent is shown trajectories; None: `demonstrate` is refused.
        """
        self.policy, self._environments, self._observation_size = policy, environments, observation_size
        self._one, self._origin, self._form = environments == 1 and not batched, dict(origin or {}), form
        self._begun = np.zeros(environments, bool)  # whether an environment's trial has steps
        self._ended = np.zeros(environments, bool)
        self._acted = False
        policy.begin_trial(np.ones(environments, bool))

    def act(self, observation: Numbers) -> Float32[np.ndarray, "*environments action"]:
        """The action for an observation.

        Args:
            observation: [O] as the environment gives it, or [environments, O] of several; not normalised.

        Returns:
            float32 in [-1, 1]: [A], or [environments, A].

        Raises:
            UserError: another shape; a trial that has ended; or an action before it whose reward was not observed.
        """
        if self._acted:
            raise UserError("session.act: the last action's reward is missing; call session.observe first")
        if self._ended.any():
            which = "" if self._environments == 1 else f" in environments {np.flatnonzero(self._ended).tolist()}"
            raise UserError(f"session.act: the trial has ended{which}; call session.new_trial() first")
        value = np.asarray(observation, np.float32)
        shape = (self._observation_size,) if self._one else (self._environments, self._observation_size)
        if value.shape != shape:
            raise UserError(f"session.act: the observation has shape {value.shape}; give {shape}")
        action = self.policy.act(value.reshape(self._environments, -1))
        self._acted = True
        return action[0] if self._one else action

    def observe(self, reward: Numbers, done: Numbers = False) -> None:
        """Add to the context what the last action earned.

        Args:
            reward: a number, or [environments]; with an action repeat, the sum over the environment steps.
            done: whether the trial ended with it, at its goal or at a time limit: one truth value, or [environments].

        Raises:
            UserError: another shape, or there was no action.
        """
        if not self._acted:
            raise UserError("session.observe: no action was taken; call session.act(observation) first")
        rewards, dones = self._each("reward", reward, np.float32), self._each("done", done, bool)
        self._acted = False
        self.policy.observe(rewards, dones)
        self._begun, self._ended = np.ones_like(self._begun), self._ended | dones

    def new_trial(self, which: Numbers = True) -> None:
        """Begin a trial: the environment was reset. Where the agent looks across trials, its context goes on.

        Where the present trial has no steps yet, nothing changes, so that a loop may call this before every trial.

        Args:
            which: of several environments, those that were reset: bool [environments]; all by default.

        Raises:
            UserError: another shape, or an action whose reward was not observed.
        """
        if self._acted:
            raise UserError("session.new_trial: the last action's reward is missing; call session.observe first")
        reset: Bool[np.ndarray, " environments"] = self._each("which", which, bool) & self._begun
        if reset.any():
            self.policy.begin_trial(reset)
        self._begun, self._ended = self._begun & ~reset, self._ended & ~reset

    @property
    def room(self) -> Bool[np.ndarray, " environments"]:
        """Whether another trial may begin in each environment: not where a full context is to stop there."""
        return np.broadcast_to(self.policy.room(), (self._environments,))

    def demonstrate(self, episodes: Sequence[Episode], order: TrajectoryOrder | None = None) -> None:
        """Begin the context with trajectories, the same in all environments, before the first action.

        Args:
            episodes: of the agent's observations and actions, an entry for each environment step, with one reward
                column, whose rewards are taken as they are. `TrainedAgent.config.data.action_repeat` of them are a step
                of the agent, as in training.
            order: `ascending` sorts them by return, as the Agentic Transformer's training does; None keeps their order.

        Raises:
            UserError: an agent whose context is one trial or one observation; a context that has begun or is too short;
                or episodes that the agent cannot be shown.
        """
        if self._form is None:
            raise UserError("session.demonstrate: this session's policy is no trained agent's")
        self.begin_with(self._form.show(episodes, order).of(0, self._environments))

    def begin_with(self, steps: StepFields | Sequence[StepFields]) -> None:
        """As `demonstrate`, with steps that `ringrl.rollout.demonstrations` made: for all environments, or for each.

        Raises UserError as that does.
        """
        if not isinstance(self.policy, ContextPolicy):
            raise UserError("demonstrations: this agent sees one observation at a time; leave them out")
        if self._acted:
            raise UserError("demonstrations: the context has steps of its own already; give them before the first act")
        self.policy.demonstrate(steps)

    @property
    def demonstrations(self) -> int:
        """Trajectories with which the context began."""
        return self.policy.demonstrations if isinstance(self.policy, ContextPolicy) else 0

    @property
    def explored(self) -> int:
        """Trials at the beginning that act at random."""
        return self.policy.explored if isinstance(self.policy, ContextPolicy) else 0

    def forget(self, which: Numbers = True) -> None:
        """Empty the context, as for another task: the next trial is the first, and there are no demonstrations.

        Args:
            which: of several environments, those to forget: bool [environments]; all by default.

        Raises:
            UserError: another shape, or an action whose reward was not observed.
        """
        self.new_trial(which)
        forgotten = self._each("which", which, bool)
        if forgotten.any() and isinstance(self.policy, ContextPolicy):
            self.policy.forget(forgotten)

    def retire(self, which: Numbers) -> None:
        """Let environments act no more: their rows stay in the batch, at little cost, and their actions mean nothing.

        Args:
            which: bool [environments].

        Raises:
            UserError: another shape, or an action whose reward was not observed.
        """
        self.new_trial(which)
        retired = self._each("which", which, bool)
        if retired.any() and isinstance(self.policy, ContextPolicy):
            self.policy.retire(retired)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file, complete or not at all; `TrainedAgent.resume` goes on with it.

        It holds the agent steps in the context, not the keys and values that follow from them.

        Args:
            path: of the file; an existing one is replaced.

        Raises:
            UserError: an action whose reward was not observed, or the file cannot be written.
        """
        if self._acted:
            raise UserError("session.save: the last action's reward is missing; call session.observe first")
        state = self.policy.state() if isinstance(self.policy, ContextPolicy) else {}
        write_session(
            user_path(path), self._origin, state | {"session/begun": self._begun, "session/ended": self._ended}
        )

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on as the session that was saved with this state; `TrainedAgent.resume` calls it."""
        if isinstance(self.policy, ContextPolicy):
            self.policy.restore(state)
        self._begun, self._ended = state["session/begun"].copy(), state["session/ended"].copy()

    def _each(self, name: str, value: Numbers, dtype: type) -> np.ndarray:
        given = np.asarray(value, dtype)
        if given.shape not in ((), (self._environments,)):
            raise UserError(f"session: {name} has shape {given.shape}; give one value, or ({self._environments},)")
        return np.broadcast_to(given, (self._environments,)).copy()
