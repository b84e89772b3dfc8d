"""Floating-point operations of a training step, as model FLOPs utilisation (MFU) counts them."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from ringrl.config import ModelConfig


def model_flops(
    config: ModelConfig, params: Any, *, rows: int, steps: int, tokens_per_step: int, visible: float = 1.0
) -> float:
    """FLOPs that one training step needs, forward and backward (PaLM, Chowdhery et al. 2022, appendix B).

        FLOPs = rows (6 N T + 6 N_out S + 6 L W V T^2),    T = S tokens_per_step

    with N parameters in the matrices of L layers of width W, N_out in the output head's, and S steps a row. Attention
    is counted once over half the square, of which a share V is visible: 2 products forward and 4 backward.
    Recomputation is not counted, nor are embeddings, norms and the optimiser.

    Args:
        config: the decoder's shape.
        params: the model's parameters by name, as arrays or shapes; `layers` are stacked.
        rows: in a step, over all devices.
        steps: in a row.
        tokens_per_step: of one step.
        visible: V, the share of a row's causal pairs that are of one segment (`visible_share`).
    """
    layers, output = matrix_sizes(params)
    tokens = steps * tokens_per_step
    attention = 6.0 * config.layers * config.width * visible * tokens**2
    return rows * (6.0 * layers * tokens + 6.0 * output * steps + attention)


def visible_share(
    position: Int32[np.ndarray, "rows part"], segment_ids: Int32[np.ndarray, "rows part"], *, steps: int
) -> float:
    """The share of causal pairs of steps that are of one segment, in 0 to 1: 1 where a row is one context.

    Args:
        position: index of each step within its segment, so that it sees so many earlier ones and itself.
        segment_ids: 0 is padding, which sees nothing.
        steps: of a whole row, of which a process may have only a part.
    """
    seen = np.where(segment_ids > 0, position + 1, 0)
    return float(seen.mean(dtype=np.float64)) / ((steps + 1) / 2)


def matrix_sizes(params: Any) -> tuple[int, int]:
    """Parameters in the matrices of the layers, and of the output head. Embeddings are in neither."""
    sizes = {True: 0, False: 0}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        keys = [str(getattr(part, "key", part)) for part in path]
        if keys[-1] == "kernel" and "embed" not in keys:
            sizes["layers" in keys] += math.prod(leaf.shape)
    return sizes[True], sizes[False]
