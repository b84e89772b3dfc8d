"""What docs/results ships of a row: its page, numbers and figures, and the runs' tables, from which all is recomputed.

`runs.zip` has of every run what a report reads: its configuration, data-set summary, logged steps and tables of
returns, each folder with the hashes in its SHA256SUMS. Checkpoints are not in it.
"""

import hashlib
import json
import math
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ringrl.errors import UserError
from ringrl.files import write_bytes
from ringrl.manifest import MANIFEST
from ringrl.reporting import summarise_runs
from ringrl.run import RunDirectory

RUNS_FILE, PAGE, NUMBERS = "runs.zip", "index.html", "summary.json"
_OF_THE_MACHINE = ("created", "ringrl", "run", "runs", "tokens_per_s", "mfu")
_SAME_DATE = (1980, 1, 1, 0, 0, 0)  # of all files, so that the same runs give the same bytes


class Difference(NamedTuple):
    """A number that is not the published one."""

    where: str
    published: Any
    found: Any
    outside: bool  # of the published interval; of numbers without one: True


def publish(report: Path, runs: Sequence[Path], out: Path, figures: Sequence[str]) -> None:
    """Copy a report's page, numbers and those figures to `out`, and what is reported on; the page has all figures.

    Raises:
        UserError: the report has not all of `figures`.
    """
    if missing := [name for name in figures if not (report / name).is_file()]:
        raise UserError(f"{report}: has no {', '.join(missing)}, which docs/results.md shows; nothing is published")
    out.mkdir(parents=True, exist_ok=True)
    for name in (PAGE, NUMBERS, *figures):
        shutil.copyfile(report / name, out / name)
    pack(runs, out / RUNS_FILE)


def pack(runs: Sequence[Path], file: Path) -> None:
    """Write what a report reads of the runs; the same runs give the same bytes."""
    with TemporaryDirectory() as folder:
        packed = Path(folder) / RUNS_FILE
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for run in runs:
                for path in _reported(RunDirectory(run)):
                    about = zipfile.ZipInfo(f"{run.name}/{path.relative_to(run).as_posix()}", _SAME_DATE)
                    archive.writestr(about, _published(RunDirectory(run), path), zipfile.ZIP_DEFLATED, 9)
        write_bytes(file, packed.read_bytes())


def _published(run: RunDirectory, path: Path) -> bytes:
    """A file's bytes; of the run's record without the folder in which the benchmark ran, and with its hash."""
    content = path.read_bytes()
    if path not in (run.record_file, run.path / MANIFEST) or not run.record_file.is_file():
        return content
    before = run.record_file.read_bytes()
    after = before.replace(f"{Path.cwd()}/".encode(), b"")
    if path == run.record_file:
        return after
    old, new = (hashlib.sha256(record).hexdigest().encode() for record in (before, after))
    return content.replace(old, new)


def _reported(run: RunDirectory) -> list[Path]:
    own = (run.config_file, run.record_file, run.agent_file, run.normalizer_file, run.dataset_file)
    files = [*own, run.path / MANIFEST, run.metrics_file, run.timing_file]
    tables = [path for path in run.evaluation.rglob("*") if path.suffix in (".csv", ".json") or path.name == MANIFEST]
    return [path for path in (*files, *sorted(tables)) if path.is_file()]


def restore(file: Path, folder: Path) -> list[Path]:
    """Unpack into `folder` the runs that are not there; returns all that the file has, in its order.

    A run without checkpoints can be reported on, and not evaluated or trained further.

    Raises:
        UserError: there is no such file.
    """
    if not file.is_file():
        raise UserError(f"{file}: is not there; the row was published by an earlier ringrl, without its runs")
    with zipfile.ZipFile(file) as archive:
        names = list(dict.fromkeys(name.partition("/")[0] for name in archive.namelist()))
        missing = {name for name in names if not (folder / name).exists()}
        archive.extractall(folder, [name for name in archive.namelist() if name.partition("/")[0] in missing])
    return [folder / name for name in names]


def verify(published: Path) -> tuple[int, list[Difference]]:
    """Recompute a row's published numbers from its runs' tables; returns how many there are, and which differ.

    Raises:
        UserError: nothing is published, or a run's file is not what was written.
    """
    with TemporaryDirectory() as folder:
        return compare(published, summarise_runs(restore(published / RUNS_FILE, Path(folder))))


def compare(published: Path, summary: dict[str, Any]) -> tuple[int, list[Difference]]:
    """How many numbers a row has published, and which are others in the summary of a report.

    Raises:
        UserError: nothing is published.
    """
    if not (published / NUMBERS).is_file():
        raise UserError(f"{published / NUMBERS}: is not there, so there is nothing to compare with; give --publish")
    before = json.loads((published / NUMBERS).read_text())
    numbers, found = dict(_numbers(before)), dict(_numbers(summary))
    intervals = {where: numbers for where, numbers in _estimates(before)}
    changed = []
    for where in dict.fromkeys([*numbers, *found]):
        old, new = numbers.get(where), found.get(where)
        if old == new:
            continue
        low, high = intervals.get(where.removesuffix(".value"), (math.nan, math.nan))
        inside = isinstance(new, int | float) and low <= new <= high
        changed.append(Difference(where, old, new, not inside))
    return len(numbers), changed


def _numbers(node: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Every number by its path; those of the machine and the day are left out."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in _OF_THE_MACHINE:
                yield from _numbers(value, f"{where}.{key}".removeprefix("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _numbers(value, f"{where}.{index}")
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield where, node


def _estimates(node: Any, where: str = "") -> Iterator[tuple[str, tuple[float, float]]]:
    """The interval of every estimate, by its path."""
    if isinstance(node, dict) and {"value", "low", "high"} <= set(node):
        if node["low"] is not None and node["high"] is not None:
            yield where, (node["low"], node["high"])
    elif isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _estimates(value, f"{where}.{key}".removeprefix("."))


def describe(numbers: int, changed: Sequence[Difference], most: int = 20) -> str:
    """What `compare` found, in lines: how many differ, then those outside the published intervals."""
    if not changed:
        return f"{numbers:,} published numbers, all the same"
    outside = [each for each in changed if each.outside and each.where.endswith(".value")]
    lines = [
        f"{len(changed):,} of {numbers:,} published numbers differ; estimates outside their interval: {len(outside)}"
    ]
    lines += [f"  {each.where}: published {each.published}, now {each.found}" for each in outside[:most]]
    return "\n".join(lines)
