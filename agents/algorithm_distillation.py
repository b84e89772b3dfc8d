"""Algorithm Distillation (Laskin et al. 2022): imitate not an expert but the *learning* of one.

- context: n episodes from one source learner's history, every k-th, in the order of learning; never across sources
- tokens: observation, action, reward; no returns. Fused, each step sees the action and reward before it in its trial,
  so a trial's last reward is not seen
- loss: the head's, at every step (the paper: negative log-likelihood)
- acts: n trials in one context with sampled actions and no weight update; improvement must come from the context
"""

from typing import Literal

import numpy as np
from jaxtyping import Float64
from pydantic import Field

from ringrl.agent import AgentDescription, RolloutSpec
from ringrl.config import AgentConfig
from ringrl.model.tokens import TokenLayout
from ringrl.sampling.relabelled import Episodes, RelabelledEpisodes
from ringrl.sampling.relabelled_samplers import MemberSampler
from ringrl.sampling.samplers import ContextSampler, HistorySampler
from ringrl.sequence_agent import SequenceAgent


class Config(AgentConfig):
    """Hyper-parameters."""

    head: Literal["tanh_mse", "gaussian", "categorical"] = "gaussian"  # a distribution, so that the agent can explore
    # n, episodes in a context; in-context learning appears at 2 to 4 (paper, figure 6)
    trajectories: int = Field(default=4, ge=1)
    # k, keep every k-th episode so that a context spans more improvement (paper, section 4)
    every: int = Field(default=1, ge=1)
    order: Literal["file", "sorted"] = "file"  # "sorted" by return, for histories that learned something else (ExoRL)
    sample: bool = True  # act by drawing from the head's distribution


class Agent(SequenceAgent[Config]):
    """A learning history in the context predicts what its learner would do next."""

    description = AgentDescription("Algorithm Distillation", across_trials=True)

    def context_sampler(self, store: Episodes, task: str, action_repeat: int) -> ContextSampler:
        """Stretches of one source's history (the paper's section 3); of a family, each is paid by another member."""
        c = self.config
        if isinstance(store, RelabelledEpisodes):
            # Which is better depends on the member, so "sorted" sorts the stretch that was drawn, not the history.
            stretch = HistorySampler(store.lengths, np.zeros(len(store.lengths)), store.source, c.trajectories, c.every)
            return MemberSampler(stretch, store, order="drawn" if c.order == "file" else "ascending", conditioned=False)
        return HistorySampler(store.lengths, store.returns(task), store.source, c.trajectories, c.every, c.order)

    def tokens(self) -> TokenLayout:
        """Observation, action, reward."""
        return TokenLayout(("observation", "action", "reward"), fused=self.config.fused)

    def rollout_spec(self, row_steps: int, returns: Float64[np.ndarray, " episodes"]) -> RolloutSpec:
        """Without a target; improvement must come from the context."""
        return RolloutSpec(row_steps, sample=self.config.sample)
