"""The peer of `benchmarks.rollout`: the same decoder with a static KV cache in PyTorch, at its fastest setting.

The parameters, keys and values are ringrl's. The cache is preallocated, [layers, rows, heads, slots, head_dim], the
layout that PyTorch's attention reads without copying, and new keys and values are written in place. All rows have one
length, which the compiled step knows as a constant: less than a rollout needs, and to the peer's advantage. Query, key
and value are one product, and rotary angles are tables.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._rollout_context import HEADS, LAYERS, PER_STEP, WIDTH, Subject, keys_and_values, newest
from benchmarks._rollout_subjects import fastest

DIM = WIDTH // HEADS
ATTENTION = ("scaled_dot_product_attention", "scaled_dot_product_attention of the room", "two products")
MODALITIES = ("return_to_go", "observation", "action", "reward")


class Cache(NamedTuple):
    """Keys and values, and what positions need."""

    k: Any  # [layers, rows, heads, slots, head_dim]
    v: Any
    cos: Any  # [slots, head_dim / 2]
    sin: Any


def torch_peer(folder: Path, tokens: int, envs: int, cores: int, quick: bool) -> Subject:
    """The fastest of: three kinds of attention, compiled (unless `quick`) and not, one thread and all."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no processes beside this one
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_grad_enabled(False)
    parameters, cache = _parameters(folder), _cache(folder, tokens, envs)
    previous, current = ({name: torch.from_numpy(x) for name, x in fields.items()} for fields in newest(tokens, envs))
    ways: dict[str, tuple[int, Callable[[], np.ndarray]]] = {}
    for attention in ATTENTION:
        eager = _decoder(attention, tokens - 2 - PER_STEP)
        kinds = {"": eager} if quick else {"": eager, ", torch.compile": torch.compile(eager, dynamic=False)}
        for label, decode in kinds.items():
            for threads in sorted({1, cores}):

                def step(decode: Any = decode) -> np.ndarray:
                    return decode(parameters, cache, previous, current).numpy()

                torch.set_num_threads(threads)
                try:
                    step()
                except Exception as error:
                    print(f"{attention}{label}: left out: {error}", file=sys.stderr)
                else:
                    ways[f"{attention}{label}, {threads} of {cores} threads"] = threads, step

    def run(name: str) -> np.ndarray:
        torch.set_num_threads(ways[name][0])
        return ways[name][1]()

    best = fastest({name: partial(run, name) for name in ways})
    torch.set_num_threads(ways[best][0])
    return Subject(ways[best][1], setting=best)


def _parameters(folder: Path) -> dict[str, Any]:
    """ringrl's, matrices as PyTorch stores them, [outputs, inputs]; query, key and value in one."""
    import torch  # pyright: ignore[reportMissingImports]

    stored = np.load(folder / "parameters.npz")

    def tensor(name: str) -> Any:
        x = torch.from_numpy(stored[name])
        return x.mT.contiguous() if name.endswith("kernel") else x

    found = {name: tensor(name) for name in stored if not name.startswith("layers.")}
    layers = {name.removeprefix("layers."): tensor(name) for name in stored if name.startswith("layers.")}
    names = [f"before.{part}.kernel" for part in ("query", "key", "value")]
    layers["before.kernel"] = torch.cat([layers.pop(name) for name in names], dim=1)
    return found | {"layers": [{name: x[i].contiguous() for name, x in layers.items()} for i in range(LAYERS)]}


def _cache(folder: Path, tokens: int, envs: int) -> Cache:
    import torch  # pyright: ignore[reportMissingImports]

    before = keys_and_values(folder, tokens)
    k, v = (torch.zeros(LAYERS, envs, HEADS, tokens, DIM) for _ in range(2))
    for whole, part in zip((k, v), before, strict=True):
        heads = torch.from_numpy(part).unflatten(-1, (HEADS, DIM)).transpose(1, 2)
        whole[:, :, :, : part.shape[1]] = heads[:, None]
    frequency = 10_000.0 ** -(torch.arange(DIM // 2, dtype=torch.float64) * 2 / DIM)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * frequency
    return Cache(k, v, angle.cos().float(), angle.sin().float())


def _decoder(attention: str, at: int) -> Callable[..., Any]:
    """(parameters, cache, previous step, current step) -> raw outputs, appending 4 tokens at slot `at`."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

    end = at + PER_STEP

    def embed(p: dict[str, Any], name: str, fields: dict[str, Any]) -> Any:
        x = fields[name] if fields[name].ndim == 3 else fields[name][..., None]
        y = F.linear(x, p[f"embed.linear.{name}.kernel"], p[f"embed.linear.{name}.bias"])
        y = y + p["embed.step.embedding"][fields["step"]] + p["embed.trial.embedding"][fields["trial"]]
        return F.layer_norm(y, (WIDTH,), p["embed.norm.scale"], p["embed.norm.bias"], 1e-6)

    def attend(q: Any, k: Any, v: Any, mask: Any) -> Any:
        if attention != "two products":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        scores = (q * DIM**-0.5) @ k.mT
        return torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1) @ v

    def layer(p: dict[str, Any], x: Any, k: Any, v: Any, cos: Any, sin: Any, mask: Any) -> Any:
        rows, seen = x.shape[0], mask.shape[1]
        qkv = F.linear(F.rms_norm(x, (WIDTH,), p["before.norm.scale"], 1e-6), p["before.kernel"])
        q, key, value = qkv.view(rows, PER_STEP, 3, HEADS, DIM).permute(2, 0, 3, 1, 4)
        halves = [y.chunk(2, dim=-1) for y in (q, key)]
        q, key = (torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1) for a, b in halves)
        k[:, :, at:end], v[:, :, at:end] = key, value
        out = attend(q, k[:, :, :seen], v[:, :, :seen], mask)
        x = x + F.linear(out.transpose(1, 2).reshape(rows, PER_STEP, WIDTH), p["after.out.kernel"])
        normed = F.rms_norm(x, (WIDTH,), p["after.norm.scale"], 1e-6)
        return x + F.linear(F.gelu(F.linear(normed, p["after.up.kernel"]), approximate="tanh"), p["after.down.kernel"])

    def decode(p: dict[str, Any], cache: Cache, previous: dict[str, Any], current: dict[str, Any]) -> Any:
        parts = [embed(p, name, previous) for name in MODALITIES[2:]] + [
            embed(p, name, current) for name in MODALITIES[:2]
        ]
        x = torch.cat(parts, dim=1)
        seen = cache.k.shape[3] if attention.endswith("room") else end
        mask = torch.arange(seen)[None] <= torch.arange(at, end)[:, None]
        for i, weights in enumerate(p["layers"]):
            x = layer(weights, x, cache.k[i], cache.v[i], cache.cos[at:end], cache.sin[at:end], mask)
        last = F.rms_norm(x[:, -1], (WIDTH,), p["read.norm.scale"], 1e-6)
        return F.linear(last, p["read.output.kernel"], p["read.output.bias"])[..., None]

    return decode
