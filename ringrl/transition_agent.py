"""The base classes of agents that learn from single transitions.

| base class | how it acts | an agent |
|---|---|---|
| `TransitionAgent` | by one observation | `agents/td3.py` |
| `ReplayAgent` | by a policy of its own (`make_policy`) | `agents/forward_backward.py` |
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

import jax
import numpy as np
from jaxtyping import Float32, Float64

from ringrl.agent import AgentDescription, PolicySource, RolloutSpec, TrainedPolicy, Widths
from ringrl.collect.replay import Replay, Transitions
from ringrl.config import AgentConfig, RunConfig
from ringrl.rollout.transition_policy import TransitionPolicy
from ringrl.run import RunDirectory
from ringrl.sampling.normalizer import Normalizer
from ringrl.training.checkpoint import Checkpoints
from ringrl.training.transitions import TransitionTrainer, pack, unpack

ConfigT = TypeVar("ConfigT", bound=AgentConfig)
StateT = TypeVar("StateT")


class ReplayAgent(ABC, Generic[ConfigT, StateT]):
    """A `ringrl.agent.Agent` with networks and optimisers of its own, in a state that is a pytree of arrays.

    A subclass sets `description` and gives the five methods that are abstract here.
    """

    description: AgentDescription
    decoder: None = None

    def __init__(self, config: ConfigT):
        """`config`: the hyper-parameters."""
        self.config = config

    @abstractmethod
    def init(self, observation_size: int, action_size: int, seed: int) -> StateT:
        """The state at step 0, for observations and actions of these widths."""

    @abstractmethod
    def make_replay(self, capacity: int, observation_size: int, action_size: int) -> Replay:
        """An empty replay of `capacity` transitions, which gives minibatches as `update` takes them."""

    @abstractmethod
    def update(self, state: StateT, batches: Transitions) -> tuple[StateT, dict[str, jax.Array]]:
        """A gradient step for each minibatch: the new state, and float32 scalars, `loss` and `grad_norm` among them."""

    @abstractmethod
    def make_policy(self, state: StateT, normalizer: Normalizer, step: int) -> TrainedPolicy:
        """How it acts with the state after `step` gradient steps, on observations that `normalizer` scales."""

    @abstractmethod
    def rollout_spec(self, row_steps: int, returns: Float64[np.ndarray, " episodes"]) -> RolloutSpec:
        """See `ringrl.agent.PolicySource`."""

    @property
    def policy(self) -> PolicySource:
        """This agent."""
        return self

    def make_trainer(self, config: RunConfig) -> TransitionTrainer:
        """Gradient steps on minibatches of all transitions of the store. Raises UserError as `TransitionTrainer`."""
        return TransitionTrainer(config, self)

    def load_policy(self, run: Path, config: RunConfig, sizes: Widths, checkpoint: str) -> TrainedPolicy:
        """See `ringrl.agent.PolicySource`."""
        state, step = self.load_state(run, config, sizes, checkpoint)
        return self.make_policy(state, RunDirectory(run).normalizer(), step)

    def load_state(self, run: Path, config: RunConfig, sizes: Widths, checkpoint: str) -> tuple[StateT, int]:
        """The state of a run's checkpoint and its gradient steps; arguments and errors are those of `load_policy`."""
        like = self.init(sizes["observation"], sizes["action"], config.seed)
        with Checkpoints(run, read_only=True) as checkpoints:
            packed, about = checkpoints.restore(pack(like), checkpoint)
        return jax.device_put(unpack(packed, like)), about["step"]


class TransitionAgent(ReplayAgent[ConfigT, StateT]):
    """A `ReplayAgent` that sees one observation. A subclass gives `init`, `make_replay`, `update` and `act`."""

    @abstractmethod
    def act(
        self, state: StateT, observation: Float32[np.ndarray, "envs observation"]
    ) -> Float32[np.ndarray, "envs action"]:
        """Actions in [-1, 1], without exploration, for normalised observations."""

    def rollout_spec(self, row_steps: int, returns: Float64[np.ndarray, " episodes"]) -> RolloutSpec:
        """One observation at a time, every trial alike."""
        return RolloutSpec(context_steps=1)

    def make_policy(self, state: StateT, normalizer: Normalizer, step: int) -> TransitionPolicy:
        """Its own action, the same in every trial."""
        return TransitionPolicy(lambda observation: self.act(state, observation), normalizer, step)
