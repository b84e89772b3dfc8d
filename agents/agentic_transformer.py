"""Agentic Transformer (Liu & Abbeel 2023, "chain of hindsight"): trials in one context, each better than the last.

- chain: n whole trajectories in ascending order of return, every one told to reach the best one's return
- tokens: return-to-go, observation, action, reward, and a completion token that is 1 where a trial reached the target
- loss: the head's, at every step of every trajectory
- acts: n trials in one context, each told the same high target; the context is never cleared between them
"""

from typing import Literal

from pydantic import Field, model_validator

from ringrl.agent import RolloutSpec
from ringrl.config import AgentConfig
from ringrl.model.tokens import TokenLayout
from ringrl.sampling.samplers import HindsightSampler, top_fraction


class Config(AgentConfig):
    """Hyper-parameters."""

    trajectories: int = Field(default=4, ge=1)  # n, trajectories in a chain (paper: 4; Ring Attention trains with 128)
    fraction: float = Field(default=1.0, gt=0, le=1)  # share of time steps drawn from, best episodes first (paper: 1)
    # how they are drawn: "uniform" among all, or "stratified": one from each n-th part of the episodes by return
    draw: Literal["uniform", "stratified"] = "uniform"
    target_jitter: float = Field(default=0.0, ge=0, lt=1)  # targets in training are scaled by 1 +- this (paper: 0)
    within_source: bool = False  # whether a chain is of one source only, as where each source is another hidden task
    completion: bool = True  # whether the completion token is there

    @model_validator(mode="after")
    def _check_fraction(self):
        if self.within_source and self.fraction < 1:
            raise ValueError("fraction ranks the episodes of all sources together; with within_source leave it at 1")
        return self


def planner(config: Config, store, task, action_repeat):
    options = {"draw": config.draw, "target_jitter": config.target_jitter}
    options["source"] = store.source if config.within_source else None
    best = top_fraction(store.lengths, store.returns(task), config.fraction) if config.fraction < 1 else None
    return HindsightSampler(store.lengths, store.returns(task), config.trajectories, best, **options)


def tokens(config: Config):
    extra = ("completion",) if config.completion else ()
    return TokenLayout(("return_to_go", "observation", "action", "reward", *extra), fused=config.fused)


def loss(config: Config, head, prediction, batch):
    return head.loss(prediction, batch["action"])


def acting(config: Config, row_steps, returns):
    return RolloutSpec(context_steps=row_steps, across_trials=True, target=float(returns.max()), sample=config.sample)
