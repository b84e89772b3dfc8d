"""Floating-point operations of a training step, counted as model FLOPs utilisation wants them."""

import math
from typing import Any

import jax

from ringrl.config import ModelConfig


def model_flops(config: ModelConfig, params: Any, *, rows: int, steps: int, tokens_per_step: int) -> float:
    """FLOPs that one training step needs, forward and backward (PaLM, Chowdhery et al. 2022, appendix B).

    6 for each token and number of the layers' matrices; 6 for each step and number of the matrix that reads an output
    from it; and attention over half the square, once: 2 products forward and 4 backward, so 6 width tokens^2 a layer
    and row. Recomputation is not counted, nor are embeddings, norms and the optimiser. A row counts as one segment:
    several chains packed into it see less, and the utilisation is overstated by what they do not see.

    Args:
        config: the decoder's shape.
        params: the model's parameters by name, as arrays or shapes; `layers` are stacked.
        rows: in a step, over all devices.
        steps: that a row holds.
        tokens_per_step: tokens that a step becomes.
    """
    layers, read = matrix_sizes(params)
    tokens = steps * tokens_per_step
    attention = 6.0 * config.layers * config.width * tokens**2
    return rows * (6.0 * layers * tokens + 6.0 * read * steps + attention)


def matrix_sizes(params: Any) -> tuple[int, int]:
    """Numbers in the matrices of the layers, and in those that read the output. Embeddings are in neither."""
    sizes = {True: 0, False: 0}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        keys = [str(getattr(part, "key", part)) for part in path]
        if keys[-1] == "kernel" and "embed" not in keys:
            sizes["layers" in keys] += math.prod(leaf.shape)
    return sizes[True], sizes[False]
