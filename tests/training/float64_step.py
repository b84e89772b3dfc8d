"""One training step written out in float64, as the papers have it: the oracle of `ringrl.training.state`.

Plain functions of nested dictionaries of arrays, by the names of the model's parameters: no Flax, no Optax, no scan, no
mesh, no blocks and nothing recomputed. `xp` is NumPy, or jax.numpy where a gradient is asked for. It is the decoder
with fused tokens, a table of trials and a GELU.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ringrl.config import OptimizerConfig
from ringrl.model_config import ModelConfig

PREVIOUS = {"action": "previous_action", "reward": "previous_reward", "completion": "previous_completion"}
EPSILON = 1e-6  # of the norms
B1, ADAM_EPSILON = 0.9, 1e-8


def forward(xp: Any, model: ModelConfig, base: float, params: Mapping, batch: Mapping) -> Any:
    """Raw outputs of the head [B, S, action, outputs]."""
    x = embed(xp, params["embed"], batch)
    half = model.width // model.heads // 2
    angle = batch["position"][:, :, None] * base ** (-np.arange(half) / half)
    segment = batch["segment_ids"]
    causal = np.tril(np.ones((segment.shape[1],) * 2, bool))[None]
    visible = (segment[:, :, None] == segment[:, None, :]) & causal
    for index in range(model.layers):
        before = {name: pick(value, index) for name, value in params["layers"]["before"].items()}
        after = {name: pick(value, index) for name, value in params["layers"]["after"].items()}
        x = x + attention(xp, model, before, x, angle, visible) @ after["out"]["kernel"]
        x = x + gelu(xp, rms_norm(xp, x, after["norm"]) @ after["up"]["kernel"]) @ after["down"]["kernel"]
    read = params["read"]
    return rms_norm(xp, x, read["norm"]) @ read["output"]["kernel"] + read["output"]["bias"]


def pick(value: Mapping, index: int) -> dict:
    """One layer's parameters of a module."""
    return {name: array[index] for name, array in value.items()}


def embed(xp: Any, params: Mapping, batch: Mapping) -> Any:
    """LayerNorm of the sum of the modalities' embeddings, the time step's and the trial's (Chen et al. 2021)."""
    rows = [np.minimum(batch[name], params[name]["embedding"].shape[0] - 1) for name in ("step", "trial")]
    total = params["step"]["embedding"][rows[0]] + params["trial"]["embedding"][rows[1]]
    for name, linear in params["linear"].items():
        seen = batch[PREVIOUS.get(name, name)]
        total = total + (seen if seen.ndim == 3 else seen[:, :, None]) @ linear["kernel"] + linear["bias"]
    centred = total - total.mean(axis=-1, keepdims=True)
    norm = params["norm"]
    return centred / xp.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON) * norm["scale"] + norm["bias"]


def rms_norm(xp: Any, x: Any, norm: Mapping) -> Any:
    """Zhang & Sennrich 2019."""
    return x / xp.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON) * norm["scale"]


def gelu(xp: Any, x: Any) -> Any:
    """Hendrycks & Gimpel 2016, by its tanh."""
    return 0.5 * x * (1 + xp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(xp: Any, model: ModelConfig, params: Mapping, x: Any, angle: np.ndarray, visible: np.ndarray) -> Any:
    """Rotated, grouped-query, causal within segments: [B, S, W]."""
    normed, size = rms_norm(xp, x, params["norm"]), x.shape[-1] // model.heads
    q, k, v = ((normed @ params[name]["kernel"]).reshape(*x.shape[:2], -1, size) for name in ("query", "key", "value"))
    q, k = rotate(xp, q, angle), rotate(xp, k, angle)
    heads = []
    for head in range(model.heads):
        shared = head * model.kv_heads // model.heads
        scores = xp.einsum("bqd,bkd->bqk", q[:, :, head], k[:, :, shared]) / np.sqrt(size)
        scores = xp.where(visible, scores, -np.inf)
        weights = xp.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(weights / weights.sum(axis=-1, keepdims=True) @ v[:, :, shared])
    return xp.concatenate(heads, axis=-1)


def rotate(xp: Any, x: Any, angle: np.ndarray) -> Any:
    """Su et al. 2021, equation 34, feature i with feature i + D/2."""
    cos, sin, half = np.cos(angle)[:, :, None], np.sin(angle)[:, :, None], x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    return xp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def mean_loss(xp: Any, model: ModelConfig, base: float, params: Mapping, batch: Mapping) -> Any:
    """The weighted mean over steps of (tanh y - a)^2, or of the negative log-likelihood where there are two outputs."""
    wanted = batch["action"]
    raw = forward(xp, model, base, params, batch).reshape(*wanted.shape, -1)
    each = (xp.tanh(raw[..., 0]) - wanted) ** 2
    if raw.shape[-1] == 2:
        deviation = -4 + 5 * (xp.tanh(raw[..., 1]) + 1) / 2
        each = each * xp.exp(-2 * deviation) / 2 + deviation + np.log(2 * np.pi) / 2
    return (each.mean(axis=-1) * batch["weight"]).sum() / max(batch["weight"].sum(), 1.0)


def adamw(
    settings: OptimizerConfig,
    rate: float,
    gradients: list,
    moments: tuple[list, list],
    params: list,
    decayed: list,
    t: int,
) -> tuple[list, list, list]:
    """New parameters and moments after the t-th update, from 1 on (Loshchilov & Hutter 2019), of lists of arrays.

    The gradients are first scaled to the norm `clip_norm`, if theirs is larger.
    """
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    gradients = [g * min(1.0, settings.clip_norm / norm) for g in gradients]
    first = [B1 * m + (1 - B1) * g for m, g in zip(moments[0], gradients, strict=True)]
    second = [settings.beta2 * v + (1 - settings.beta2) * g**2 for v, g in zip(moments[1], gradients, strict=True)]
    new = []
    for m, v, p, decays in zip(first, second, params, decayed, strict=True):
        step = m / (1 - B1**t) / (np.sqrt(v / (1 - settings.beta2**t)) + ADAM_EPSILON)
        new.append(p - rate * (step + settings.weight_decay * decays * p))
    return new, first, second
