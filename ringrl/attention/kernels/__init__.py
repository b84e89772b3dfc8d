"""The local step on each platform, and which one is taken."""

from typing import Literal

from jaxtyping import Array, Float

from ringrl.attention.blocks import group_size
from ringrl.attention.kernels.xla import XlaStep
from ringrl.attention.step import LocalStep, Sizes
from ringrl.attention.tiling import Cut, default_blocks, fit_block

Kernel = Literal["xla"]


def make_step(sizes: Sizes, q: Array, *, segmented: bool, kernel: Kernel | None = None) -> LocalStep:
    """x"""
    return XlaStep(sizes)


def make_sizes(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    *,
    scale: float | None,
    block_q: int | None,
    block_k: int | None,
    runs: int = 1,
    key_shards: int = 1,
) -> Sizes:
    """What is static about queries and keys of these shapes; None chooses the scale and the blocks.

    Args:
        q: queries.
        k: this device's keys.
        scale: multiplies the scores; None is head_dim ** -0.5.
        block_q: longest block of queries.
        block_k: longest block of keys.
        runs: equal stretches of a device's tokens within which positions grow by a constant step.
        key_shards: devices whose keys are here at once.

    Raises:
        ValueError: heads is not a multiple of kv_heads, or a block size is below 1.
    """
    heads, kv_heads = q.shape[2], k.shape[2]
    default_q, default_k = default_blocks(q.shape[0], heads)
    block_q = default_q if block_q is None else block_q
    block_k = default_k if block_k is None else block_k
    return Sizes(
        q=Cut(q.shape[1], runs, fit_block(q.shape[1] // runs, block_q)),
        k=Cut(k.shape[1] * key_shards, runs * key_shards, fit_block(k.shape[1] // runs, block_k)),
        kv_heads=kv_heads,
        group=group_size(heads, kv_heads),
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
    )
