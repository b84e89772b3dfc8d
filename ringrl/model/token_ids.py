"""Token ids instead of steps of a trajectory: the input of a language model. A step is one token."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float

from ringrl.config import ModelConfig
from ringrl.model.layer import LayerInput


@dataclass(frozen=True)
class TokenIds:
    """Tokens are ids below `vocabulary`: the field `token` of a batch, and `target`, the id that follows each."""

    vocabulary: int
    tokens_per_step: int = 1
    read_index: int = 0

    def embedder(self, sizes: Mapping[str, int], config: ModelConfig, *, rngs: nnx.Rngs) -> "IdEmbedder":
        """The module that maps ids to vectors."""
        return IdEmbedder(self.vocabulary, config.width, rngs=rngs)

    def predicted(self, sizes: Mapping[str, int]) -> int:
        """1: at each token the next one is predicted."""
        return 1


class IdEmbedder(nnx.Module):
    """A learned vector for each token id."""

    def __init__(self, vocabulary: int, width: int, *, rngs: nnx.Rngs):
        self.token = nnx.Embed(vocabulary, width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)

    def __call__(self, steps: Mapping[str, jax.Array]) -> LayerInput:
        """Vectors, positions within the segment and segment ids."""
        return LayerInput(self.token(steps["token"]), steps["position"], steps["segment_ids"])

    def following(self, previous: Mapping[str, jax.Array], current: Mapping[str, jax.Array]) -> LayerInput:
        """The tokens that decoding appends: the current one alone."""
        return self(current)

    def read(self, y: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """All of `y`: every token predicts the next."""
        return y
