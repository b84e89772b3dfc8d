"""What all subjects of `benchmarks.rollout` share: a model, a context that fills its cache, and the step after it.

The model is `preset: small` (4 layers, 128 wide, 4 heads) with walker's 24 observations and 6 actions, the Agentic
Transformer's 4 tokens a step, and tables of steps and trials. Its parameters are as they are initialised, but queries
four times as large, so that attention is to a few tokens, as a trained model's, and not the mean of thousands. Keys and
values are those of a context of random steps. A context of n tokens is full before its newest step's action: n - 2
tokens, 4 of which are the step's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ringrl.batch import BATCH_SCHEMA, link_previous

OBSERVATION, ACTION, PER_STEP = 24, 6, 4
LAYERS, WIDTH, HEADS = 4, 128, 4
HISTORY = 16_384  # steps that are drawn: those of the longest context
TOKEN_BYTES = 2 * LAYERS * WIDTH * 4  # keys and values of one token in float32


class Subject(NamedTuple):
    """What is timed: `reset` makes the next `step` do the same work again, and is not timed."""

    step: Callable[[], np.ndarray]
    reset: Callable[[], None] = lambda: None
    setting: str = ""


def history() -> dict[str, np.ndarray]:
    """The fields of `ringrl.batch.Batch` of one row of random steps in trials of 1,000, [1, HISTORY, ...]."""
    rng, shape = np.random.default_rng(0), (1, HISTORY)
    sizes = {"observation": OBSERVATION, "action": ACTION}
    steps = {name: field.zeros(shape, sizes) for name, field in BATCH_SCHEMA.items()}
    for name in ("observation", "action", "reward", "return_to_go"):
        steps[name] = rng.standard_normal(steps[name].shape, np.float32)
    steps["action"] = np.tanh(steps["action"])
    steps["position"] += np.arange(HISTORY, dtype=np.int32)
    steps["step"], steps["trial"] = steps["position"] % 1000, steps["position"] // 1000
    steps["segment_ids"] += 1
    return link_previous(steps)


def newest(tokens: int, envs: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The step before the newest and the newest of a context, [envs, 1, ...]; every environment observes another."""
    steps, at = history(), tokens // PER_STEP - 1
    previous, current = (
        {name: np.repeat(value[:, index : index + 1], envs, axis=0) for name, value in steps.items()}
        for index in (at - 1, at)
    )
    drawn = np.random.default_rng(1).standard_normal(current["observation"].shape, np.float32)
    return previous, current | {"observation": drawn}


def window(tokens: int, envs: int) -> dict[str, np.ndarray]:
    """The whole context, the newest step among it, as the usual loop gives it to its model: [envs, steps, ...]."""
    steps = {name: np.repeat(value[:, : tokens // PER_STEP], envs, axis=0) for name, value in history().items()}
    steps["observation"][:, -1:] = newest(tokens, envs)[1]["observation"]
    return steps


def make_model() -> Any:
    """The transformer, the same in every process."""
    from flax import nnx

    from ringrl.agent import make_decoder
    from ringrl.config import parse_config
    from ringrl.model.output_heads import TanhMSE
    from ringrl.model.transformer import Transformer

    config = parse_config(
        {
            "data": {"store": "none", "task": "walker_run"},
            "agent": {"name": "agentic_transformer", "completion": False},
            "model": {"preset": "small", "trial_encoding": "table"},  # as the usual decoder has it
        },
        "benchmarks.rollout",
    )
    sizes = {"observation": OBSERVATION, "action": ACTION}
    layout = make_decoder(config.agent).tokens
    model = Transformer(config.model, layout, TanhMSE(), sizes, rngs=nnx.Rngs(0))
    kernel = model.layers.before.query.kernel
    kernel[...] = 4.0 * kernel[...]
    return model


def prepare(folder: Path, tokens: int) -> None:
    """Write the model's parameters and the keys and values of `tokens` tokens, [layers, tokens, width], to a folder."""
    import jax
    from flax import nnx

    from ringrl.model.cached_decoder import CachedDecoder

    model = make_model()
    decoder, steps, chunk = CachedDecoder(model), history(), min(512, tokens) // PER_STEP
    cache = decoder.empty(1, tokens + chunk * PER_STEP, chunk * PER_STEP)
    for start in range(0, tokens // PER_STEP, chunk):
        _, cache = decoder.fill({name: value[:, start : start + chunk] for name, value in steps.items()}, cache)
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    named: dict[str, Any] = {".".join(str(part.key) for part in path): np.asarray(leaf) for path, leaf in leaves}
    np.savez(folder / "parameters.npz", **named)
    for name in ("k", "v"):
        np.save(folder / f"{name}.npy", np.asarray(getattr(cache.stored, name)[:, 0, :tokens]))


def keys_and_values(folder: Path, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Those before the newest step of a context, [layers, tokens - 6, width]; a long one repeats what was prepared."""
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("k", "v")]
    there = np.arange(tokens - 2 - PER_STEP) % arrays[0].shape[1]
    k, v = (np.asarray(x[:, there]) for x in arrays)
    return k, v
