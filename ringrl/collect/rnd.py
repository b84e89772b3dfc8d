"""Exploration by Random Network Distillation (Burda et al. 2018, arXiv:1810.12894).

It is how ExoRL's `rnd` data were collected (Yarats et al. 2022, arXiv:2201.13425).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from ringrl.collect.networks import MLP, descend, optimizer_state


class Moments(NamedTuple):
    """Running mean and variance, merged batch by batch (Chan et al. 1979)."""

    count: Float[Array, ""]
    mean: Float[Array, "*shape"]
    variance: Float[Array, "*shape"]


class RNDState(NamedTuple):
    """The state of random network distillation: fixed features, their predictor, two running normalisations."""

    features: MLP
    predictor: MLP
    optimizer: optax.OptState
    observation: Moments
    error: Moments


def init_rnd(observation_size: int, hidden: tuple[int, ...], features: int, rngs: nnx.Rngs) -> RNDState:
    """The state before any observation.

    Args:
        observation_size: width of an observation.
        hidden: widths of the hidden layers, of the features and of the predictor.
        features: width of the features.
        rngs: of the initial weights.
    """
    sizes = (observation_size, *hidden, features)
    target, predictor = MLP(sizes, rngs, bounded=False), MLP(sizes, rngs, bounded=False)
    zeros = jnp.zeros(observation_size)
    return RNDState(
        features=target,
        predictor=predictor,
        optimizer=optimizer_state(predictor),
        observation=Moments(jnp.zeros(()), zeros, jnp.ones_like(zeros)),
        error=Moments(jnp.zeros(()), jnp.zeros(()), jnp.ones(())),
    )


def rnd_reward(
    state: RNDState, observation: Float[Array, "batch observation"], *, lr: float, clip: float
) -> tuple[RNDState, Float[Array, " batch"]]:
    """The RND reward, the predictor's error over its running standard deviation (Burda et al. 2018, section 2.2).

    r_t = mean((f_hat(x_t) - f(x_t))^2) / sigma, with the fixed features f, the predictor f_hat, and x_t the observation
    after step t, normalised and clipped. sigma is of the error itself, as in URLB (Laskin et al. 2021), and not of the
    discounted return as in section 2.4.

    Args:
        state: before this batch.
        observation: a batch.
        lr: Adam's step size for the predictor.
        clip: normalised observations are clipped to +- this before the features (section 2.4).

    Returns:
        The state after one step on these observations, and each one's reward before it.
    """
    seen = merge(state.observation, observation)
    x = (observation - seen.mean[None]) / jnp.sqrt(seen.variance + 1e-8)[None]
    x = jnp.clip(x, -clip, clip)
    goal = state.features(x)

    def predictor_loss(predictor: MLP) -> tuple[Float[Array, ""], Float[Array, " batch"]]:
        error = jnp.mean(jnp.square(predictor(x) - goal), axis=-1)
        return jnp.mean(error), error

    gradient, error = jax.grad(predictor_loss, has_aux=True)(state.predictor)
    predictor, optimizer = descend(lr, gradient, state.optimizer, state.predictor)
    spread = merge(state.error, error)
    reward = error / jnp.sqrt(spread.variance + 1e-8)
    return RNDState(state.features, predictor, optimizer, seen, spread), reward


def merge(old: Moments, x: Float[Array, "batch *shape"]) -> Moments:
    """The moments of everything seen before and the rows of `x`."""
    count = old.count + x.shape[0]
    share = x.shape[0] / count
    delta = jnp.mean(x, axis=0) - old.mean
    variance = (1 - share) * old.variance + share * jnp.var(x, axis=0) + share * (1 - share) * jnp.square(delta)
    return Moments(count, old.mean + share * delta, variance)
