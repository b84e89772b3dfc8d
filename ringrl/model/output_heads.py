"""Output heads: the distribution of the action given the decoder's output, its loss, and the action taken from it.

Actions are in [-1, 1] (dm_control's and ExoRL's scale). A linear map (`transformer.HeadProjection`) makes raw outputs
y [..., action, outputs] of features [..., width]; `loss` and `act` compute from those, in float32. In the formulas a is
the recorded action of one dimension; losses are averaged over the dimensions.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key


@runtime_checkable
class OutputHead(Protocol):
    """How actions are predicted, from `outputs` numbers for each action dimension."""

    @property
    def outputs(self) -> int:
        """Numbers the decoder gives for each action dimension."""
        ...

    def loss(
        self, raw: Float[Array, "*rows action outputs"], action: Float[Array, "*rows action"]
    ) -> Float[Array, "*rows"]:
        """Loss of each row, averaged over action dimensions."""
        ...

    def act(
        self, raw: Float[Array, "*rows action outputs"], key: Key[Array, ""] | None
    ) -> Float[Array, "*rows action"]:
        """An action in [-1, 1]: the mode where `key` is None, else a draw."""
        ...


@dataclass(frozen=True)
class TanhMSE:
    """Deterministic: loss (tanh(y) - a)^2 (Decision Transformer, arXiv 2106.01345, section 3 and appendix A)."""

    outputs: int = 1

    def loss(
        self, raw: Float[Array, "*rows action outputs"], action: Float[Array, "*rows action"]
    ) -> Float[Array, "*rows"]:
        """(tanh(y) - a)^2, averaged over action dimensions."""
        return jnp.mean(jnp.square(jnp.tanh(raw[..., 0].astype(jnp.float32)) - action), axis=-1)

    def act(
        self, raw: Float[Array, "*rows action outputs"], key: Key[Array, ""] | None
    ) -> Float[Array, "*rows action"]:
        """tanh(y), for any key: there is nothing to draw."""
        return jnp.tanh(raw[..., 0].astype(jnp.float32))


@dataclass(frozen=True)
class Gaussian:
    """Normal: loss (a - mu)^2 / (2 sigma^2) + log sigma + log(2 pi) / 2, with mu = tanh(y_0).

    log sigma = min + (max - min) (tanh(y_1) + 1) / 2, so the deviation depends on the state and is bounded (as in the
    Online Decision Transformer, arXiv 2202.05607, section 4, but with a smooth bound). Draws are clipped to [-1, 1].
    """

    outputs: int = 2
    min_log_std: float = -4.0
    max_log_std: float = 1.0

    def _parameters(self, raw: Float[Array, "*rows action outputs"]) -> tuple[jax.Array, jax.Array]:
        raw = raw.astype(jnp.float32)
        squashed = 0.5 * (jnp.tanh(raw[..., 1]) + 1.0)  # a smooth bound: a clip would stop the gradient at its ends
        return jnp.tanh(raw[..., 0]), self.min_log_std + (self.max_log_std - self.min_log_std) * squashed

    def loss(
        self, raw: Float[Array, "*rows action outputs"], action: Float[Array, "*rows action"]
    ) -> Float[Array, "*rows"]:
        """Negative log-likelihood in nats."""
        mean, log_std = self._parameters(raw)
        normalised = (action - mean) * jnp.exp(-log_std)
        return jnp.mean(0.5 * jnp.square(normalised) + log_std + 0.5 * jnp.log(2.0 * jnp.pi), axis=-1)

    def act(
        self, raw: Float[Array, "*rows action outputs"], key: Key[Array, ""] | None
    ) -> Float[Array, "*rows action"]:
        """The mean, or a draw clipped to [-1, 1]."""
        mean, log_std = self._parameters(raw)
        if key is None:
            return mean
        return jnp.clip(mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape), -1.0, 1.0)


@dataclass(frozen=True)
class Categorical:
    """`outputs` equal bins of [-1, 1] for each dimension: loss -log softmax(y)[bin of a]; an action is a bin's centre.

    Uniform bins, as in the Trajectory Transformer (Janner et al. 2021, arXiv 2106.02039).
    """

    outputs: int = 32

    def loss(
        self, raw: Float[Array, "*rows action outputs"], action: Float[Array, "*rows action"]
    ) -> Float[Array, "*rows"]:
        """Cross-entropy in nats."""
        index = jnp.clip(jnp.floor((action + 1.0) * (0.5 * self.outputs)), 0.0, self.outputs - 1.0).astype(jnp.int32)
        log_probability = jax.nn.log_softmax(raw.astype(jnp.float32), axis=-1)
        chosen = jnp.take_along_axis(log_probability, index[..., None], axis=-1)[..., 0]
        return -jnp.mean(chosen, axis=-1)

    def act(
        self, raw: Float[Array, "*rows action outputs"], key: Key[Array, ""] | None
    ) -> Float[Array, "*rows action"]:
        """The centre of the likeliest bin, or of a drawn one."""
        raw = raw.astype(jnp.float32)
        index = jnp.argmax(raw, axis=-1) if key is None else jax.random.categorical(key, raw, axis=-1)
        return (index.astype(jnp.float32) + 0.5) * (2.0 / self.outputs) - 1.0


@dataclass(frozen=True)
class Vocabulary:
    """A token id below `outputs`: loss -log softmax(y)[id]; `act` returns the id."""

    outputs: int

    def loss(self, raw: Float[Array, "*rows 1 outputs"], action: Int32[Array, "*rows"]) -> Float[Array, "*rows"]:
        """Cross-entropy in nats."""
        raw = raw[..., 0, :].astype(jnp.float32)
        chosen = jnp.take_along_axis(raw, action[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(raw, axis=-1) - chosen

    def act(self, raw: Float[Array, "*rows 1 outputs"], key: Key[Array, ""] | None) -> Int32[Array, "*rows 1"]:
        """The likeliest id, or a drawn one."""
        raw = raw.astype(jnp.float32)
        index = jnp.argmax(raw, axis=-1) if key is None else jax.random.categorical(key, raw, axis=-1)
        return index.astype(jnp.int32)


def make_head(name: Literal["tanh_mse", "gaussian", "categorical", "vocabulary"], bins: int) -> OutputHead:
    """The head of that name; `bins` is the number of a categorical head's bins, or of a vocabulary's ids."""
    heads = {"tanh_mse": TanhMSE(), "gaussian": Gaussian(), "categorical": Categorical(bins)}
    return (heads | {"vocabulary": Vocabulary(bins)})[name]
