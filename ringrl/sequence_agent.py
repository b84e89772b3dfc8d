"""The base classes of agents that are transformers: on steps of episodes, and on token ids."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

import jax
import numpy as np
from jaxtyping import Float, Float32, Float64

from ringrl.agent import AgentDescription, Decoder, PolicySource, RolloutSpec, Widths
from ringrl.batch import (
    BATCH_SCHEMA,
    LABELLED_BATCH_SCHEMA,
    PRECEDED_TOKEN_BATCH_SCHEMA,
    TOKEN_BATCH_SCHEMA,
)
from ringrl.config import AgentConfig, RunConfig
from ringrl.model.output_heads import OutputHead
from ringrl.model.token_ids import TokenIds
from ringrl.model.tokens import TokenLayout
from ringrl.rollout.model_calls import ModelCalls
from ringrl.rollout.sequence_policy import TrainedSequencePolicy
from ringrl.run import RunDirectory
from ringrl.sampling.relabelled import Episodes
from ringrl.sampling.samplers import ContextSampler
from ringrl.training.mesh import rollout_mesh
from ringrl.training.sequence_trainer import SequenceTrainer
from ringrl.training.teacher import Labels
from ringrl.training.token_data import TokenData
from ringrl.training.trained_model import load_model
from ringrl.training.training_data import ContextData

ConfigT = TypeVar("ConfigT", bound=AgentConfig)
Prediction = Float[jax.Array, "batch steps ..."]
Losses = Float32[jax.Array, "batch steps"]


class SequenceAgent(ABC, Generic[ConfigT]):
    """A `ringrl.agent.Agent` that predicts actions from a context of steps.

    A subclass sets `description` and gives `context_sampler`, `tokens` and `rollout_spec`; `loss` is what all share.
    """

    description: AgentDescription

    def __init__(self, config: ConfigT):
        """`config`: the hyper-parameters."""
        self.config = config

    @abstractmethod
    def context_sampler(self, store: Episodes, task: str, action_repeat: int) -> ContextSampler:
        """Which trajectories make a context, in which order, with which target returns.

        Args:
            store: the episodes.
            task: whose rewards.
            action_repeat: environment steps per agent step.

        Raises UserError where the store has too few episodes.
        """

    @abstractmethod
    def tokens(self) -> TokenLayout:
        """What a step is to the transformer."""

    @abstractmethod
    def rollout_spec(self, row_steps: int, returns: Float64[np.ndarray, " episodes"]) -> RolloutSpec:
        """How to roll it out, given the agent steps of a training row and the data set's returns."""

    def loss(self, head: OutputHead, prediction: Prediction, batch: Mapping[str, jax.Array]) -> Losses:
        """The output head's loss of each step's action; see `ringrl.agent.Decoder` for what a loss may depend on."""
        return head.loss(prediction, batch["action"])

    @property
    def decoder(self) -> Decoder:
        """Its tokens and its loss, on a `ringrl.batch.Batch`."""
        return Decoder(self.tokens(), self.loss, BATCH_SCHEMA)

    @property
    def policy(self) -> PolicySource:
        """This agent."""
        return self

    def make_trainer(self, config: RunConfig) -> SequenceTrainer:
        """Gradient steps on batches of contexts. Raises UserError where a setting does not fit."""
        return SequenceTrainer(config, self.decoder, ContextData(config, self.context_sampler))

    def load_policy(self, run: Path, config: RunConfig, sizes: Widths, checkpoint: str) -> TrainedSequencePolicy:
        """See `ringrl.agent.PolicySource`."""
        mesh = rollout_mesh(config)
        model, step = load_model(run, config, sizes, checkpoint, self.decoder, mesh)
        normalizer = RunDirectory(run).normalizer()
        calls = ModelCalls(model, mesh, config.evaluation.cache_dtype)
        return TrainedSequencePolicy(calls, normalizer, sizes, step, self.description.across_trials)


class LabelledSequenceAgent(SequenceAgent[ConfigT]):
    """A `SequenceAgent` that learns at each step not the recorded action but a label: what another policy does there.

    A subclass also gives `labels`.
    """

    @abstractmethod
    def labels(self, config: RunConfig, episodes: Episodes) -> Labels:
        """What the steps of a run's contexts are labelled with. Raises UserError where a setting does not fit."""

    def loss(self, head: OutputHead, prediction: Prediction, batch: Mapping[str, jax.Array]) -> Losses:
        """The output head's loss of each step's label."""
        return head.loss(prediction, batch["label"])

    @property
    def decoder(self) -> Decoder:
        """Its tokens and its loss, on a `ringrl.batch.LabelledBatch`."""
        return Decoder(self.tokens(), self.loss, LABELLED_BATCH_SCHEMA)

    def make_trainer(self, config: RunConfig) -> SequenceTrainer:
        """Gradient steps on batches of labelled contexts. Raises UserError where a setting does not fit."""
        return SequenceTrainer(config, self.decoder, ContextData(config, self.context_sampler, self.labels))


class TokenAgent(ABC, Generic[ConfigT]):
    """A `ringrl.agent.Agent` that predicts the next token of a text. It has no policy.

    A subclass sets `description` and gives `tokens`.
    """

    description: AgentDescription
    policy: None = None

    def __init__(self, config: ConfigT):
        """`config`: the hyper-parameters."""
        self.config = config

    @abstractmethod
    def tokens(self) -> TokenIds:
        """Which ids there are."""

    def loss(self, head: OutputHead, prediction: Prediction, batch: Mapping[str, jax.Array]) -> Losses:
        """The output head's loss of each token's successor; see `ringrl.agent.Decoder`."""
        return head.loss(prediction, batch["target"])

    @property
    def decoder(self) -> Decoder:
        """Its tokens and its loss, on a `ringrl.batch.TokenBatch`, or its `PrecededTokenBatch`."""
        tokens = self.tokens()
        return Decoder(tokens, self.loss, PRECEDED_TOKEN_BATCH_SCHEMA if tokens.previous else TOKEN_BATCH_SCHEMA)

    def make_trainer(self, config: RunConfig) -> SequenceTrainer:
        """Gradient steps on windows of the text. Raises UserError where a setting does not fit."""
        return SequenceTrainer(config, self.decoder, TokenData(config, self.tokens()))
