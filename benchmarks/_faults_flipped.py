"""The part `flipped` of `benchmarks.faults`: one bit of one file changes, as on a bad disk, and the folder is read.

What is read must be what was written, or an error of one line, or another checkpoint that is named in the log. Numbers
that differ without a word are silently wrong. Files are drawn with equal probability of each kind, then of each file,
then of each bit.
"""

import hashlib
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks._faults_readers import TASK, make_export, make_run, make_store
from ringrl.config import MeshConfig
from ringrl.errors import UserError
from ringrl.reporting.statistics.evaluated_run import read_run
from ringrl.run import RunDirectory
from ringrl.store.episode_store import open_store
from ringrl.training.checkpoint import Checkpoints, describe
from ringrl.training.export import load_export
from ringrl.training.mesh import make_mesh

STATE = {"step": np.int32(3), "params": {"kernel": np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)}}


@dataclass(frozen=True)
class Subject:
    """A folder in which bits are flipped.

    Attributes:
        name: of its kind.
        make: writes it.
        read: all numbers that are used of it.
        part: where its files are.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    part: str = "."


def run_flipped(count: int, seed: int) -> dict[str, int]:
    """Flip `count` bits, print what came of them, and return the figures."""
    draw, tried = random.Random(seed), {}
    print(f"\n{'flipped':<12} {'tries':>7} {'refused':>8} {'passed over':>12} {'harmless':>9} {'silently wrong':>15}")
    for index, subject in enumerate(SUBJECTS):
        share = count // len(SUBJECTS) + (index < count % len(SUBJECTS))
        with tempfile.TemporaryDirectory() as folder:
            found = tried[subject.name] = _flip(subject, Path(folder), share, draw)
        columns = [found[kind] for kind in ("refused", "passed over", "harmless", "silently wrong")]
        print(f"{subject.name:<12} {share:>7} {columns[0]:>8} {columns[1]:>12} {columns[2]:>9} {columns[3]:>15}")
    total = sum(tried.values(), Counter())
    return {"flipped": count, "silently_wrong": total["silently wrong"], "flipped_untyped": total["untyped"]}


def _flip(subject: Subject, folder: Path, count: int, draw: random.Random) -> Counter:
    subject.make(folder)
    whole = _digest(subject.read(folder))
    files = [path for path in sorted((folder / subject.part).rglob("*")) if path.is_file() and path.stat().st_size]
    found: Counter = Counter()
    notices = _Notices()
    logging.getLogger("ringrl").addHandler(notices)
    for _ in range(count):
        path = draw.choice(files)
        body, notices.said = path.read_bytes(), False
        bit = draw.randrange(8 * len(body))
        path.write_bytes(_flipped(body, bit))
        kind = _outcome(subject, folder, whole, notices)
        if kind in ("silently wrong", "untyped"):
            print(f"  {subject.name}: bit {bit} of {path.relative_to(folder)}: {kind}")
        found[kind] += 1
        path.write_bytes(body)
    logging.getLogger("ringrl").removeHandler(notices)
    return found


def _outcome(subject: Subject, folder: Path, whole: str, notices: "_Notices") -> str:
    try:
        same = _digest(subject.read(folder)) == whole
    except UserError:
        return "refused"
    except Exception as error:
        print(f"  {type(error).__name__}: {error}")
        return "untyped"
    if same:
        return "harmless"
    return "passed over" if notices.said else "silently wrong"


def _flipped(body: bytes, bit: int) -> bytes:
    at = bit // 8
    return body[:at] + bytes([body[at] ^ 1 << bit % 8]) + body[at + 1 :]


class _Notices(logging.Handler):
    """Whether anything was said in the log."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        self.said = True


def _digest(value: Any) -> str:
    """A hash of nested values, arrays among them, to the bit."""
    leaves = [np.asarray(x) if hasattr(x, "dtype") else x for x in jax.tree.leaves(value)]
    texts = [x.tobytes() if isinstance(x, np.ndarray) else repr(x).encode() for x in leaves]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def _make_checkpoints(folder: Path) -> None:
    mesh = make_mesh(MeshConfig())
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (2, 3):
            state = jax.tree.map(jax.device_put, STATE | {"step": np.int32(step)})
            checkpoints.save(step, state, describe(step, 0, mesh), 1.0 / step)


def _read_checkpoints(folder: Path) -> Any:
    with Checkpoints(folder, read_only=True) as checkpoints:
        state, about = checkpoints.restore(jax.tree.map(jax.numpy.asarray, STATE))
        return state, about["step"], about["loader"], about["rng"]


def _read_export(folder: Path) -> Any:
    model, config, about = load_export(folder / "export")
    return jax.tree.leaves(model), repr(config), repr(sorted(about.items(), key=str))


def _read_run(folder: Path) -> Any:
    run = RunDirectory(folder)
    scales, found = run.normalizer(), read_run(folder)
    tables = found.returns, found.demonstrations, found.ablations, found.evaluation, found.repetitions
    known = run.agent_file.read_bytes() if run.config() else b""
    return repr(run.config()), repr(run.dataset()), vars(scales), repr(tables), repr(list(run.metrics())), known


def _read_store(folder: Path) -> Any:
    store = open_store(folder / "store")
    episodes = [vars(store.episode(index, TASK)) for index in range(store.episodes)]
    about = store.domain, store.tasks, store.sources, store.provenance, store.dims
    return episodes, store.returns(TASK), store.source, store.lengths, repr(about)


SUBJECTS = (
    Subject("checkpoint", _make_checkpoints, _read_checkpoints, "checkpoints/3"),
    Subject("export", make_export, _read_export, "export"),
    Subject("store", make_store, _read_store, "store"),
    Subject("run", make_run, _read_run),
)
