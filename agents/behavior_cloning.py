"""Behavior cloning: predict the action from recent observations and actions; no return conditioning.

BC-10 % (Decision Transformer, section 5.1) clones only the episodes of highest return that make up 10 % of all time
steps; `fraction: 1.0` clones everything.

- context: one window of one trajectory
- tokens: observation, action
- loss: the head's, at every step
- acts: on the current trial's last `window` steps
"""

import numpy as np
from jaxtyping import Float64
from pydantic import Field

from ringrl.agent import AgentDescription, RolloutSpec
from ringrl.config import AgentConfig
from ringrl.model.tokens import TokenLayout
from ringrl.sampling.relabelled import Episodes, RelabelledEpisodes
from ringrl.sampling.relabelled_samplers import MemberSampler
from ringrl.sampling.samplers import ContextSampler, WindowSampler, top_fraction
from ringrl.sequence_agent import SequenceAgent


class Config(AgentConfig):
    """Hyper-parameters."""

    fraction: float = Field(default=0.1, gt=0, le=1)  # share of time steps cloned, best episodes first; 1.0 is all data
    window: int = Field(default=20, ge=1)  # agent steps of context, as Decision Transformer's K


class Agent(SequenceAgent[Config]):
    """The policy of the best recorded episodes."""

    description = AgentDescription("Behavior Cloning", across_trials=False)

    def context_sampler(self, store: Episodes, task: str, action_repeat: int) -> ContextSampler:
        """Windows of the best episodes.

        On a task of a family these are the best under a member each that is drawn once; where all episodes are cloned,
        every window is of another member, which matters where that is visible.
        """
        returns = store.returns(task)
        best = top_fraction(store.lengths, returns, self.config.fraction)
        windows = WindowSampler(store.lengths, returns, self.config.window, best, action_repeat)
        if isinstance(store, RelabelledEpisodes) and self.config.fraction == 1:
            return MemberSampler(windows, store, conditioned=False)
        return windows

    def tokens(self) -> TokenLayout:
        """Observation and action."""
        return TokenLayout(("observation", "action"), fused=self.config.fused)

    def rollout_spec(self, row_steps: int, returns: Float64[np.ndarray, " episodes"]) -> RolloutSpec:
        """Without a target, on a window of the present trial."""
        return RolloutSpec(min(self.config.window, row_steps), sample=self.config.sample)
