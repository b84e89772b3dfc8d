"""Algorithm Distillation (Laskin et al. 2022): imitate not an expert but the *learning* of one.

- chain: n episodes from one source learner's history, every k-th, in the order of learning; never across sources
- tokens: observation, action, reward; no returns
- loss: the head's, at every step (the paper: negative log-likelihood)
- acts: n trials in one context with sampled actions and no weight update; improvement must come from the context
"""

from typing import Literal

from pydantic import Field

from ringrl.agent import RolloutSpec
from ringrl.config import AgentConfig
from ringrl.model.tokens import TokenLayout
from ringrl.sampling.samplers import HistorySampler


class Config(AgentConfig):
    """Hyper-parameters."""

    head: Literal["tanh_mse", "gaussian", "categorical"] = "gaussian"  # a distribution, so that the agent can explore
    # n, episodes in a context; in-context learning appears at 2 to 4 (paper, figure 6)
    trajectories: int = Field(default=4, ge=1)
    # k, keep every k-th episode so that a context spans more improvement (paper, section 4)
    every: int = Field(default=1, ge=1)
    order: Literal["file", "sorted"] = "file"  # "sorted" by return, for histories that learned something else (ExoRL)
    sample: bool = True  # act by drawing from the head's distribution


def planner(config: Config, store, task, action_repeat):
    return HistorySampler(
        store.lengths, store.returns(task), store.source, config.trajectories, config.every, config.order
    )


def tokens(config: Config):
    return TokenLayout(("observation", "action", "reward"), fused=config.fused)


def loss(config: Config, head, prediction, batch):
    return head.loss(prediction, batch["action"])


def acting(config: Config, row_steps, returns):
    return RolloutSpec(context_steps=row_steps, across_trials=True, sample=config.sample)
