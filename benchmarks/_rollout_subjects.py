"""Subjects of `benchmarks.rollout` in JAX, and a plain read of memory: see `_rollout_torch` for PyTorch's."""

import ctypes
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._rollout_context import (
    HEADS,
    LAYERS,
    PER_STEP,
    TOKEN_BYTES,
    Subject,
    keys_and_values,
    make_model,
    newest,
    window,
)
from benchmarks._workers import seconds_of

_READ = """
extern "C" float read(const float* x, long n) {
  float sums[64] = {};
  for (long i = 0; i + 64 <= n; i += 64) for (int j = 0; j < 64; ++j) sums[j] += x[i + j];
  float total = 0;
  for (float sum : sums) total += sum;
  return total;
}
"""


def cached(folder: Path, tokens: int, envs: int, dtype: str, room: int) -> Subject:
    """An agent step of ringrl, from fields on the host to raw outputs on the host, with `tokens` in `room`."""
    import jax
    import jax.numpy as jnp

    from ringrl.attention.kv_cache import store
    from ringrl.model.cached_decoder import CachedDecoder

    decoder = CachedDecoder(make_model(), None, dtype)
    cache = decoder.empty(envs, room, PER_STEP)
    k, v = (jnp.asarray(x).reshape(LAYERS, x.shape[1], HEADS, -1) for x in keys_and_values(folder, tokens))
    before, count = store(k, v, cache.stored.k.dtype), k.shape[1]
    there = np.arange(cache.positions.shape[1], dtype=np.int32)
    cache = cache._replace(
        stored=jax.tree.map(partial(_put, count), cache.stored, before),
        positions=jnp.tile(jnp.asarray(there), (envs, 1)),
        segment_ids=jnp.ones((envs, len(there)), jnp.int32),
    )
    del k, v, before
    previous, current = newest(tokens, envs)

    def reset() -> None:
        nonlocal cache
        cache = cache._replace(filled=jnp.full((envs, 1), count, jnp.int32))

    def step() -> np.ndarray:
        nonlocal cache
        raw, cache = decoder.step(previous, current, cache)
        return np.asarray(raw)

    return Subject(step, reset)


def _put(count: int, whole: Any, part: Any) -> Any:
    """A cache's array with `count` tokens in its first slots, of all rows; slots of scales are on the last axis."""
    where = (slice(None), slice(None), slice(count)) if part.shape[1] == count else (..., slice(count))
    return whole.at[where].set(part[:, None])


def recomputed(tokens: int, envs: int) -> Subject:
    """The usual loop's agent step: the model over its whole window."""
    from ringrl.rollout.model_calls import ModelCalls

    calls, steps = ModelCalls(make_model()), window(tokens, envs)
    at = np.full(envs, tokens // PER_STEP - 1, np.int32)
    return Subject(lambda: np.asarray(calls.window(steps, at)))


def plain_read(folder: Path, tokens: int, envs: int, cores: int) -> Subject:
    """The sum of as many numbers as an agent step's keys and values, by the fastest of the ways there are here."""
    numbers = np.ones((tokens - 2) * envs * TOKEN_BYTES // 4, np.float32)
    parts, pool = np.array_split(numbers, cores), ThreadPoolExecutor(cores)
    ways: dict[str, Callable[[], Any]] = {"NumPy, threads": lambda: sum(pool.map(np.sum, parts))}
    if compiled := _compiled_read(folder):
        ways["C++, threads"] = lambda: sum(pool.map(compiled, parts))
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        pass
    else:
        torch.set_num_threads(cores)
        tensor = torch.from_numpy(numbers)
        ways["PyTorch"] = lambda: tensor.sum().item()
    best = fastest(ways)
    return Subject(lambda: np.asarray(ways[best]()), setting=best)


def _compiled_read(folder: Path) -> Callable[[np.ndarray], float] | None:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return None
    source, library = folder / "read.cc", folder / f"read{os.getpid()}.so"
    source.write_text(_READ)
    options = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
    subprocess.run([*compiler.split(), *options, str(source), "-o", str(library)], check=True)
    read = ctypes.CDLL(str(library)).read
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_long], ctypes.c_float
    return lambda part: read(part.ctypes.data, part.size)


def fastest(ways: dict[str, Callable[[], Any]], calls: int = 5) -> str:
    """The name of the way whose median is the smallest, each after a call that warms it up."""
    seconds = {}
    for name, way in ways.items():
        way()
        seconds[name] = statistics.median(seconds_of(way) for _ in range(calls))
    return min(seconds, key=seconds.__getitem__)
