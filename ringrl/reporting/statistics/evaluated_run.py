"""A run directory read into memory: returns, config, training metrics, data-set card. Tolerant of what is optional."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float64, Int64

from ringrl.episode import COLUMNS, TrialReturn
from ringrl.errors import UserError

MANY_HISTORIES = 24
"""Sources of a data set beyond which they are shown together, as those of hidden tasks are."""


@dataclass(frozen=True)
class SourceSummary:
    """One collector's share of a data set."""

    name: str
    collector: str
    episodes: int


@dataclass(frozen=True)
class DataSet:
    """What `dataset.json` says of the data that a run was trained on."""

    task: str
    domain: str
    store: str
    relabel: str  # how rewards were computed from physics states: `exact`, `exorl`; empty if not known
    sources: tuple[SourceSummary, ...]
    returns: Float64[np.ndarray, " episodes"]  # total reward of each episode, in file order
    source: Int64[np.ndarray, " episodes"]  # index into `sources`
    steps: int  # environment steps altogether


@dataclass(frozen=True)
class TrainingCurves:
    """The logged training steps that have a finite loss, in order of steps; NaN where a line does not say."""

    step: Int64[np.ndarray, " points"]
    loss: Float64[np.ndarray, " points"]
    tokens: Float64[np.ndarray, " points"]  # tokens trained on up to the step
    tokens_per_s: Float64[np.ndarray, " points"]
    mfu: Float64[np.ndarray, " points"]  # model FLOPs utilisation, 0 to 1


@dataclass(frozen=True)
class EvaluatedRun:
    """One run directory."""

    path: Path
    config: dict[str, Any]
    returns: tuple[TrialReturn, ...]
    metrics: TrainingCurves
    dataset: DataSet | None
    evaluation: dict[str, Any]
    targets: tuple[TrialReturn, ...]  # the evaluation repeated for several target returns; may be empty
    probes: dict[str, tuple[TrialReturn, ...]]  # by name: the evaluation with its context tampered with
    repetitions: dict[str, dict[str, Any]]  # by table, as `probe-blind`: what its JSON says, as `evaluation`

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    @property
    def agent_file(self) -> str | None:
        """The agent's file without folder and ending, as the config has it; None if that does not say."""
        name = self._agent.get("name")
        return PurePath(name).stem if isinstance(name, str) else None

    @property
    def trajectories(self) -> int | None:
        """Trajectories that stand in one context in training, as the config has them; None for agents without."""
        count = self._agent.get("trajectories")
        return count if isinstance(count, int) else None

    @property
    def _agent(self) -> dict[str, Any]:
        section = self.config.get("agent")
        return section if isinstance(section, dict) else {}


def read_run(path: Path) -> EvaluatedRun:
    """The run at `path`.

    Raises:
      UserError: no such directory, no evaluation yet, or a file that cannot be understood (named, with the line).
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a run directory: give the directory that `ringrl train` printed")
    table = path / "evaluation" / "returns.csv"
    if not table.is_file():
        raise UserError(
            f"{path} has not been evaluated (no evaluation/returns.csv): run `ringrl evaluate {path}` first"
        )
    probes = sorted((path / "evaluation").glob("probe-*.csv"))
    repetitions = [*probes, *(path / "evaluation").glob("targets.csv")]
    targets = path / "evaluation" / "targets.csv"
    return EvaluatedRun(
        path=path,
        config=_read_config(path / "config.yaml"),
        returns=read_returns(table),
        metrics=read_metrics(path / "metrics.jsonl"),
        dataset=read_dataset(path / "dataset.json"),
        evaluation=_read_json_object(path / "evaluation" / "evaluation.json"),
        targets=read_returns(targets, several_targets=True) if targets.is_file() else (),
        probes={file.stem.removeprefix("probe-"): read_returns(file) for file in probes},
        repetitions={file.stem: _read_json_object(file.with_suffix(".json")) for file in repetitions},
    )


def read_returns(path: Path, several_targets: bool = False) -> tuple[TrialReturn, ...]:
    """The rows of a `returns.csv`, in file order; of a `targets.csv` with `several_targets`.

    Raises:
      UserError: a wrong header, a cell that is no number, or a (seed, env, trial) that occurs twice (with
        `several_targets`, twice for one target); names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file (byte {error.start}): evaluate the run again") from None
    lines = csv.reader(text.splitlines())
    header = next(lines, [])
    if tuple(header) != COLUMNS:
        raise UserError(f"{path} line 1: the columns are {','.join(header)!r} but must be {','.join(COLUMNS)!r}")
    rows: list[TrialReturn] = []
    seen: dict[tuple[str, str, int, int, int, float], int] = {}
    for cells in lines:
        if not cells:
            continue
        row = _parse_row(cells, f"{path} line {lines.line_num}")
        if several_targets and not math.isfinite(row.target_return):
            raise UserError(f"{path} line {lines.line_num}: a sweep over targets needs a target_return in every row")
        key = (row.agent, row.task, row.seed, row.env, row.trial, row.target_return if several_targets else 0.0)
        if key in seen:
            raise UserError(
                f"{path} line {lines.line_num}: {row.agent}, seed {row.seed}, env {row.env}, trial {row.trial} "
                f"stands already on line {seen[key]}: evaluate the run again"
            )
        seen[key] = lines.line_num
        rows.append(row)
    if not rows:
        raise UserError(f"{path} has no rows: run `ringrl evaluate {path.parent.parent}` again")
    return tuple(rows)


def _parse_row(cells: list[str], where: str) -> TrialReturn:
    if len(cells) != len(COLUMNS):
        raise UserError(f"{where}: {len(cells)} cells where {len(COLUMNS)} are needed ({','.join(COLUMNS)})")
    cell: dict[str, str] = dict(zip(COLUMNS, cells, strict=True))

    def number(column: str, kind: type[int] | type[float], default: str = "") -> Any:
        try:
            return kind(cell[column] or default)
        except ValueError:
            raise UserError(f"{where}: {column} is {cell[column]!r}, which is not {_KIND[kind]}") from None

    row = TrialReturn(
        agent=cell["agent"],
        task=cell["task"],
        seed=number("seed", int),
        env=number("env", int),
        trial=number("trial", int),
        return_=number("return", float),
        length=number("length", int),
        target_return=number("target_return", float, "nan"),
    )
    if not row.agent or not row.task:
        raise UserError(f"{where}: the agent and the task must have names")
    if not math.isfinite(row.return_):
        raise UserError(f"{where}: return is {cell['return']!r}, which is not finite")
    return row


_KIND = {int: "a whole number", float: "a number"}


def read_metrics(path: Path) -> TrainingCurves:
    """The training curve; empty if there is no such file. A step logged twice (after a resume) keeps its last line.

    Raises:
      UserError: a line other than the last is not a JSON object. The last may be half-written by a live training.
    """
    by_step: dict[int, list[float]] = {}
    for entry in _json_lines(path):
        step, loss = _number(entry.get("step")), _number(entry.get("loss"))
        if math.isfinite(step) and math.isfinite(loss):
            by_step[int(step)] = [loss, *(_number(entry.get(key)) for key in ("tokens", "tokens_per_s", "mfu"))]
    steps = sorted(by_step)
    columns = np.asarray([by_step[step] for step in steps], dtype=np.float64).reshape(len(steps), 4)
    return TrainingCurves(np.asarray(steps, dtype=np.int64), *(np.ascontiguousarray(column) for column in columns.T))


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for index, line in enumerate(lines):
        try:
            entry = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            if index == len(lines) - 1:
                return
            raise UserError(f"{path} line {index + 1}: not JSON ({error.msg}): mend or delete the line") from None
        if not isinstance(entry, dict):
            raise UserError(f"{path} line {index + 1}: not a JSON object: mend or delete the line")
        yield entry


def read_dataset(path: Path) -> DataSet | None:
    """The data-set card, or None if the run has none.

    Raises:
      UserError: a field is missing, or the lists disagree in length.
    """
    card = _read_json_object(path)
    if not card:
        return None
    try:
        returns = np.asarray(card["returns"], dtype=np.float64)
        source = np.asarray(card["source"], dtype=np.int64)
        sources = tuple(SourceSummary(str(s["name"]), str(s["collector"]), int(s["episodes"])) for s in card["sources"])
        names = {key: str(card[key] or "") for key in ("task", "domain", "store", "relabel")}
        steps = int(card["steps"])
    except KeyError as error:
        raise UserError(f"{path}: the field {error} is missing: train the run again, or delete the file") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}: train the run again, or delete the file") from None
    if returns.ndim != 1 or returns.shape != source.shape or not np.isfinite(returns).all():
        raise UserError(f"{path}: `returns` and `source` must be lists of equally many finite numbers")
    if not returns.size:
        return None
    if not 0 <= source.min() <= source.max() < len(sources):
        raise UserError(f"{path}: `source` must index the {len(sources)} entries of `sources`")
    return DataSet(**names, sources=sources, returns=returns, source=source, steps=steps)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    return config if isinstance(config, dict) else {}


def _read_json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
