"""FLOPs that a step needs, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringrl.agent import make_decoder
from ringrl.config import ModelConfig
from ringrl.model.flops import matrix_sizes, model_flops, visible_share
from ringrl.training.state import build_model, split_model


def shapes(**layers):
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    return {
        "embed": {"linear": {"kernel": leaf(7, 64)}, "step": {"embedding": leaf(100, 64)}},
        "layers": {"up": {"kernel": leaf(2, 64, 256)}, "norm": {"scale": leaf(2, 64)}},
        "read": {"output": {"kernel": leaf(64, 3), "bias": leaf(3)}},
    }


def test_embeddings_norms_and_biases_are_no_matrices():
    assert matrix_sizes(shapes()) == (2 * 64 * 256, 64 * 3)


def test_model_flops_of_a_known_case():
    # 6 a token and number of the layers' matrices, 6 a step and number of the head's. Attention, forward: 2 products x
    # 2 FLOPs x width x half of tokens^2 a layer; with backward thrice.
    config = ModelConfig(layers=2, width=64, heads=2, kv_heads=2)
    flops = model_flops(config, shapes(), rows=3, steps=5, tokens_per_step=2)
    attention = 3 * 2 * (2 * 2 * 64 * 10 * 10 / 2)
    assert flops == 3 * (6 * 2 * 64 * 256 * 10 + 6 * 64 * 3 * 5 + attention)
    half = model_flops(config, shapes(), rows=3, steps=5, tokens_per_step=2, visible=0.5)
    assert flops - half == 3 * attention / 2


def test_what_is_visible_of_packed_rows():
    """Two contexts of two steps see 1 + 2 pairs each, one of four 1 + 2 + 3 + 4, and padding none."""
    position = np.array([[0, 1, 0, 1], [0, 1, 2, 3], [0, 1, 0, 0]], np.int32)
    ids = np.array([[1, 1, 2, 2], [1, 1, 1, 1], [1, 1, 0, 0]], np.int32)
    for row, pairs in enumerate((6, 10, 3)):
        assert visible_share(position[row : row + 1], ids[row : row + 1], steps=4) == pytest.approx(pairs / 10)
    # A process that has the first and the last of four steps, as a zigzag deals them out, sees the whole row's share.
    assert visible_share(position[1:2, [0, 3]], ids[1:2, [0, 3]], steps=4) == 1


@pytest.mark.parametrize("activation, matrices", [("gelu", 2), ("swiglu", 3)])
def test_a_real_model(tiny_config, activation, matrices):
    config = tiny_config({"name": "agentic_transformer"}, model={"activation": activation, "hidden": 48})
    model = build_model(config, make_decoder("agentic_transformer"), {"observation": 5, "action": 1})
    attention, feed_forward = 4 * 16 * 16, matrices * 16 * 48
    assert matrix_sizes(split_model(model)[1]) == (attention + feed_forward, 16)
