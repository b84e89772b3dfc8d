"""Steps of a trajectory <-> tokens of the decoder.

Two layouts. *Interleaved*: one token a modality, in the order return-to-go, observation, action, reward, completion
(Ring Attention, section 5.3: 4 tokens a step; Agentic Transformer adds the completion token); the action is predicted
at the observation token. *Fused*: one token a step, the sum of the embeddings of the observation, the return-to-go and
the *previous* action, reward and completion (the layout of XLand-MiniGrid's Algorithm Distillation).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from ringrl.batch import PREVIOUS
from ringrl.config import ModelConfig
from ringrl.model.layer import LayerInput

_SMALL = nnx.initializers.normal(0.02)
ORDER = ("return_to_go", "observation", "action", "reward", "completion")
StepArrays = Mapping[str, jax.Array]  # the fields of `ringrl.batch.Batch` by name


@dataclass(frozen=True)
class TokenLayout:
    """Which modalities the decoder sees, and whether they are summed into one token a step (`fused`).

    Raises:
        ValueError: no `observation`, or an unknown modality.
    """

    modalities: tuple[str, ...]
    fused: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.modalities) - set(ORDER)
        if unknown or "observation" not in self.modalities:
            raise ValueError(f"modalities must include `observation` and come from {ORDER}, got {self.modalities}")
        object.__setattr__(self, "modalities", tuple(name for name in ORDER if name in self.modalities))

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step."""
        return 1 if self.fused else len(self.modalities)

    def embedder(self, sizes: Mapping[str, int], config: ModelConfig, *, rngs: nnx.Rngs) -> "TokenEmbedder":
        """The module that makes such tokens, for observations and actions of these widths."""
        return TokenEmbedder(self, sizes, config, rngs=rngs)

    def predicted(self, sizes: Mapping[str, int]) -> int:
        """Dimensions of the action, for each of which the output head predicts."""
        return sizes["action"]

    @property
    def read_index(self) -> int:
        """The index in a step of the token that predicts its action: the last one before the action."""
        return 0 if self.fused else self.modalities.index("observation")


class TokenEmbedder(nnx.Module):
    """One linear embedding a modality, plus an embedding of the time step in the episode.

    token = LayerNorm(W_m x_t + step[t]), as in Decision Transformer (Chen et al. 2021, algorithm 1). With
    `trial_encoding` `table`, an embedding trial[i] is added beside step[t]; with `rotary` attention gets the trial
    (`ringrl.model.rotary.token_angles`); with `none` it is not used. `step` and `trial` are fields of the batch.
    """

    def __init__(self, layout: TokenLayout, sizes: Mapping[str, int], config: ModelConfig, *, rngs: nnx.Rngs):
        self.layout, width, self._rotary = layout, config.width, config.trial_encoding == "rotary"
        self.linear = nnx.Dict({name: nnx.Linear(sizes.get(name, 1), width, rngs=rngs) for name in layout.modalities})
        self.step = NumberTable(config.max_steps, width, embedding_init=_SMALL, rngs=rngs)
        table = config.trial_encoding == "table"
        self.trial = NumberTable(config.max_trials, width, embedding_init=_SMALL, rngs=rngs) if table else NoNumber()
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, steps: StepArrays) -> LayerInput:
        """Tokens, their positions within the segment and their segment ids; and their trials if rotated by them."""
        tokens, repeat = self._modalities(steps), partial(jnp.repeat, repeats=self.layout.tokens_per_step, axis=1)
        positions, segment_ids = self._positions(steps["position"]), repeat(steps["segment_ids"])
        return LayerInput(
            self._flatten(tokens), positions, segment_ids, repeat(steps["trial"]) if self._rotary else None
        )

    def following(self, previous: StepArrays, current: StepArrays) -> LayerInput:
        """The tokens that a rollout appends at a step: those after the last observation, up to the current one.

        Fields are [batch, 1]. In the interleaved layout the previous step's action, reward and completion are known
        only now; where there was no previous step, its `segment_ids` are 0 and so are its tokens'. Always
        `tokens_per_step` tokens, the last of which predicts the action.
        """
        if self.layout.fused:
            return self(current)
        split = self.layout.read_index + 1
        before = jax.tree.map(lambda x: x[:, split:], self(previous))
        now = jax.tree.map(lambda x: x[:, :split], self(current))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), before, now)

    def read(self, y: Float[Array, "batch tokens width"]) -> Float[Array, "batch steps width"]:
        """The decoder's outputs at the tokens that predict an action."""
        batch, tokens, width = y.shape
        per_step = self.layout.tokens_per_step
        return y.reshape(batch, tokens // per_step, per_step, width)[:, :, self.layout.read_index]

    def _modalities(self, steps: StepArrays) -> list[jax.Array]:
        """Embeddings [batch, steps, width]: one a modality, or their sum where fused."""
        when = self.step(steps["step"]) + self.trial(steps["trial"])
        if not self.layout.fused:
            return [self.norm(self.linear[name](_column(steps[name])) + when) for name in self.layout.modalities]
        total = when
        for name in self.layout.modalities:
            total = total + self.linear[name](_column(steps[PREVIOUS.get(name, name)]))
        return [self.norm(total)]

    def _flatten(self, tokens: list[jax.Array]) -> jax.Array:
        batch, steps, width = tokens[0].shape
        return jnp.stack(tokens, axis=2).reshape(batch, steps * len(tokens), width)

    def _positions(self, position: jax.Array) -> jax.Array:
        per_step = self.layout.tokens_per_step
        tokens = position[:, :, None] * per_step + jnp.arange(per_step, dtype=jnp.int32)[None, None, :]
        return tokens.reshape(position.shape[0], -1)


def _column(x: jax.Array) -> jax.Array:
    """Scalars a step get a feature axis of one."""
    return x if x.ndim == 3 else x[:, :, None]


class NumberTable(nnx.Embed):
    """A learned vector for each number below `num_embeddings`; larger ones share the last."""

    def __call__(self, inputs: Int32[Array, "batch steps"]) -> Float[Array, "batch steps width"]:
        """The numbers' vectors."""
        return super().__call__(jnp.minimum(inputs, self.num_embeddings - 1))


class NoNumber(nnx.Module):
    """Nothing: 0 for every number."""

    def __call__(self, numbers: Int32[Array, "batch steps"]) -> Float[Array, "batch steps 1"]:
        """Zeros."""
        return jnp.zeros((*numbers.shape, 1), jnp.float32)
