"""A language model: predict a text's next token id. No agent, but what Ring Attention's Table 3 is about.

- data: a file of token ids (`.npy`, whole numbers), and the weights of their losses where they are beside it;
  `data: {store: text.npy, task: next_token}`
- tokens: one an id; the next one is predicted
- loss: cross-entropy, computed block by block so that the logits of a long row are never stored at once
- acts: not at all: it has no policy
"""

from typing import Literal

from pydantic import Field

from ringrl.agent import AgentDescription
from ringrl.config import AgentConfig
from ringrl.model.token_ids import TokenIds
from ringrl.sequence_agent import TokenAgent


class Config(AgentConfig):
    """Hyper-parameters."""

    head: Literal["vocabulary"] = "vocabulary"  # pyright: ignore[reportIncompatibleVariableOverride]
    bins: int = Field(default=32_000, ge=2)  # token ids: the vocabulary (LLaMA: 32,000)
    previous: int = Field(default=0, ge=0)  # ids before each token that are embedded with it (`IdEmbedder`)
    line: int | None = Field(default=None, ge=1)  # tokens of a line, which `model.trial_encoding` encodes; None: none


class Agent(TokenAgent[Config]):
    """Next-token prediction."""

    description = AgentDescription("Language model", across_trials=False)

    def tokens(self) -> TokenIds:
        """Ids below the vocabulary's size."""
        return TokenIds(self.config.bins, self.config.previous, self.config.line)
