"""Behavior Cloning: predict the action from recent observations and actions; returns are not told.

BC-10 % (Decision Transformer, section 5.1) clones only the episodes of highest return that make up 10 % of all time
steps; `fraction: 1.0` clones everything.

- chain: one window of one trajectory
- tokens: observation, action
- loss: the head's, at every step
- acts: on the current trial's last `window` steps; told nothing
"""

from pydantic import Field

from ringrl.agent import RolloutSpec
from ringrl.config import AgentConfig
from ringrl.model.tokens import TokenLayout
from ringrl.sampling.samplers import WindowSampler, top_fraction


class Config(AgentConfig):
    """Hyper-parameters."""

    fraction: float = Field(default=0.1, gt=0, le=1)  # share of time steps cloned, best episodes first; 1.0 is all data
    window: int = Field(default=20, ge=1)  # steps of context, as Decision Transformer's K


def planner(config: Config, store, task, action_repeat):
    best = top_fraction(store.lengths, store.returns(task), config.fraction)
    return WindowSampler(store.lengths, store.returns(task), config.window, best, action_repeat)


def tokens(config: Config):
    return TokenLayout(("observation", "action"), fused=config.fused)


def loss(config: Config, head, prediction, batch):
    return head.loss(prediction, batch["action"])


def acting(config: Config, row_steps, returns):
    return RolloutSpec(min(config.window, row_steps), across_trials=False, sample=config.sample)
