"""Floating-point operations of a training step, as model FLOPs utilisation (MFU) counts them."""

import math
from typing import Any

import jax

from ringrl.config import ModelConfig


def model_flops(config: ModelConfig, params: Any, *, rows: int, steps: int, tokens_per_step: int) -> float:
    """FLOPs that one training step needs, forward and backward (PaLM, Chowdhery et al. 2022, appendix B).

        FLOPs = rows (6 N T + 6 N_out S + 6 L W T^2),    T = S tokens_per_step

    with N parameters in the matrices of L layers of width W, N_out in the output head's, and S steps a row. Attention
    is counted once over half the square: 2 products forward and 4 backward. Recomputation is not counted, nor are
    embeddings, norms and the optimiser. A row counts as one segment: where several contexts are packed into a row,
    fewer pairs are visible and the utilisation is overstated.

    Args:
        config: the decoder's shape.
        params: the model's parameters by name, as arrays or shapes; `layers` are stacked.
        rows: in a step, over all devices.
        steps: in a row.
        tokens_per_step: of one step.
    """
    layers, output = matrix_sizes(params)
    tokens = steps * tokens_per_step
    attention = 6.0 * config.layers * config.width * tokens**2
    return rows * (6.0 * layers * tokens + 6.0 * output * steps + attention)


def matrix_sizes(params: Any) -> tuple[int, int]:
    """Parameters in the matrices of the layers, and of the output head. Embeddings are in neither."""
    sizes = {True: 0, False: 0}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        keys = [str(getattr(part, "key", part)) for part in path]
        if keys[-1] == "kernel" and "embed" not in keys:
            sizes["layers" in keys] += math.prod(leaf.shape)
    return sizes[True], sizes[False]
