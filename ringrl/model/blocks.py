"""Functions of tokens computed a block at a time, so that what they make on the way never stands whole.

Blockwise Parallel Transformer (Liu & Abbeel 2023) and Ring Attention (section 3) do so for the feed-forward; the loss
of a large vocabulary needs it as much.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def blockwise(
    f: Callable[[Any, Any, Any], jax.Array],
    weights: Any,
    tokens: Any,
    block: int,
    *,
    axes: Any = 1,
    constants: Any = None,
) -> jax.Array:
    """`f(weights, tokens, constants)` for `block` tokens after the other, recomputed in the backward pass.

    Args:
        f: works token by token; gives an array with the tokens on axis 1.
        weights: arrays; their gradients are summed over blocks in float32, and rounded once to their dtype.
        tokens: arrays with as many tokens each. What is left of whole blocks is computed at the end.
        block: tokens at once; where there are no more than that, `f` is called as it is.
        axes: on which axis of `tokens` the tokens stand: a number, or as `in_axes` of `jax.vmap`.
        constants: more such arrays, on axis 1; they get no gradient.
    """
    token_axes = jax.tree.map(lambda axis, part: jax.tree.map(lambda _: axis, part), axes, tokens)
    length = jax.tree.leaves(jax.tree.map(lambda x, axis: x.shape[axis], tokens, token_axes))[0]
    whole = length // block
    if whole == 0 or (whole == 1 and length == block):
        return f(weights, tokens, constants)

    def cut(x: jax.Array, axis: int) -> jax.Array:
        x = jax.lax.slice_in_dim(x, 0, whole * block, axis=axis)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], whole, block, *x.shape[axis + 1 :]), axis, 0)

    def rest(x: jax.Array, axis: int) -> jax.Array:
        return jax.lax.slice_in_dim(x, whole * block, length, axis=axis)

    # Inside the loop the tokens' axis is where it was.
    parts = jax.tree.map(cut, tokens, token_axes), jax.tree.map(lambda x: cut(x, 1), constants)
    done = jnp.moveaxis(_map(f, weights, *parts), 0, 1)
    done = done.reshape(done.shape[0], whole * block, *done.shape[3:])
    if length % block == 0:
        return done
    last = f(weights, jax.tree.map(rest, tokens, token_axes), jax.tree.map(lambda x: rest(x, 1), constants))
    return jnp.concatenate([done, last], axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _map(f: Callable, weights: Any, blocks: Any, constants: Any) -> jax.Array:
    return jax.lax.map(lambda part: f(weights, *part), (blocks, constants))


def _map_forward(f: Callable, weights: Any, blocks: Any, constants: Any) -> tuple[jax.Array, tuple]:
    return _map(f, weights, blocks, constants), (weights, blocks, constants)


def _map_backward(f: Callable, residuals: tuple, gradients: jax.Array) -> tuple:
    weights, blocks, constants = residuals

    def one(total: Any, part: tuple) -> tuple[Any, Any]:
        block, constant, gradient = part
        _, backward = jax.vjp(lambda w, x: f(w, x, constant), weights, block)
        d_weights, d_block = backward(gradient)
        return jax.tree.map(lambda sum_, more: sum_ + more.astype(sum_.dtype), total, d_weights), d_block

    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
    total, d_blocks = jax.lax.scan(one, zeros, (blocks, constants, gradients))
    return jax.tree.map(lambda sum_, w: sum_.astype(w.dtype), total, weights), d_blocks, None


_map.defvjp(_map_forward, _map_backward)
