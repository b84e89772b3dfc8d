"""Decision Transformer (Chen et al. 2021): predict the action that goes with the return still wanted.

- chain: one window of one trajectory, drawn in proportion to its length; its return-to-go is what it really earned, to
  the trajectory's end or, with a horizon, as a rate
- tokens: return-to-go, observation, action; the action is predicted at the observation
- loss: the head's, at every step (the paper: tanh and mean squared error)
- acts: on the current trial's last `window` steps; the target return shrinks by every reward, a rate stays
"""

from pydantic import Field, model_validator

from ringrl.agent import RolloutSpec
from ringrl.config import AgentConfig
from ringrl.model.tokens import TokenLayout
from ringrl.sampling.samplers import WindowSampler, top_fraction


class Config(AgentConfig):
    """Hyper-parameters."""

    window: int = Field(default=20, ge=1)  # K, steps of context (paper: 20 for MuJoCo)
    fraction: float = Field(default=1.0, gt=0, le=1)  # share of time steps drawn from, best episodes first (paper: 1)
    target_jitter: float = Field(default=0.0, ge=0, lt=1)  # targets in training are scaled by 1 +- this (paper: 0)
    # decisions that a return-to-go counts, told as the return of a trial at that rate; None: to the end (paper)
    horizon: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check_horizon(self):
        if self.horizon is not None and self.target_jitter:
            raise ValueError("target_jitter scales whole returns, and with a horizon none is told; set it to 0")
        return self


def planner(config: Config, store, task, action_repeat):
    options = {"action_repeat": action_repeat, "target_jitter": config.target_jitter, "horizon": config.horizon}
    best = top_fraction(store.lengths, store.returns(task), config.fraction) if config.fraction < 1 else None
    return WindowSampler(store.lengths, store.returns(task), config.window, best, **options)


def tokens(config: Config):
    return TokenLayout(("return_to_go", "observation", "action"), fused=config.fused)


def loss(config: Config, head, prediction, batch):
    return head.loss(prediction, batch["action"])


def acting(config: Config, row_steps, returns):
    # The best return that the data shows can be asked for; more would be extrapolation. Rates of short stretches go
    # beyond it, and how much is worth asking for must be found out: `ringrl evaluate --targets`.
    told = {"target": float(returns.max()), "shrinks": config.horizon is None}
    return RolloutSpec(min(config.window, row_steps), across_trials=False, **told, sample=config.sample)
