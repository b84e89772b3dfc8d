"""A trained learner of transitions as a policy: every decision alike, whatever was seen before."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float32

from ringrl.agent import Learner
from ringrl.config import RunConfig
from ringrl.run import RunDirectory
from ringrl.sampling.normalizer import Normalizer
from ringrl.training.checkpoint import Checkpoints
from ringrl.training.transitions import restore


class LearnerPolicy:
    """The learner's own action, without noise and without a context."""

    target = None

    def __init__(self, learner: Learner, state: Any, normalizer: Normalizer):
        self._learner, self._state, self._normalizer = learner, state, normalizer

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to remember."""

    def act(self, observation: Float32[np.ndarray, "envs observation"]) -> Float32[np.ndarray, "envs action"]:
        """The action for each environment's normalised observation."""
        return self._learner.act(self._state, self._normalizer.normalize_observation(observation))

    def observe(self, reward: Float32[np.ndarray, " envs"], done: Bool[np.ndarray, " envs"]) -> None:
        """Nothing to learn."""


def load_learner(
    learner: Learner, run: Path, config: RunConfig, card: dict, checkpoint: str = "latest"
) -> tuple[LearnerPolicy, int]:
    """A checkpoint's policy, and the gradient steps it was trained for. Errors as `Checkpoints`."""
    sizes = card["sizes"]
    like = learner.init(config.agent, sizes["observation"], sizes["action"], config.seed)
    with Checkpoints(run, read_only=True) as checkpoints:
        state, about = restore(checkpoints, like, checkpoint)
    return LearnerPolicy(learner, jax.device_put(state), RunDirectory(run).normalizer()), about["step"]
