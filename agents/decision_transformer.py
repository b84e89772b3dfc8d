"""Decision Transformer (Chen et al. 2021): predict the action from the remaining return-to-go.

- context: one window of one trajectory, drawn in proportion to its length; its return-to-go is the trajectory's own, to
  its end or, with a horizon, as a rate
- tokens: return-to-go, observation, action; the action is predicted at the observation
- loss: the head's, at every step (the paper: tanh and mean squared error)
- acts: on the present trial's last `window` steps; its return-to-go is the target less the rewards so far, or with a
  horizon the target
"""

import numpy as np
from jaxtyping import Float64
from pydantic import Field, model_validator

from ringrl.agent import AgentDescription, RolloutSpec
from ringrl.config import AgentConfig
from ringrl.model.tokens import TokenLayout
from ringrl.sampling.relabelled import Episodes, RelabelledEpisodes
from ringrl.sampling.relabelled_samplers import MemberSampler
from ringrl.sampling.samplers import ContextSampler, WindowSampler, top_fraction
from ringrl.sequence_agent import SequenceAgent


class Config(AgentConfig):
    """Hyper-parameters."""

    window: int = Field(default=20, ge=1)  # K, agent steps of context (paper: 20 for MuJoCo)
    fraction: float = Field(default=1.0, gt=0, le=1)  # share of time steps drawn from, best episodes first (paper: 1)
    target_jitter: float = Field(default=0.0, ge=0, lt=1)  # targets in training are scaled by 1 +- this (paper: 0)
    # agent steps over which a return-to-go is summed, then scaled to the length of a trial; None: to the end (paper)
    horizon: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check_horizon(self) -> "Config":
        if self.horizon is not None and self.target_jitter:
            raise ValueError("target_jitter scales whole returns, and with a horizon there are none; set it to 0")
        return self


class Agent(SequenceAgent[Config]):
    """Return conditioning within one trial."""

    description = AgentDescription("Decision Transformer", across_trials=False)

    def context_sampler(self, store: Episodes, task: str, action_repeat: int) -> ContextSampler:
        """Windows with their returns-to-go (the paper's section 3).

        On a task of a family every window is paid by another member; a fraction of the episodes is the best of them
        under a member each that is drawn once.
        """
        c, returns = self.config, store.returns(task)
        best = top_fraction(store.lengths, returns, c.fraction) if c.fraction < 1 else None
        if isinstance(store, RelabelledEpisodes) and best is None:
            windows = WindowSampler(store.lengths, returns, c.window, None, action_repeat, horizon=c.horizon)
            return MemberSampler(windows, store, target_jitter=c.target_jitter)
        return WindowSampler(
            store.lengths, returns, c.window, best, action_repeat, target_jitter=c.target_jitter, horizon=c.horizon
        )

    def tokens(self) -> TokenLayout:
        """Return-to-go, observation, action."""
        return TokenLayout(("return_to_go", "observation", "action"), fused=self.config.fused)

    def rollout_spec(self, row_steps: int, returns: Float64[np.ndarray, " episodes"]) -> RolloutSpec:
        """On a window of the present trial, with the best return of the data as its target.

        More would be extrapolation. Rates of short stretches go beyond it, and how high a target is worth giving must
        be found out: `ringrl evaluate --targets`.
        """
        c, target = self.config, float(returns.max())
        window = min(c.window, row_steps)
        whole = c.horizon is None
        return RolloutSpec(window, target=target, subtract_rewards=whole, sample=c.sample)
