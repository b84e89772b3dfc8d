"""Runs sorted into sections: a section a task, in it one series a label, each a full [seeds, envs, trials] array."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from jaxtyping import Float64

from ringrl.errors import UserError
from ringrl.reporting.statistics.evaluated_run import DataSet, EvaluatedRun
from ringrl.reporting.statistics.pooling import (
    AblationReturns,
    Replica,
    Sweep,
    grid,
    other_settings,
    pool_ablations,
    pool_sweep,
    stack,
)
from ringrl.returns import TrialReturn

RANDOM, EXPERT = "random", "expert"  # rows of these in returns.csv are reference levels, no series

# In the order in which a report shows them; others follow by name.
_NAMES = {
    "agentic_transformer": "Agentic Transformer",
    "decision_transformer": "Decision Transformer",
    "algorithm_distillation": "Algorithm Distillation",
    "behavior_cloning": "Behavior Cloning",
    "td3": "TD3",
}


@dataclass(frozen=True)
class Series:
    """What one agent earned on one task. Several runs of one label count as seeds of the same thing."""

    label: str
    agent: str  # its file without folder and ending, or, where no config names that, what the tables call it
    runs: tuple[EvaluatedRun, ...]  # a run for each seed; one evaluated with several seeds stands here several times
    seeds: tuple[int, ...]
    returns: Float64[np.ndarray, "seeds envs trials"]
    target: Float64[np.ndarray, "seeds envs trials"]  # NaN where the agent was told nothing
    sweep: Sweep | None = None
    probes: tuple[AblationReturns, ...] = ()

    @property
    def trajectories(self) -> int | None:
        """Trajectories in one context in training; None without runs, or where they do not say or differ."""
        counts = {run.trajectories for run in self.runs}
        return counts.pop() if len(counts) == 1 else None

    @property
    def distinct_runs(self) -> tuple[EvaluatedRun, ...]:
        """Each run once."""
        return tuple({run.path: run for run in self.runs}.values())


@dataclass(frozen=True)
class TaskSection:
    """Everything that the report shows for one task."""

    task: str
    series: tuple[Series, ...]
    random: Float64[np.ndarray, "envs trials"]  # returns of the uniform random policy; may be empty
    expert: Float64[np.ndarray, "_ _"]  # of an oracle that sees what is hidden; may be empty
    datasets: tuple[DataSet, ...]  # the different ones among the runs', for this task
    notes: tuple[str, ...]  # what a reader must know about how the runs were put together


def arrange(runs: Sequence[EvaluatedRun]) -> tuple[TaskSection, ...]:
    """The sections in alphabetical order of tasks.

    Raises:
      UserError: an environment lacks a trial that others have, or a run holds only the random policy's returns.
    """
    for run in runs:
        if all(row.agent in (RANDOM, EXPERT) for row in run.returns):
            raise UserError(f"{run.path} holds no agent's returns, only reference policies': evaluate it again")
    return tuple(_section(task, runs) for task in sorted({row.task for run in runs for row in run.returns}))


def display_name(name: str) -> str:
    """What a report calls an agent's file, or the label of a run, which is shown as it is."""
    stem = PurePath(name).stem if name.endswith(".py") else name
    return _NAMES.get(stem, stem)


def rank(name: str, file: str) -> tuple[int, str, list[str | int]]:
    """Known agents first, labels of one file together, the numbers in labels in order of size."""
    known = list(_NAMES)
    pieces = [int(piece) if piece.isdigit() else piece for piece in re.split(r"([0-9]+)", name)]
    return (known.index(file) if file in known else len(known), file, pieces)


def _section(task: str, runs: Sequence[EvaluatedRun]) -> TaskSection:
    notes: list[str] = []
    series: list[Series] = []
    held = [run for run in runs if any(row.task == task for row in run.returns)]
    references = (RANDOM, EXPERT)
    names = {r.agent: run for run in held for r in run.returns if r.task == task and r.agent not in references}
    for name in sorted(names, key=lambda name: rank(name, _file(names[name], name))):
        series.extend(_series_of_agent(task, name, held, notes))
    others = {run.dataset.task for run in held if run.dataset is not None and task not in _task_names(run.dataset)}
    if others:
        notes.append(f"Trained on data of {', '.join(sorted(others))}; those returns say nothing about {task}.")
    notes.extend(note for run in held for note in other_settings(run))
    random, expert = (_reference(task, name, held) for name in references)
    return TaskSection(task, tuple(series), random, expert, _datasets(task, held), tuple(notes))


def _file(run: EvaluatedRun, name: str) -> str:
    return run.agent_file or (PurePath(name).stem if name.endswith(".py") else name)


def _series_of_agent(task: str, agent: str, runs: Sequence[EvaluatedRun], notes: list[str]) -> list[Series]:
    """One series, but one for each number of trajectories in the context: those are different experiments."""
    replicas: list[Replica] = []
    for run in runs:
        seeds = {row.seed for row in run.returns if row.task == task and row.agent == agent}
        replicas.extend(Replica(run, seed) for seed in sorted(seeds))
    counts = {replica.run.trajectories for replica in replicas}
    label = display_name(agent)
    if len(counts) == 1:
        return _repetitions(task, agent, label, replicas, notes)
    found: list[Series] = []
    for count in sorted(counts, key=lambda count: count or 0):
        words = label if count is None else f"{label}, {count} trajector{'y' if count == 1 else 'ies'}"
        found += _repetitions(task, agent, words, [r for r in replicas if r.run.trajectories == count], notes)
    return found


def _repetitions(task: str, agent: str, label: str, replicas: Sequence[Replica], notes: list[str]) -> list[Series]:
    """One series, or one a run where two runs have the same seed: those cannot be repetitions of one experiment."""
    seeds = [_training_seed(replica) for replica in replicas]
    if len(set(seeds)) == len(seeds):
        return [_series(task, agent, label, replicas, notes)]
    notes.append(f"{label}: several runs have the same seed, so each run is shown as a series of its own.")
    owners = list(dict.fromkeys(replica.run.path for replica in replicas))
    names = _short_labels([str(path) for path in owners])
    return [
        _series(task, agent, f"{label} · {name}", [r for r in replicas if r.run.path == owner], notes)
        for owner, name in zip(owners, names, strict=True)
    ]


def _training_seed(replica: Replica) -> int:
    """What tells repetitions apart: the config's seed; the table's where that holds several, or without a config."""
    run, seed = replica
    configured = run.config.get("seed")
    return configured if isinstance(configured, int) and len({row.seed for row in run.returns}) == 1 else seed


def _short_labels(paths: list[str]) -> list[str]:
    names = [path.rstrip("/").split("/")[-1] for path in paths]
    return names if len(set(names)) == len(names) else paths


def _series(task: str, agent: str, label: str, replicas: Sequence[Replica], notes: list[str]) -> Series:
    both, cut = stack(
        [
            grid([r for r in run.returns if (r.task, r.agent, r.seed) == (task, agent, seed)],
                 run.path / "evaluation" / "returns.csv")
            for run, seed in replicas
        ]
    )  # fmt: skip
    _, _, envs, trials = both.shape
    if cut:
        notes.append(
            f"{label}: its seeds were evaluated with different numbers of environments or trials; "
            f"the first {envs} environments and {trials} trials, which all of them have, are used."
        )
    runs = tuple(replica.run for replica in replicas)
    if keys := differing_keys(runs):
        notes.append(f"{label}: the runs pooled as seeds also differ in {', '.join(keys)}.")
    return Series(
        label=label,
        agent=_file(runs[0], agent),
        runs=runs,
        seeds=tuple(_training_seed(replica) for replica in replicas),
        returns=both[0],
        target=both[1],
        sweep=pool_sweep(task, agent, replicas),
        probes=pool_ablations(task, agent, replicas, both[0]),
    )


def _reference(task: str, name: str, runs: Sequence[EvaluatedRun]) -> Float64[np.ndarray, "envs trials"]:
    """Returns of a reference policy, of as many trials as all evaluations have that count; [0, 0] without any."""
    evaluations: list[tuple[EvaluatedRun, list[TrialReturn]]] = []
    for run in runs:
        rows = [row for row in run.returns if row.task == task and row.agent == name]
        evaluations += [(run, [row for row in rows if row.seed == seed]) for seed in sorted({row.seed for row in rows})]
    kept: list[np.ndarray] = []
    seen: set[tuple[int, int, float]] = set()
    # Runs evaluated in the same environments repeat its episodes, whatever their own seed: count those once. Single
    # episodes may coincide by chance, so an evaluation is left out only as a whole.
    for run, rows in sorted(evaluations, key=lambda evaluation: len(evaluation[1]), reverse=True):
        episodes = {(row.env, row.trial, row.return_) for row in rows}
        if not episodes <= seen:
            kept.append(grid(rows, run.path / "evaluation" / "returns.csv")[0])
        seen |= episodes
    trials = min((each.shape[1] for each in kept), default=0)
    return np.concatenate([each[:, :trials] for each in kept]) if kept else np.zeros((0, 0))


def _datasets(task: str, runs: Iterable[EvaluatedRun]) -> tuple[DataSet, ...]:
    distinct: dict[tuple[str, str, bytes], DataSet] = {}
    for run in runs:
        data = run.dataset
        if data is not None and task in _task_names(data):
            distinct.setdefault((data.store, data.relabel, data.returns.tobytes()), data)
    return tuple(distinct.values())


def _task_names(data: DataSet) -> tuple[str, str]:
    return data.task, f"{data.domain}_{data.task}"


def differing_keys(runs: Sequence[EvaluatedRun], expected: Sequence[str] = ()) -> list[str]:
    """The settings, `section.key`, in which the runs' configs differ, but for names, seeds and the `expected` ones."""
    flat = [_flatten(run.config) for run in runs]
    keys = sorted({key for config in flat for key in config} - {"seed", "run", "out", "name", "label", *expected})
    return [key for key in keys if len({repr(config.get(key)) for config in flat}) > 1]


def _flatten(config: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
