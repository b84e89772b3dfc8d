"""Multi-layer perceptrons, their optimiser Adam, and the target networks' moving average."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float


class MLP(nnx.Module):
    """Linear layers with ReLU between them; if `bounded`, LayerNorm and tanh follow the first instead.

    TD3's paper has ReLU throughout. A bounded first layer, as in URLB's trunk (Laskin et al. 2021), keeps the actor
    from saturating while the critics' values grow from zero; without it, learning from the RND reward alone got stuck
    at one end of the actions.
    """

    def __init__(self, sizes: tuple[int, ...], rngs: nnx.Rngs, bounded: bool = True) -> None:
        """`sizes`: width of the input, of every hidden layer (at least one), and of the output."""
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in zip(sizes, sizes[1:], strict=False)])
        self.norm = nnx.LayerNorm(sizes[1], rngs=rngs) if bounded else None

    def __call__(self, x: Float[Array, "*batch input"]) -> Float[Array, "*batch output"]:
        """The last layer's output, without an activation."""
        first, *between, last = self.layers
        x = nnx.relu(first(x)) if self.norm is None else jnp.tanh(self.norm(first(x)))
        for layer in between:
            x = nnx.relu(layer(x))
        return last(x)


class Critics(nnx.Module):
    """The twin action values Q1 and Q2 (Fujimoto et al. 2018, section 4.2)."""

    def __init__(self, observation_size: int, action_size: int, hidden: tuple[int, ...], rngs: nnx.Rngs) -> None:
        """Two independent networks of the same shape."""
        sizes = (observation_size + action_size, *hidden, 1)
        self.q1, self.q2 = MLP(sizes, rngs), MLP(sizes, rngs)

    def __call__(
        self, observation: Float[Array, "batch observation"], action: Float[Array, "batch action"]
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """(Q1, Q2) of each pair."""
        x = jnp.concatenate([observation, action], axis=-1)
        return self.q1(x)[..., 0], self.q2(x)[..., 0]


def optimizer_state(model: Any) -> optax.OptState:
    """Adam's moments, zero; the step size is not part of them."""
    return optax.adam(0.0).init(model)


def descend(lr: float, gradient: Any, optimizer: optax.OptState, model: Any) -> tuple[Any, optax.OptState]:
    """One step of Adam (Kingma & Ba 2015, algorithm 1) with step size `lr`.

    Returns:
        The new model and the new optimiser state.
    """
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is a float to the power of an int32 count
        change, optimizer = optax.adam(lr).update(gradient, optimizer, model)
    return optax.apply_updates(model, change), optimizer


def polyak(tau: float, new: Any, target: Any) -> Any:
    """Polyak averaging: target <- (1 - tau) target + tau new (Fujimoto et al. 2018, algorithm 1)."""
    return optax.incremental_update(new, target, tau)
