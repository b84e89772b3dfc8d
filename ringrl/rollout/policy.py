"""A trained agent as a policy over a batch of environments, with returns-to-go, trials and segments as in training."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float32, Float64

from ringrl.agent import RolloutSpec, Widths
from ringrl.batch import BATCH_SCHEMA, PREVIOUS
from ringrl.config import Ablation
from ringrl.envs import DMControlEnv, VectorEnv
from ringrl.model.transformer import Transformer
from ringrl.rollout.ablation import AblatedContext
from ringrl.rollout.context import CachedContext, RecomputedContext
from ringrl.sampling.normalizer import Normalizer


class RandomPolicy:
    """Uniform actions: the reference that scores are normalised by."""

    target = None

    def __init__(self, envs: int, action_size: int, seed: int):
        self._shape, self._rng = (envs, action_size), np.random.default_rng(seed)

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to remember."""

    def act(self, observation: Float32[np.ndarray, "envs observation"]) -> Float32[np.ndarray, "envs action"]:
        """Uniform in [-1, 1]."""
        return self._rng.uniform(-1.0, 1.0, self._shape).astype(np.float32)

    def observe(self, reward: Float32[np.ndarray, " envs"], done: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to learn."""


class ExpertPolicy:
    """The task's own `expert`, which sees the physics state and the hidden task: a bound on what agents can earn."""

    target = None

    def __init__(self, envs: VectorEnv):
        self._envs = envs

    @staticmethod
    def knows(env: DMControlEnv) -> bool:
        """Whether the environment's task has one: a method `expert(physics)`, float64 [A] in [-1, 1]."""
        return hasattr(env.task, "expert")

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to remember."""

    def act(self, observation: Float32[np.ndarray, "envs observation"]) -> Float32[np.ndarray, "envs action"]:
        """Each expert's action in the environment's present physics state; `observation` is not used."""
        return self._envs.expert()

    def observe(self, reward: Float32[np.ndarray, " envs"], done: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to learn."""


class SequencePolicy:
    """A transformer agent. Where `across_trials`, earlier trials stay in its context.

    Args:
        model: the trained decoder.
        normalizer: the run's scales.
        spec: how it is rolled out.
        across_trials: as in `ringrl.agent.AgentDescription`.
        envs: environments in the batch.
        episode_steps: agent steps in the longest episode.
        trials: trials to come; with `episode_steps` it bounds the context.
        sizes: widths of the observation and the action.
        seed: of the drawn actions, and of an ablation's random order.
        ablation: how earlier trials are ablated (`ringrl.rollout.ablation`), where `across_trials`; None: not.
    """

    def __init__(
        self,
        model: Transformer,
        normalizer: Normalizer,
        spec: RolloutSpec,
        *,
        across_trials: bool,
        envs: int,
        episode_steps: int,
        trials: int,
        sizes: Widths,
        seed: int,
        ablation: Ablation | None = None,
    ):
        self._normalizer, self._spec, self.target = normalizer, spec, spec.target
        self._across_trials = across_trials
        self._head, self._key = model.head, jax.random.key(seed)
        total = episode_steps * trials
        windowed = not across_trials and spec.context_steps < episode_steps
        # Without a window, a context that is cleared at every trial still fills one slot a step of every trial.
        steps = min(spec.context_steps, total) if across_trials or windowed else total
        if episode_steps < steps < min(total, 2 * episode_steps):
            steps = episode_steps  # there is no room for two trials, so each has the context to itself
        if windowed:
            self._context = RecomputedContext(model, envs, steps, sizes)
        elif ablation is None:
            self._context = CachedContext(model, envs, steps, episode_steps, sizes)
        else:
            target = (spec.target or 0.0) / normalizer.return_scale
            self._context = AblatedContext(
                model, envs, steps, episode_steps, sizes, ablation=ablation, target=target, seed=seed
            )
        self._act = jax.jit(self._head.act)
        self._agent_steps = 0
        integers = np.zeros(envs, np.int32)
        self._earned = np.zeros(envs)  # in this trial so far, float64 as the data set's returns
        # The last step's action, reward and completion, which are the next one's `previous_*`.
        self._outcome = {name: BATCH_SCHEMA[name].zeros((envs,), sizes) for name in PREVIOUS}
        self._step, self._trial, self._position, self._segment = integers, integers - 1, integers, integers

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """These environments were reset: their time restarts, and their context too unless it goes across trials."""
        self._step = np.where(which, 0, self._step).astype(np.int32)
        self._earned = np.where(which, 0.0, self._earned)
        if self._across_trials:
            self._trial = (self._trial + which).astype(np.int32)
            self._segment = np.ones_like(self._segment)
            return
        self._trial = np.zeros_like(self._trial)
        self._segment = (self._segment + which).astype(np.int32)
        self._position = np.where(which, 0, self._position).astype(np.int32)
        for name, value in self._outcome.items():
            self._outcome[name] = np.where(which[:, None] if value.ndim > 1 else which, np.float32(0), value)

    def act(self, observation: Float32[np.ndarray, "envs observation"]) -> Float32[np.ndarray, "envs action"]:
        """The head's mode, or a draw where the agent samples."""
        step = {
            "observation": self._normalizer.normalize_observation(observation),
            "return_to_go": self._to_go() / self._normalizer.return_scale,
            "step": self._step,
            "trial": self._trial,
            "position": self._position,
            "segment_ids": self._segment,
        }
        step |= {previous: self._outcome[name] for name, previous in PREVIOUS.items()}
        key = jax.random.fold_in(self._key, self._agent_steps) if self._spec.sample else None
        self._outcome["action"] = np.asarray(self._act(self._context.predict(step), key))
        return self._outcome["action"]

    def _to_go(self) -> Float64[np.ndarray, " envs"]:
        return (self.target or 0.0) - (self._earned if self._spec.subtract_rewards else np.zeros_like(self._earned))

    def observe(self, reward: Float32[np.ndarray, " envs"], done: Bool[np.ndarray, " envs"]) -> None:
        """Add the step's outcome to the context; completion is 1 where a trial ends with at least its target return."""
        self._earned = self._earned + reward
        reached = done & (self._earned >= (np.inf if self.target is None else self.target))
        self._outcome["reward"] = (reward / np.float32(self._normalizer.reward_scale)).astype(np.float32)
        self._outcome["completion"] = reached.astype(np.float32)
        self._context.amend(self._outcome)
        self._step, self._position = self._step + 1, self._position + 1
        self._agent_steps += 1


@dataclass(frozen=True)
class TrainedSequencePolicy:
    """A `ringrl.agent.TrainedPolicy`: a transformer agent of a checkpoint."""

    model: Transformer
    """The decoder, on one device."""
    normalizer: Normalizer
    """The run's scales."""
    sizes: Widths
    """Widths of the observation and the action."""
    step: int
    """Optimiser steps that it was trained for."""
    across_trials: bool
    """As in `ringrl.agent.AgentDescription`."""

    def start(
        self,
        environments: int,
        trial_steps: int,
        spec: RolloutSpec,
        *,
        trials: int,
        seed: int,
        ablation: Ablation | None = None,
    ) -> SequencePolicy:
        """See `ringrl.agent.TrainedPolicy`."""
        return SequencePolicy(
            self.model,
            self.normalizer,
            spec,
            across_trials=self.across_trials,
            envs=environments,
            episode_steps=trial_steps,
            trials=trials,
            sizes=self.sizes,
            seed=seed,
            ablation=ablation,
        )
