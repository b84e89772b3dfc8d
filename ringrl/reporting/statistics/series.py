"""Runs sorted into sections: a section a task, in it one series a label, each a full [seeds, envs, trials] array."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ringrl.agent_record import AgentRecord
from ringrl.errors import UserError
from ringrl.reporting.statistics.evaluated_run import DataSet, EvaluatedRun
from ringrl.reporting.statistics.pooling import (
    AblationReturns,
    DemonstrationReturns,
    ExplorationReturns,
    Replica,
    Sweep,
    grid,
    other_settings,
    pool_ablations,
    pool_demonstrations,
    pool_exploration,
    pool_sweep,
    stack,
)
from ringrl.returns import TrialReturn

RANDOM, EXPERT = "random", "expert"  # rows of these in returns.csv are reference levels, no series

SHOWN_FIRST = ("Agentic Transformer", "Decision Transformer", "Algorithm Distillation", "Behavior Cloning", "TD3")
"""Display names of agents, in the order in which a report shows them; others follow by name."""


@dataclass(frozen=True)
class Series:
    """What one agent earned on one task. Several runs of one label count as seeds of the same thing."""

    label: str
    agent: AgentRecord
    runs: tuple[EvaluatedRun, ...]  # a run for each seed; one evaluated with several seeds is here several times
    seeds: tuple[int, ...]
    returns: Float64[np.ndarray, "seeds envs trials"]
    target: Float64[np.ndarray, "seeds envs trials"]  # NaN without return conditioning
    sweep: Sweep | None = None
    ablations: tuple[AblationReturns, ...] = ()
    demonstrations: DemonstrationReturns | None = None
    explored: ExplorationReturns | None = None

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
    labels = _labels(runs)
    return tuple(_section(task, runs, labels) for task in sorted({row.task for run in runs for row in run.returns}))


def rank(label: str, agent: AgentRecord) -> tuple[int, str, list[str | int]]:
    """Sort key: known agents first, labels of one agent together, the numbers in labels in order of size."""
    name = agent.display_name
    pieces = [int(piece) if piece.isdigit() else piece for piece in re.split(r"([0-9]+)", label)]
    return (SHOWN_FIRST.index(name) if name in SHOWN_FIRST else len(SHOWN_FIRST), name, pieces)


def _labels(runs: Sequence[EvaluatedRun]) -> dict[str, str]:
    """The label of each agent, by its name in the tables; agents of one display name keep their own names beside it."""
    shown = {row.agent: run.shown_name(row.agent) for run in runs for row in run.returns}
    several = [label for label, count in Counter(shown.values()).items() if count > 1]
    return {name: f"{label} ({name})" if label in several else label for name, label in shown.items()}


def _section(task: str, runs: Sequence[EvaluatedRun], labels: dict[str, str]) -> TaskSection:
    notes: list[str] = []
    series: list[Series] = []
    mine = [run for run in runs if any(row.task == task for row in run.returns)]
    references = (RANDOM, EXPERT)
    names = {r.agent: run for run in mine for r in run.returns if r.task == task and r.agent not in references}
    for name in sorted(names, key=lambda name: rank(name, names[name].agent_in_table(name))):
        series.extend(_series_of_agent(task, name, labels[name], mine, notes))
    others = {run.dataset.task for run in mine if run.dataset is not None and task not in _task_names(run.dataset)}
    if others:
        notes.append(f"Trained on data of {', '.join(sorted(others))}; those returns say nothing about {task}.")
    notes.extend(note for run in mine for note in other_settings(run))
    notes.extend(_disagreements(mine))
    random, expert = (_reference(task, name, mine) for name in references)
    return TaskSection(task, tuple(series), random, expert, _datasets(task, mine), tuple(notes))


def _disagreements(runs: Sequence[EvaluatedRun]) -> list[str]:
    """What the runs' settings and their data disagree about, each once with the runs that it is of."""
    found: dict[str, list[str]] = {}
    for run in runs:
        about = [run.evaluation, *run.repetitions.values()]
        notes = [
            *(run.dataset.notes if run.dataset else ()),
            *(note for each in about for note in each.get("notes", ())),
        ]
        for note in dict.fromkeys(notes):
            found.setdefault(note, []).append(run.name)
    return [f"{', '.join(dict.fromkeys(names))}: {note}." for note, names in found.items()]


def _series_of_agent(task: str, agent: str, label: str, runs: Sequence[EvaluatedRun], notes: list[str]) -> list[Series]:
    """One series, but one for each number of trajectories in the context: those are different experiments."""
    replicas: list[Replica] = []
    for run in runs:
        seeds = {row.seed for row in run.returns if row.task == task and row.agent == agent}
        replicas.extend(Replica(run, seed) for seed in sorted(seeds))
    counts = {replica.run.trajectories for replica in replicas}
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
                 run.directory.table())
            for run, seed in replicas
        ]
    )  # fmt: skip
    _, _, envs, trials = both.shape
    if cut:
        notes.append(
            f"{label}: its seeds were evaluated with different numbers of environments or trials; "
            f"the first {envs} environments and {trials} trials, which all of them have, are used."
        )
    _note_beginnings(task, agent, label, replicas, notes)
    runs = tuple(replica.run for replica in replicas)
    if keys := differing_keys(runs):
        notes.append(f"{label}: the runs pooled as seeds also differ in {', '.join(keys)}.")
    return Series(
        label=label,
        agent=runs[0].agent_in_table(agent),
        runs=runs,
        seeds=tuple(_training_seed(replica) for replica in replicas),
        returns=both[0],
        target=both[1],
        sweep=pool_sweep(task, agent, replicas),
        ablations=pool_ablations(task, agent, replicas),
        demonstrations=pool_demonstrations(task, agent, replicas),
        explored=pool_exploration(task, agent, replicas),
    )


def _note_beginnings(task: str, agent: str, label: str, replicas: Sequence[Replica], notes: list[str]) -> None:
    rows = [
        row for run, seed in replicas for row in run.returns if (row.task, row.agent, row.seed) == (task, agent, seed)
    ]
    begun, explored = (sorted({getattr(row, name) for row in rows}) for name in ("demonstrations", "explored"))
    if begun != [0]:
        notes.append(f"{label}: its contexts began with {' or '.join(map(str, begun))} demonstrations.")
    if explored != [0]:
        notes.append(f"{label}: its first {' or '.join(map(str, explored))} trials acted at random, to explore.")


def _reference(task: str, name: str, runs: Sequence[EvaluatedRun]) -> Float64[np.ndarray, "envs trials"]:
    """Returns of a reference policy, of as many trials as all evaluations have that count; [0, 0] without any."""
    evaluations: list[tuple[EvaluatedRun, list[TrialReturn]]] = []
    for run in runs:
        rows = [row for row in run.returns if row.task == task and row.agent == name]
        evaluations += [(run, [row for row in rows if row.seed == seed]) for seed in sorted({row.seed for row in rows})]
    kept: list[np.ndarray] = []
    seen: set[tuple[int, int, float]] = set()
    # Runs evaluated in the same environments repeat its episodes, for any seed of their own: count those once. Single
    # episodes may coincide by chance, so an evaluation is left out only as a whole.
    for run, rows in sorted(evaluations, key=lambda evaluation: len(evaluation[1]), reverse=True):
        episodes = {(row.env, row.trial, row.return_) for row in rows}
        if not episodes <= seen:
            kept.append(grid(rows, run.directory.table())[0])
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
