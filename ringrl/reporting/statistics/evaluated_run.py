"""A run directory read into memory: returns, config, training metrics, data-set card. Tolerant of what is optional."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ringrl.agent_record import AgentRecord, agent_of_schema_0
from ringrl.errors import UserError
from ringrl.readers import read_json
from ringrl.returns import TrialReturn
from ringrl.run import RunDirectory
from ringrl.run_records import DatasetRecord
from ringrl.run_tables import DEMONSTRATIONS, EXPLORE, RETURNS, TARGETS

_MORE = ("tokens", "tokens_per_s", "mfu", "validation_loss")  # of a line of metrics.jsonl
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
    notes: tuple[str, ...] = ()  # what the settings of the training and the data disagree about


@dataclass(frozen=True)
class TrainingCurves:
    """The logged training steps that have a finite loss, in order of steps; NaN where a line does not say."""

    step: Int64[np.ndarray, " points"]
    loss: Float64[np.ndarray, " points"]
    tokens: Float64[np.ndarray, " points"]  # tokens trained on up to the step
    tokens_per_s: Float64[np.ndarray, " points"]
    mfu: Float64[np.ndarray, " points"]  # model FLOPs utilisation, 0 to 1
    validation: Float64[np.ndarray, " points"]  # loss of held-out episodes


@dataclass(frozen=True)
class EvaluatedRun:
    """One run directory, as it was evaluated in one task, or before it is evaluated."""

    path: Path
    config: dict[str, Any]
    returns: tuple[TrialReturn, ...]  # empty where it is not evaluated yet
    metrics: TrainingCurves
    dataset: DataSet | None
    evaluation: dict[str, Any]
    targets: tuple[TrialReturn, ...]  # the evaluation repeated for several target returns; may be empty
    ablations: dict[str, tuple[TrialReturn, ...]]  # by name: the evaluation with its context ablated
    repetitions: dict[str, dict[str, Any]]  # by table, such as `ablation-blind`: its settings, as `evaluation`
    label: str = ""  # what the tables call the run's agent
    agent: AgentRecord | None = None  # None where the run does not say
    demonstrations: tuple[TrialReturn, ...] = ()  # the evaluation repeated after several numbers of demonstrations
    explored: tuple[TrialReturn, ...] = ()  # the evaluation repeated with several numbers of exploring trials
    task: str | None = None  # that is not the run's own

    @property
    def directory(self) -> RunDirectory:
        """Where its tables are."""
        return RunDirectory.of(self.path, self.task)

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    @property
    def trajectories(self) -> int | None:
        """Trajectories in one context in training, as the config has them; None for agents without."""
        section = self.config.get("agent")
        count = section.get("trajectories") if isinstance(section, dict) else None
        return count if isinstance(count, int) else None

    def agent_in_table(self, name: str) -> AgentRecord:
        """The agent that the tables call `name`; where the run does not say, what the name alone says."""
        return self.agent if self.agent is not None and name == self.label else agent_of_schema_0(name)

    def shown_name(self, name: str) -> str:
        """What a report calls the agent that the tables call `name`: the label that the user chose, or its own name."""
        return name if name == self.config.get("label") else self.agent_in_table(name).display_name


def read_runs(path: Path) -> list[EvaluatedRun]:
    """The run at `path` in its own task, where it was evaluated in that, and in each other task that has tables.

    A run that was not evaluated at all has no returns.

    Raises:
      UserError: as `read_run`.
    """
    run = RunDirectory.of(path)
    others = sorted({table.parent.name for table in run.evaluation.glob("*/*.csv")})
    own = [] if others and not any(run.evaluation.glob("*.csv")) else [read_run(path)]
    return own + [read_run(path, task) for task in others]


def read_run(path: Path, task: str | None = None) -> EvaluatedRun:
    """The run at `path` in its own task, or in another `task`.

    Raises:
      UserError: no such run, not evaluated in that `task`, or a file that cannot be understood (named, with the line).
    """
    run = RunDirectory.of(path, task)
    if not path.is_dir():
        raise UserError(f"{path} is not a run directory: give the directory that `ringrl train` printed")
    if not run.table().is_file() and (task is not None or not run.exists):
        where, options = ("evaluation", "") if task is None else (f"evaluation/{task}", f" --task {task}")
        raise UserError(
            f"{path} has not been evaluated (no {where}/{RETURNS}.csv): run `ringrl evaluate {path}{options}` first"
        )
    for _ in range(3):  # else an evaluation that ends meanwhile would give a table with the settings of another
        version, found = run.version, _read(run)
        if run.version == version:
            break
    return found


def _read(run: RunDirectory) -> EvaluatedRun:
    ablations = run.ablation_tables()
    swept = [table for table in (TARGETS, DEMONSTRATIONS, EXPLORE) if run.table(table).is_file()]
    return EvaluatedRun(
        path=run.tables or run.path,
        config=run.settings(),
        returns=run.read_table() if run.table().is_file() else (),
        metrics=read_metrics(run),
        dataset=read_dataset(run.dataset_file),
        evaluation=run.table_settings(),
        targets=run.read_table(TARGETS) if TARGETS in swept else (),
        ablations={name: run.read_table(table) for name, table in ablations.items()},
        repetitions={table: run.table_settings(table) for table in [*ablations.values(), *swept]},
        label=run.label(),
        agent=run.agent(),
        demonstrations=run.read_table(DEMONSTRATIONS) if DEMONSTRATIONS in swept else (),
        explored=run.read_table(EXPLORE) if EXPLORE in swept else (),
        task=run.task,
    )


def read_metrics(run: RunDirectory) -> TrainingCurves:
    """The training curve; empty if there is none. A step logged twice (after a resume) keeps its last line.

    Raises:
      UserError: a line is not a JSON object (`RunDirectory.metrics`).
    """
    by_step: dict[int, list[float]] = {}
    for entry in run.metrics():
        step, loss = _number(entry.get("step")), _number(entry.get("loss"))
        if math.isfinite(step) and math.isfinite(loss):
            by_step[int(step)] = [
                loss,
                *(_number(entry.get(key)) for key in ("tokens", "tokens_per_s", "mfu", "validation_loss")),
            ]
    steps = sorted(by_step)
    columns = np.asarray([by_step[step] for step in steps], dtype=np.float64).reshape(len(steps), 5)
    return TrainingCurves(np.asarray(steps, dtype=np.int64), *(np.ascontiguousarray(column) for column in columns.T))


def read_dataset(path: Path) -> DataSet | None:
    """The data-set card, or None if the run has none.

    Raises:
      UserError: a field is missing, or the lists disagree in length.
    """
    if not path.is_file():
        return None
    card = read_json(path, DatasetRecord, "train the run again, or delete the file")
    returns, source = np.asarray(card["returns"], np.float64), np.asarray(card["source"], np.int64)
    sources = tuple(SourceSummary(each["name"], str(each["collector"]), each["episodes"]) for each in card["sources"])
    if returns.shape != source.shape:
        raise UserError(f"{path}: `returns` and `source` must be lists of equally many numbers")
    if not returns.size:
        return None
    if not 0 <= source.min() <= source.max() < len(sources):
        raise UserError(f"{path}: `source` must index the {len(sources)} entries of `sources`")
    return DataSet(
        task=card["task"],
        domain=card["domain"],
        store=card["store"],
        relabel=card["relabel"] or "",
        sources=sources,
        returns=returns,
        source=source,
        steps=card["steps"],
        notes=tuple(card.get("notes", ())),
    )


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.inf
