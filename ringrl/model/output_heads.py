"""Action heads: what the decoder's output at a step becomes, its loss, and the action taken from it.

Actions lie in [-1, 1] (dm_control's and ExoRL's scale). A head maps features [..., width] to raw outputs
[..., action, outputs]; `loss` and `act` read those, in float32.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key


@runtime_checkable
class OutputHead(Protocol):
    """How actions are predicted. `outputs` numbers describe one action dimension."""

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
    """tanh of a linear output, mean squared error (Decision Transformer, appendix A); a draw is the mode."""

    outputs: int = 1

    def loss(
        self, raw: Float[Array, "*rows action outputs"], action: Float[Array, "*rows action"]
    ) -> Float[Array, "*rows"]:
        """Squared error, averaged over action dimensions."""
        return jnp.mean(jnp.square(jnp.tanh(raw[..., 0].astype(jnp.float32)) - action), axis=-1)

    def act(
        self, raw: Float[Array, "*rows action outputs"], key: Key[Array, ""] | None
    ) -> Float[Array, "*rows action"]:
        """tanh of the output, whatever the key."""
        return jnp.tanh(raw[..., 0].astype(jnp.float32))


@dataclass(frozen=True)
class Gaussian:
    """Normal with a tanh mean and a learned, state-dependent deviation; negative log-likelihood; draws are clipped."""

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
    """Each action dimension in `outputs` equal bins of [-1, 1], cross-entropy; an action is its bin's centre."""

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
    """A token id below `outputs`, cross-entropy; `act` gives the id."""

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
