"""The policy of an agent that learned from transitions: it sees one observation and remembers nothing."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from ringrl.policy import RolloutSetting, RolloutSpec
from ringrl.sampling.normalizer import Normalizer


@dataclass(frozen=True)
class TransitionPolicy:
    """The agent's own action, without noise and without a context.

    It is the same in every trial and in all environments, so it is a `ringrl.policy.TrainedPolicy` as well as a
    `ringrl.policy.Policy`.
    """

    action: Callable[[np.ndarray], np.ndarray]
    """Normalised observations, float32 [envs, O] -> actions in [-1, 1], float32 [envs, A]."""
    normalizer: Normalizer
    """The run's scales."""
    step: int
    """Gradient steps that it was trained for."""
    target: None = None

    def start(self, spec: RolloutSpec, setting: RolloutSetting) -> "TransitionPolicy":
        """Itself; there is no context to ablate (`ringrl.rollout.ablation.check_ablation` refuses it)."""
        return self

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to remember."""

    def act(self, observation: Float32[np.ndarray, "envs observation"]) -> Float32[np.ndarray, "envs action"]:
        """The action for each environment's observation."""
        return self.action(self.normalizer.normalize_observation(observation))

    def observe(self, reward: Float32[np.ndarray, " envs"], done: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to learn."""

    def room(self) -> Bool[np.ndarray, ""]:
        """Always."""
        return np.array(True)
