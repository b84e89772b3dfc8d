"""The steps that `benchmarks._faults_kills` kills: what they begin with, what they do, and what must come out."""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._faults_readers import TASK, make_run
from ringrl import recipes
from ringrl.card.card_page import write_card
from ringrl.cli.run_verbs import ExportVerb
from ringrl.episode import Episode
from ringrl.manifest import verified_bytes
from ringrl.reporting import write_report
from ringrl.rollout.evaluate import evaluate
from ringrl.run import RunDirectory
from ringrl.store.episode_store import build
from ringrl.training.start import train

_COLLECT, _RELABEL, _BUILD = (recipes.load("data", name) for name in ("collect", "relabel", "build_store"))
_TEMPORARY = re.compile(r"(^|/)\.partial-|\.lock$")
_REPEAT = 25  # so that an evaluation's trial has 40 steps


def _nothing(folder: Path) -> Any:
    return None


@dataclass(frozen=True)
class Step:
    """A step of ringrl, in a folder of its own.

    Attributes:
        name: the verb.
        share: of all kills, beside the others'.
        prepare: makes what it begins with.
        work: does it.
        again: does what a user would after a kill.
        result: all that comes out, but times.
        fact: files that belong together, as a reader finds them: as they were before, or as they are in the end.
        complete: what was complete at the kill, and must still be there in the end.
    """

    name: str
    share: float
    prepare: Callable[[Path], None]
    work: Callable[[Path], Any]
    again: Callable[[Path], Any]
    result: Callable[[Path], Any]
    fact: Callable[[Path], Any] = _nothing
    complete: Callable[[Path], set[Any]] = lambda folder: set()


def _config(folder: Path, steps: int) -> dict[str, Any]:
    return {
        "data": {"store": str(folder / "store"), "task": TASK, "action_repeat": _REPEAT},
        "agent": {"name": "behavior_cloning"},
        "model": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "max_steps": 64, "max_trials": 4},
        "training": {"steps": steps, "batch": 2, "row_steps": 12, "log_every": 1, "checkpoint_every": 2},
        "evaluation": {"trials": 1, "envs": 1},
    }


def _make_store(folder: Path) -> None:
    draw = np.random.default_rng(0)
    made = [
        Episode.from_arrays(
            draw.normal(size=(251, 5)), np.repeat(draw.uniform(-1, 1, (10, 1)), _REPEAT, 0), draw.uniform(size=250),
            terminated=False,
        )
        for _ in range(4)
    ]  # fmt: skip
    build(folder / "store", made, domain="cartpole", tasks=[TASK])


def _make_trained(folder: Path) -> None:
    _make_store(folder)
    train(_config(folder, 2), out=folder / "run")


def _make_evaluated(folder: Path) -> None:
    _make_trained(folder)
    evaluate(folder / "run", reference=False)


def _make_reported(folder: Path) -> None:
    make_run(folder / "one")
    make_run(folder / "two")
    config = (folder / "two/config.yaml").read_text().replace("label: null", "label: second")
    (folder / "two/config.yaml").write_text(config)
    lines = (folder / "two/SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "two/SHA256SUMS").write_text("".join(line for line in lines if "config.yaml" not in line))
    write_report([folder / "one"], folder / "report")


def _make_folder(folder: Path) -> None:
    _COLLECT.main(_COLLECT.Args(task=TASK, policy="random", episodes=6, out=folder / "raw", time_limit=40))


def _collect(folder: Path) -> None:
    _COLLECT.main(
        _COLLECT.Args(task=TASK, policy="random", episodes=6, out=folder / "new", time_limit=40, overwrite=True)
    )


def _relabel(folder: Path) -> None:
    _RELABEL.main(_RELABEL.Args(folder=folder / "raw", out=folder / "relabelled", jobs=1))


def _build(folder: Path) -> None:
    _BUILD.main(
        _BUILD.Args(folders=(folder / "raw",), out=folder / "built", jobs=1, relabel="recorded", overwrite=True)
    )


def _go_on(folder: Path) -> None:
    run = RunDirectory(folder / "run")
    if run.exists:
        train(resume=run.path, strict=True)
    else:
        train(_config(folder, 8), out=run.path)


def _losses(folder: Path) -> Any:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in RunDirectory(folder / "run").metrics()]


def _checkpoints(folder: Path) -> set[int]:
    names = [path.name for path in (folder / "run/checkpoints").glob("*") if path.name.isdecimal()]
    return set(range(1 + max(map(int, names), default=-1)))


def _table(folder: Path) -> Any:
    run = RunDirectory(folder / "run")
    return len(run.read_table()), run.table_settings()["trials"]


def _rows(folder: Path) -> Any:
    return _table(folder), verified_bytes(RunDirectory(folder / "run").table()).decode()


def _report(folder: Path) -> Any:
    return ["second" in verified_bytes(folder / "report" / name).decode() for name in ("index.html", "summary.json")]


def _card(folder: Path) -> Any:
    found = []
    for name in ("card.json", "index.html"):
        with suppress(FileNotFoundError):
            found.append((name, bool(verified_bytes(folder / "card" / name))))
    return found


def hashes(part: str, *, but: tuple[str, ...] = ()) -> Callable[[Path], Any]:
    """The hash of every file of a part of the folder, but of those that hold the time or paths."""

    def read(folder: Path) -> Any:
        files = sorted(path for path in (folder / part).rglob("*") if path.is_file())
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.name not in (*but, "SHA256SUMS")
        }

    return read


def names(part: str) -> Callable[[Path], Any]:
    """Which files a folder has that appears whole, as text. A killed process's lock and temporary file are none: no
    reader takes them for data, and what is still there at the end counts as left over."""
    return lambda folder: json.dumps(sorted(name for name in hashes(part)(folder) if not _TEMPORARY.search(name)))


def again(work: Callable[[Path], Any]) -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
    """What a step does, and the same after a kill."""
    return work, work


STEPS = (
    Step("train", 6, _make_store, _go_on, _go_on, _losses, complete=_checkpoints),
    Step(
        "evaluate",
        4,
        _make_evaluated,
        *again(lambda folder: evaluate(folder / "run", trials=2, reference=False)),
        _rows,
        _table,
    ),
    Step(
        "report",
        2,
        _make_reported,
        *again(lambda folder: write_report([folder / "one", folder / "two"], folder / "report")),
        _report,
        _report,
    ),
    Step(
        "export",
        2,
        _make_trained,
        *again(lambda folder: ExportVerb(folder / "run", overwrite=True).run()),
        hashes("run/export", but=("config.json",)),
        names("run/export"),
    ),
    Step("collect", 3, lambda folder: None, *again(_collect), hashes("new"), names("new")),
    Step("relabel", 3, _make_folder, *again(_relabel), hashes("relabelled"), names("relabelled")),
    Step("build_store", 3, _make_folder, *again(_build), hashes("built", but=("store.json",)), names("built")),
    Step(
        "card",
        1,
        _make_store,
        *again(lambda folder: write_card(folder / "store", folder / "card")),
        _card,
        _card,
    ),
)
