"""Agentic Transformer (Liu & Abbeel 2023, "chain of hindsight"): trials in one context, each better than the last.

- context: n whole trajectories in ascending order of return, all conditioned on the best one's return
- tokens: return-to-go, observation, action, reward, and a completion token that is 1 where a trial reached the target;
  fused, each step sees the action and reward before it in its trial: neither a trial's last reward nor its completion,
  which comes there alone, so that there is no completion then
- loss: the head's, at every step of every trajectory
- acts: n trials in one context, each with the same high target return; the context is never cleared between them
"""

from typing import Literal

import numpy as np
from jaxtyping import Float64
from pydantic import Field, model_validator

from ringrl.agent import AgentDescription, RolloutSpec
from ringrl.config import AgentConfig
from ringrl.errors import UserError
from ringrl.model.tokens import TokenLayout
from ringrl.sampling.relabelled import Episodes, RelabelledEpisodes
from ringrl.sampling.relabelled_samplers import MemberSampler, TrajectorySampler
from ringrl.sampling.samplers import ContextSampler, HindsightSampler, top_fraction
from ringrl.sequence_agent import SequenceAgent


class Config(AgentConfig):
    """Hyper-parameters."""

    trajectories: int = Field(default=4, ge=1)  # n, trajectories in a chain (paper: 4; Ring Attention trains with 128)
    fraction: float = Field(default=1.0, gt=0, le=1)  # share of time steps drawn from, best episodes first (paper: 1)
    # how they are drawn: "uniform" among all, or "stratified": one from each n-th part of the episodes by return
    draw: Literal["uniform", "stratified"] = "uniform"
    target_jitter: float = Field(default=0.0, ge=0, lt=1)  # targets in training are scaled by 1 +- this (paper: 0)
    within_source: bool = False  # whether a chain is of one source only: for stores where a source is a hidden task
    completion: bool = True  # whether a step has a completion token; where fused, none has

    @model_validator(mode="after")
    def _check_fraction(self) -> "Config":
        if self.within_source and self.fraction < 1:
            raise ValueError("fraction ranks the episodes of all sources together; with within_source leave it at 1")
        return self


class Agent(SequenceAgent[Config]):
    """Each trial of a context is conditioned on the best return, and the next is to come closer to it."""

    description = AgentDescription("Agentic Transformer", across_trials=True)

    def context_sampler(self, store: Episodes, task: str, action_repeat: int) -> ContextSampler:
        """Chains of hindsight (the paper's section 3); on tasks of a family each chain is paid by another member."""
        c = self.config
        if isinstance(store, RelabelledEpisodes):
            return self._relabelled(store)
        returns = store.returns(task)
        best = top_fraction(store.lengths, returns, c.fraction) if c.fraction < 1 else None
        source = store.source if c.within_source else None
        return HindsightSampler(
            store.lengths, returns, c.trajectories, best, draw=c.draw, target_jitter=c.target_jitter, source=source
        )

    def _relabelled(self, episodes: RelabelledEpisodes) -> MemberSampler:
        c = self.config
        if c.fraction < 1 or c.draw != "uniform":
            raise UserError(
                "agent.fraction and agent.draw rank episodes by return, and on a task of a family every chain has a "
                "reward of its own; leave both at their defaults"
            )
        whole = TrajectorySampler(episodes.lengths, c.trajectories, source=episodes.source if c.within_source else None)
        return MemberSampler(whole, episodes, order="ascending", target_jitter=c.target_jitter)

    def tokens(self) -> TokenLayout:
        """All five modalities; four without the completion token, as where fused."""
        # Fused tokens hold the completion of the step before in the same trial, which is never its last: always 0.
        extra = ("completion",) if self.config.completion and not self.config.fused else ()
        return TokenLayout(("return_to_go", "observation", "action", "reward", *extra), fused=self.config.fused)

    def rollout_spec(self, row_steps: int, returns: Float64[np.ndarray, " episodes"]) -> RolloutSpec:
        """Every trial has the best return of the data as its target."""
        return RolloutSpec(row_steps, target=float(returns.max()), sample=self.config.sample)
