"""A language model: predict a text's next token id. No agent, but what Ring Attention's Table 3 is about.

- data: a file of token ids (`.npy`, whole numbers); `data: {store: text.npy, task: next_token}`
- tokens: one an id; the next one is predicted
- loss: cross-entropy, computed block by block so that the logits of a long row never stand whole
- acts: not at all; `ringrl evaluate` rolls out agents
"""

from typing import Literal

from pydantic import Field

from ringrl.config import AgentConfig
from ringrl.errors import UserError
from ringrl.model.token_ids import TokenIds


class Config(AgentConfig):
    """Hyper-parameters."""

    head: Literal["vocabulary"] = "vocabulary"  # pyright: ignore[reportIncompatibleVariableOverride]
    bins: int = Field(default=32_000, ge=2)  # token ids: the vocabulary (LLaMA: 32,000)


def planner(config: Config, store, task, action_repeat):
    raise UserError("language_model reads a file of token ids, not episodes: data: {store: text.npy, task: next_token}")


def tokens(config: Config):
    return TokenIds(config.bins)


def loss(config: Config, head, prediction, batch):
    return head.loss(prediction, batch["target"])


def acting(config: Config, row_steps, returns):
    raise UserError("language_model is no agent: it cannot be rolled out")
