"""The part `hashing` of `benchmarks.faults`: what hashes cost, of a checkpoint and of a store."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ringrl.config import MeshConfig
from ringrl.episode import Episode
from ringrl.manifest import MANIFEST, check, seal
from ringrl.store.episode_store import build, open_store
from ringrl.training.checkpoint import Checkpoints, describe
from ringrl.training.mesh import make_mesh

_ROUNDS, _CHAIN = 5, 128


def run_hashing(megabytes: int) -> dict[str, float]:
    """Print what is added by hashes, and return the figures; a median is of `_ROUNDS` rounds.

    Args:
        megabytes: of the checkpoint's state, and about of the store.
    """
    figures = _checkpoint(megabytes) | _store(megabytes)
    print(f"\n{'hashing':<44} {'':>12}")
    for name, value in figures.items():
        print(f"{name:<44} {value:>12.4g}")
    return figures


def _checkpoint(megabytes: int) -> dict[str, float]:
    state = {"x": jax.numpy.asarray(np.random.default_rng(0).normal(size=megabytes * 2**18).astype(np.float32))}
    save, sealing, restore, checking = [], [], [], []
    for step in range(1, 1 + _ROUNDS):
        with tempfile.TemporaryDirectory() as place:
            began = time.perf_counter()
            with Checkpoints(Path(place)) as checkpoints:
                checkpoints.save(step, state, describe(step, 0, make_mesh(MeshConfig())), 1.0)
            save.append(time.perf_counter() - began)
            folder = Path(place) / "checkpoints" / str(step)
            sealing.append(_seconds(lambda folder=folder: seal(folder)))
            with Checkpoints(Path(place), read_only=True) as checkpoints:
                restore.append(_seconds(lambda checkpoints=checkpoints: checkpoints.restore(state)))
            checking.append(_seconds(lambda folder=folder: check(folder)))
    return {
        "checkpoint_mb": megabytes,
        "checkpoint_save_s": statistics.median(save),
        "of_which_hashing_s": statistics.median(sealing),
        "checkpoint_restore_s": statistics.median(restore),
        "of_which_checking_s": statistics.median(checking),
    }


def _store(megabytes: int) -> dict[str, float]:
    draw = np.random.default_rng(0)
    steps, widths = 1000, (24, 6)
    count = max(_CHAIN, megabytes * 2**20 // (4 * steps * (sum(widths) + 2)))
    episode = Episode.from_arrays(
        draw.normal(size=(steps + 1, widths[0])), draw.uniform(-1, 1, (steps, widths[1])), np.ones(steps),
        terminated=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        path = build(Path(place) / "store", (episode for _ in range(count)), domain="rig")
        built, sealing = time.perf_counter() - began, _seconds(lambda: seal(path))
        hashed = [_opened_and_read(path, draw) for _ in range(_ROUNDS)]
        (path / MANIFEST).rename(path / "aside")
        text = (path / "store.json").read_text()
        (path / "store.json").write_text(text.replace('"manifest"', '"formerly"'))
        plain = [_opened_and_read(path, draw) for _ in range(_ROUNDS)]
    (open_with, chain_with), (open_without, chain_without) = (np.median(each, axis=0) for each in (hashed, plain))
    return {
        "store_mb": count * 4 * steps * (sum(widths) + 2) / 2**20,
        "store_build_s": built,
        "of_which_hashing_store_s": sealing,
        "open_ms": 1e3 * float(open_with),
        "open_without_hashes_ms": 1e3 * float(open_without),
        "chain128_ms": 1e3 * float(chain_with),
        "chain128_without_hashes_ms": 1e3 * float(chain_without),
    }


def _opened_and_read(path: Path, draw: np.random.Generator) -> tuple[float, float]:
    """Seconds of opening a store, and of reading a chain of it."""
    began = time.perf_counter()
    store = open_store(path)
    opened = time.perf_counter()
    spans = [(int(episode), 0, 1000) for episode in draw.integers(store.episodes, size=_CHAIN)]
    store.read_many(spans, "rig")
    return opened - began, time.perf_counter() - opened


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
