"""What `benchmarks.recall` trains and asks: documents of lines, runs that grow with their documents, and answers."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool, Float32, Int32, Int64

from ringrl import recipes, train
from ringrl.attention.layout import to_ring_order
from ringrl.config import MeshConfig
from ringrl.formats.token_file import TokenFile
from ringrl.model.cached_decoder import FILLED_TOKENS, CachedDecoder
from ringrl.model.transformer import Transformer, make_attend
from ringrl.run import RunDirectory
from ringrl.sampling.token_windows import token_row
from ringrl.training.checkpoint import Checkpoints
from ringrl.training.mesh import make_mesh, place_batch
from ringrl.training.trained_model import load_model

LINE, QUESTIONS = 4, 1024  # LINE: tokens of a line
STAGES = {64: (128, 100), 512: (16, 200), 4096: (2, 260), 32_768: (1, 280)}
"""Tokens of a training document -> rows of a batch, and the gradient steps that the run has then done."""
RATES = {512: 2.3e-3, 4096: 8e-4, 32_768: 3.5e-4}
"""Tokens of a training document -> the learning rate to which a resumed run rises."""


def write_documents(folder: Path, length: int, *, test: bool = False) -> Path:
    """A file of documents of so many tokens: a million tokens to train on, or what 1,024 test questions need.

    Half of a training document is questions; of a test document an eighth, and at most 1,024 questions.
    """
    path = folder / f"{'test' if test else 'train'}_{length}.npy"
    if not path.exists():
        step = recipes.load("data", "line_retrieval")
        queries = min(length // 8, QUESTIONS) if test else length // 8
        documents = QUESTIONS // queries if test else max(2**20 // length, 1)
        sizes = {"lines": length // LINE - queries, "queries": queries, "documents": documents}
        if not test:  # long documents have lines that differ in one word; short ones have them if keys are of few words
            sizes["alike"] = 2 * round(sizes["lines"] ** (1 / 3))
        step.main(step.Args(out=path, **sizes, seed=1 if test else 0))
    return path


def grow(run: Path, settings: Mapping[str, Any], longest: int, documents: Path, seed: int) -> None:
    """Train a run on documents of 64 tokens and then, resumed, on longer ones, as far as it is not trained yet."""
    done = 0
    if RunDirectory(run).exists:
        with Checkpoints(run, read_only=True) as checkpoints:
            done = checkpoints.latest_step or 0
    for length, (rows, steps) in STAGES.items():
        if length > longest or steps <= done:
            continue
        store = write_documents(documents, length)
        stage = (f"data.store={store}", f"training.row_steps={length}", f"training.batch={rows}")
        stage += (f"training.steps={steps}",)
        if RunDirectory(run).exists:
            rate = (f"optimizer.learning_rate={RATES[length]}", "optimizer.warmup_steps=5")
            train(None, *stage, *rate, resume=run)
        else:
            train("recall", *(f"{key}={value}" for key, value in settings.items()), *stage, f"seed={seed}", out=run)


def load(run: Path, trained_on: int) -> tuple[Transformer, int]:
    """The run's model after documents of so many tokens, and the ids before each token that it reads."""
    directory = RunDirectory(run)
    config, sizes = directory.config(), directory.dataset()["sizes"]
    model, _ = load_model(run, config, sizes, str(STAGES[trained_on][1]))
    return model, sizes.get("previous", 0)


class Questions:
    """The documents of a file, as rows, and where their answers are predicted.

    Attributes:
        fields: of a batch, [documents, tokens, ...].
        at: positions of the tokens that are followed by an answer; the same in all documents.
        answers: the ids that are right, [documents, questions].
    """

    def __init__(self, path: Path, vocabulary: int, previous: int):
        """Read the file; `previous` ids before each token come with it."""
        tokens = TokenFile(path, vocabulary)
        length = tokens.document or 0
        starts, positions = range(0, len(tokens.ids), length), np.arange(length, dtype=np.int64)
        rows = [token_row(tokens, start, positions, previous) for start in starts]
        self.fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        self.at: Int64[np.ndarray, " questions"] = np.flatnonzero(rows[0]["weight"])
        self.answers: Int32[np.ndarray, "documents questions"] = self.fields["target"][:, self.at]

    def right(self, logs: Float32[np.ndarray, "documents questions ids"]) -> Bool[np.ndarray, "documents questions"]:
        """Which questions are answered right: the likeliest id is the answer."""
        return logs.argmax(axis=-1) == self.answers


def in_one_pass(
    model: Transformer, questions: Questions, ring: int = 1
) -> Float32[np.ndarray, "documents questions ids"]:
    """Log-probabilities of all ids as answers, computed over whole documents, on one device or on a ring of several."""
    length = questions.fields["token"].shape[1]
    mesh = make_mesh(MeshConfig(seq=ring))
    order = to_ring_order(np.arange(length), ring, "zigzag", axis=0)
    where = np.argsort(order)[questions.at]
    fields = place_batch({name: x[:, order] for name, x in questions.fields.items()}, mesh)
    graph, params = nnx.split(model)
    params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    return np.asarray(_logs(graph, params, fields, where, mesh))


@partial(jax.jit, static_argnums=(0, 4))
def _logs(graph: Any, params: Any, fields: dict[str, jax.Array], where: jax.Array, mesh: Mesh) -> jax.Array:
    raw = nnx.merge(graph, params)(fields, make_attend(mesh, "zigzag", None), mesh)
    return jax.nn.log_softmax(raw[:, where, 0].astype(jnp.float32), axis=-1)


def from_a_cache(
    model: Transformer, questions: Questions, dtype: str | None = None
) -> Float32[np.ndarray, "documents questions ids"]:
    """The same from a KV cache of that type (None: the model's), which gets 512 tokens a call."""
    decoder, (documents, length) = CachedDecoder(model, cache_dtype=dtype), questions.fields["token"].shape
    cache, parts = decoder.empty(documents, length, FILLED_TOKENS), []
    for start in range(0, length, FILLED_TOKENS):
        part = {name: x[:, start : start + FILLED_TOKENS] for name, x in questions.fields.items()}
        raw, cache = decoder.fill(part, cache)
        here = questions.at[(questions.at >= start) & (questions.at < start + FILLED_TOKENS)] - start
        parts.append(np.asarray(jax.nn.log_softmax(raw[:, here, 0].astype(jnp.float32), axis=-1)))
    return np.concatenate(parts, axis=1)
