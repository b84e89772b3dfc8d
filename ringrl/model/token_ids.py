"""Token ids instead of steps of a trajectory: the input of a language model. A step is one token."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ringrl.config import ModelConfig
from ringrl.model.layer import LayerInput
from ringrl.model.tokens import NoNumber, NumberTable

_SMALL = nnx.initializers.normal(0.02)


@dataclass(frozen=True)
class TokenIds:
    """Tokens are ids below `vocabulary`: the field `token` of a batch, and `target`, the id that follows each.

    With `previous` n, a token is embedded together with the n ids before it, the batch's field of that name. With
    `line` n, every n tokens are a line, and lines are encoded as trials are (`ModelConfig.trial_encoding`).
    """

    vocabulary: int
    previous: int = 0
    line: int | None = None
    tokens_per_step: int = 1
    read_index: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Widths of a batch's fields."""
        return {"previous": self.previous} if self.previous else {}

    def embedder(self, sizes: Mapping[str, int], config: ModelConfig, *, rngs: nnx.Rngs) -> "IdEmbedder":
        """The module that maps ids to vectors."""
        return IdEmbedder(self, config, rngs=rngs)

    def predicted(self, sizes: Mapping[str, int]) -> int:
        """1: at each token the next one is predicted."""
        return 1


class IdEmbedder(nnx.Module):
    """A learned vector for each token id, and others for each as the k-th before a token.

    token_t = E_0[id_t] + sum_k E_k[id_{t-k}], k from 1 to `previous` as far as the segment has so many. That is a short
    convolution over the ids: tokens bound to those before them, as smeared keys (Olsson et al. 2022, arXiv 2209.11895)
    and token shift (Peng et al. 2023, arXiv 2305.13048) do, so that one layer of attention can look up what followed.
    The ids come with the batch, so nothing is sent over a ring.
    """

    def __init__(self, tokens: TokenIds, config: ModelConfig, *, rngs: nnx.Rngs):
        self.tokens, width = tokens, config.width
        self._rotary = tokens.line is not None and config.trial_encoding == "rotary"
        self.token = nnx.Embed(tokens.vocabulary, width, embedding_init=_SMALL, rngs=rngs)
        if tokens.previous:
            rows = tokens.previous * tokens.vocabulary
            self.previous = nnx.Embed(rows, width, embedding_init=_SMALL, rngs=rngs)
        table = tokens.line is not None and config.trial_encoding == "table"
        self.line = NumberTable(config.max_trials, width, embedding_init=_SMALL, rngs=rngs) if table else NoNumber()

    def __call__(self, steps: Mapping[str, jax.Array]) -> LayerInput:
        """Vectors, positions within the segment and segment ids; and lines if rotated by them."""
        position, lines = steps["position"], steps["position"] // (self.tokens.line or 1)
        x = self.token(steps["token"]) + self.line(lines)
        if self.tokens.previous:
            x = x + self._before(steps["previous"], position)
        return LayerInput(x, position, steps["segment_ids"], lines if self._rotary else None)

    def _before(self, previous: jax.Array, position: jax.Array) -> Float[Array, "batch tokens width"]:
        """The sum of the vectors of the ids before each token."""
        vectors = jnp.float32(0)
        for k in range(self.tokens.previous):
            vector = self.previous(previous[:, :, k] + k * self.tokens.vocabulary)
            vectors = vectors + jnp.where((position > k)[:, :, None], vector, jnp.float32(0))
        return vectors

    def following(self, previous: Mapping[str, jax.Array], current: Mapping[str, jax.Array]) -> LayerInput:
        """The tokens that decoding appends: the current one alone."""
        return self(current)

    def read(self, y: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """All of `y`: every token predicts the next."""
        return y
