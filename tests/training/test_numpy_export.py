"""The forward pass of docs/export.md, in NumPy, against the model that was exported."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ringrl.agent import make_decoder
from ringrl.batch import PREVIOUS, link_previous
from ringrl.model.output_heads import make_head
from ringrl.model.transformer import Transformer, make_attend
from ringrl.training.state import split_model
from tests.builders import TINY, make_config

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
SIZES = {"observation": 5, "action": 2}


@pytest.fixture(scope="module")
def page():
    """The page's program."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    found: dict = {}
    exec(code, found)  # noqa: S102
    return found


def context():
    """Two trials of 5 and 4 steps, as a batch of one row."""
    rng = np.random.default_rng(0)
    step = np.r_[0:5, 0:4].astype(np.int32)[None]
    arrays = {
        "observation": rng.normal(size=(1, 9, 5)).astype(np.float32),
        "action": rng.uniform(-1, 1, (1, 9, 2)).astype(np.float32),
        "reward": rng.normal(size=(1, 9)).astype(np.float32),
        "return_to_go": rng.normal(size=(1, 9)).astype(np.float32),
        "completion": np.zeros((1, 9), np.float32),
        "step": step,
        "trial": np.repeat(np.int32([0, 1]), [5, 4])[None],
        "position": np.arange(9, dtype=np.int32)[None],
        "segment_ids": np.ones((1, 9), np.int32),
        "weight": np.ones((1, 9), np.float32),
    }
    return link_previous(arrays)


@pytest.mark.parametrize(
    "agent, model",
    [
        ({"name": "algorithm_distillation", "fused": True}, {"trial_encoding": "rotary"}),
        ({"name": "decision_transformer"}, {"trial_encoding": "table", "activation": "swiglu", "kv_heads": 1}),
        ({"name": "agentic_transformer"}, {"trial_encoding": "none", "rope_base": 500.0}),
        (
            {"name": "decision_pretrained", "fused": True},
            {"position_encoding": "none", "trial_encoding": "table", "max_steps": 3},
        ),
    ],
)
def test_it_is_the_model(agent, model, page):
    config = make_config(TINY, agent=agent, model={"width": 16, "heads": 2, "layers": 2, "rope_base": 1e4} | model)
    decoder = make_decoder(config.agent)
    head = make_head(config.agent.head, config.agent.bins)
    made = Transformer(config.model, decoder.tokens, head, SIZES, rngs=nnx.Rngs(0))
    batch = context()
    expected = made({name: jnp.asarray(x) for name, x in batch.items()}, make_attend(None, "zigzag", None))
    parameters = {".".join(map(str, path)): np.asarray(x) for path, x in flat(split_model(made)[1])}
    fused, names = config.agent.fused, decoder.tokens.modalities
    shown = [PREVIOUS.get(name, name) if fused else name for name in names]
    inputs = {name: batch[field][0].reshape(9, -1) for name, field in zip(names, shown, strict=True)}
    found = page["forward"](
        parameters, config.model.model_dump(), inputs, batch["step"][0], batch["trial"][0], fused,
        names.index("observation"),
    )  # fmt: skip
    np.testing.assert_allclose(found, np.asarray(expected)[0].reshape(9, -1), rtol=2e-4, atol=2e-5)


def flat(tree, path=()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, (*path, name))
        else:
            yield (*path, name), value
