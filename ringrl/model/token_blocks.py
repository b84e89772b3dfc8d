"""Functions of tokens computed a block at a time, so that intermediate results are in memory for one block alone.

Blockwise Parallel Transformer (Liu & Abbeel 2023, arXiv 2305.19370, section 3) and Ring Attention (section 3) do so for
the MLP; the loss of a large vocabulary needs it as much.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def blockwise(
    f: Callable[[Any, Any, Any], Any],
    weights: Any,
    tokens: Any,
    block: int,
    *,
    axes: Any = 1,
    constants: Any = None,
) -> Any:
    """`f(weights, tokens, constants)` for at most `block` tokens after the other, recomputed in the backward pass.

    Args:
        f: computes each token alone; returns arrays with the tokens on axis 1.
        weights: arrays; their gradients are summed over blocks in float32, and rounded once to their dtype.
        tokens: arrays with as many tokens each.
        block: tokens at once; where there are no more than that, `f` is called as it is.
        axes: the axis of the tokens in `tokens`: a number, or as `in_axes` of `jax.vmap`.
        constants: more such arrays, on axis 1; they get no gradient.
    """
    where = jax.tree.leaves(jax.tree.map(lambda axis, part: jax.tree.map(lambda _: axis, part), axes, tokens))
    length = jax.tree.leaves(tokens)[0].shape[where[0]]
    if length <= block:
        return f(weights, tokens, constants)
    return _in_turn(_Blocks(f, tuple(where), length, _even_block(length, block)), weights, tokens, constants)


def _even_block(length: int, longest: int) -> int:
    """The longest block, of at least half of `longest`, that cuts `length` evenly; else `longest`."""
    return next((size for size in range(longest, longest // 2, -1) if length % size == 0), longest)


@dataclass(frozen=True)
class _Blocks:
    """What is static. Blocks are sliced out where they are needed and written in place: no second copy of anything."""

    f: Callable
    axes: tuple[int, ...]  # of the tokens' leaves
    length: int
    block: int

    def walk(self, one: Callable[[Any, Any, int], Any], carry: Any) -> Any:
        """`carry` after `one(carry, start, size)` for every block; what is left of whole blocks comes last."""
        whole = self.length // self.block
        starts = jnp.arange(whole, dtype=jnp.int32) * self.block
        carry, _ = lax.scan(lambda carry, start: (one(carry, start, self.block), None), carry, starts)
        rest = self.length - whole * self.block
        return one(carry, whole * self.block, rest) if rest else carry

    def take(self, tokens: Any, start: Any, size: int) -> Any:
        """The block of every one of the tokens' leaves."""
        leaves, tree = jax.tree.flatten(tokens)
        cut = (lax.dynamic_slice_in_dim(x, start, size, axis) for x, axis in zip(leaves, self.axes, strict=True))
        return jax.tree.unflatten(tree, cut)

    def put(self, whole: Any, part: Any, start: Any) -> Any:
        """The tokens' leaves with a block of them replaced."""
        leaves, tree = jax.tree.flatten(whole)
        zipped = zip(leaves, jax.tree.leaves(part), self.axes, strict=True)
        return jax.tree.unflatten(tree, (lax.dynamic_update_slice_in_dim(x, y, start, axis) for x, y, axis in zipped))


def _slice(x: Any, start: Any, size: int) -> Any:
    return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size, 1), x)


def _zeros(x: Any, dtype: Any = None) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype or leaf.dtype), x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_turn(blocks: _Blocks, weights: Any, tokens: Any, constants: Any) -> Any:
    def one(out: Any, start: Any, size: int) -> Any:
        part = blocks.f(weights, blocks.take(tokens, start, size), _slice(constants, start, size))
        return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, 1), out, part)

    return blocks.walk(one, _zeros(jax.eval_shape(blocks.f, weights, tokens, constants)))


def _forward(blocks: _Blocks, weights: Any, tokens: Any, constants: Any) -> tuple[Any, tuple]:
    return _in_turn(blocks, weights, tokens, constants), (weights, tokens, constants)


def _backward(blocks: _Blocks, residuals: tuple, gradients: Any) -> tuple:
    weights, tokens, constants = residuals

    def one(carry: tuple[Any, Any], start: Any, size: int) -> tuple[Any, Any]:
        total, d_tokens = carry
        constant = _slice(constants, start, size)
        _, backward = jax.vjp(lambda w, x: blocks.f(w, x, constant), weights, blocks.take(tokens, start, size))
        d_weights, d_block = backward(_slice(gradients, start, size))
        total = jax.tree.map(lambda sum_, more: sum_ + more.astype(sum_.dtype), total, d_weights)
        return total, blocks.put(d_tokens, d_block, start)

    total, d_tokens = blocks.walk(one, (_zeros(weights, jnp.float32), _zeros(tokens)))
    return jax.tree.map(lambda sum_, w: sum_.astype(w.dtype), total, weights), d_tokens, None


_in_turn.defvjp(_forward, _backward)
