"""Rows of returns as full arrays, those of several seeds stacked: an evaluation, its repetitions, its ablations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from ringrl.errors import UserError
from ringrl.reporting.statistics.evaluated_run import EvaluatedRun
from ringrl.returns import Swept, TrialReturn
from ringrl.run_tables import DEMONSTRATIONS, EXPLORE, TARGETS


class Replica(NamedTuple):
    """One seed of an agent: its run, and the seed that its rows bear."""

    run: EvaluatedRun
    seed: int


@dataclass(frozen=True)
class Sweep:
    """The same evaluation for several target returns."""

    targets: tuple[float, ...]  # ascending
    returns: Float64[np.ndarray, "targets seeds envs trials"]


@dataclass(frozen=True)
class DemonstrationReturns:
    """The same evaluation after several numbers of demonstrations."""

    numbers: tuple[int, ...]  # ascending; 0: the context began empty
    returns: Float64[np.ndarray, "numbers seeds envs trials"]


@dataclass(frozen=True)
class ExplorationReturns:
    """The same evaluation with several numbers of first trials that act at random."""

    numbers: tuple[int, ...]  # ascending
    returns: Float64[np.ndarray, "numbers seeds envs trials"]


@dataclass(frozen=True)
class AblationReturns:
    """An evaluation with its context ablated, beside the intact one of the same seeds and environments."""

    name: str
    intact: Float64[np.ndarray, "seeds envs trials"]
    ablated: Float64[np.ndarray, "seeds envs trials"]
    demonstrations: int = 0  # with which both contexts began


def grid(rows: Sequence[TrialReturn], file: Path) -> Float64[np.ndarray, "2 envs trials"]:
    """Returns and targets of one seed; every environment must have every trial, else paired differences mean nothing.

    Raises:
      UserError: an environment lacks a trial that others have; `file` is where the rows come from.
    """
    envs = sorted({row.env for row in rows})
    trials = sorted({row.trial for row in rows})
    both = np.full((2, len(envs), len(trials)), math.nan, dtype=np.float64)
    for row in rows:
        both[:, envs.index(row.env), trials.index(row.trial)] = row.return_, row.target_return
    missing = np.argwhere(np.isnan(both[0]))
    if len(missing):
        env, trial = envs[missing[0][0]], trials[missing[0][1]]
        raise UserError(
            f"{file}: {rows[0].agent} has no trial {trial} in env {env}, though other environments have: "
            f"run `ringrl evaluate {file.parent.parent}` again"
        )
    return both


def stack(
    grids: Sequence[Float64[np.ndarray, "2 _ _"]],
) -> tuple[Float64[np.ndarray, "2 seeds envs trials"], bool]:
    """Grids as one array of the first environments and trials, which all have; and whether any had more."""
    envs, trials = (min(each.shape[axis] for each in grids) for axis in (1, 2))
    cut = any(each.shape[1:] != (envs, trials) for each in grids)
    return np.stack([each[:, :envs, :trials] for each in grids], axis=1), cut


def pool_sweep(task: str, agent: str, replicas: Sequence[Replica]) -> Sweep | None:
    """The sweep of those replicas that have one, over the targets that all of these have; None without any."""
    tables = [(run, _of(run.targets, task, agent, seed)) for run, seed in replicas]
    pooled = _pool([(run, rows) for run, rows in tables if rows], TARGETS, "target_return")
    return pooled and Sweep(*pooled)


def pool_demonstrations(task: str, agent: str, replicas: Sequence[Replica]) -> DemonstrationReturns | None:
    """The returns of those replicas that have a table of them, over the numbers that all of these have; None without.

    The evaluation in returns.csv is one of them, where the table does not have its number.
    """
    tables = []
    for run, seed in replicas:
        rows = _of(run.demonstrations, task, agent, seed)
        if rows:
            numbers = {row.demonstrations for row in rows}
            alone = [row for row in _of(run.returns, task, agent, seed) if row.demonstrations not in numbers]
            tables.append((run, rows + alone))
    pooled = _pool(tables, DEMONSTRATIONS, "demonstrations")
    return pooled and DemonstrationReturns(*pooled)


def pool_exploration(task: str, agent: str, replicas: Sequence[Replica]) -> ExplorationReturns | None:
    """Likewise after several numbers of exploring trials; returns.csv, of other numbers of trials, is none of them."""
    tables = [(run, _of(run.explored, task, agent, seed)) for run, seed in replicas]
    pooled = _pool([(run, rows) for run, rows in tables if rows], EXPLORE, "explored")
    return pooled and ExplorationReturns(*pooled)


def _of(rows: Sequence[TrialReturn], task: str, agent: str, seed: int) -> list[TrialReturn]:
    return [row for row in rows if (row.task, row.agent, row.seed) == (task, agent, seed)]


def _pool(
    tables: Sequence[tuple[EvaluatedRun, list[TrialReturn]]], table: str, column: Swept
) -> tuple[tuple[Any, ...], Float64[np.ndarray, "values seeds envs trials"]] | None:
    """The values of a column that all seeds' rows have, ascending, and the returns for each; None without any."""
    if not tables:
        return None
    values = tuple(sorted(set.intersection(*({getattr(row, column) for row in rows} for _, rows in tables))))
    if not values:
        return None
    grids = [
        grid([row for row in rows if getattr(row, column) == value], run.directory.table(table))
        for value in values
        for run, rows in tables
    ]
    returns = stack(grids)[0][0]
    return values, returns.reshape(len(values), len(tables), *returns.shape[1:])


def pool_ablations(task: str, agent: str, replicas: Sequence[Replica]) -> tuple[AblationReturns, ...]:
    """The context ablations of an agent, by name and number of demonstrations, of the replicas that have the intact
    evaluation too."""
    found = []
    for name in sorted({name for replica in replicas for name in replica.run.ablations}):
        tables = [(run, seed, _of(run.ablations.get(name, ()), task, agent, seed)) for run, seed in replicas]
        for number in sorted({row.demonstrations for _, _, rows in tables for row in rows}):
            pairs = [
                (grid(intact, run.directory.table()), grid(ablated, run.directory.ablation_table(name)))
                for run, seed, rows in tables
                if (ablated := [row for row in rows if row.demonstrations == number])
                and (intact := _after(number, run, task, agent, seed))
            ]
            if pairs:
                intact, ablated = (stack(grids)[0][0] for grids in zip(*pairs, strict=True))
                envs, trials = (min(ablated.shape[axis], intact.shape[axis]) for axis in (1, 2))
                both = (intact[:, :envs, :trials], ablated[:, :envs, :trials])
                found.append(AblationReturns(name, *both, demonstrations=number))
    return tuple(found)


def _after(number: int, run: EvaluatedRun, task: str, agent: str, seed: int) -> list[TrialReturn]:
    """The rows of the intact evaluation after so many demonstrations; none where there was no such evaluation."""
    for table in (run.returns, run.demonstrations):
        rows = [row for row in _of(table, task, agent, seed) if row.demonstrations == number]
        if rows:
            return rows
    return []


def other_settings(run: EvaluatedRun) -> list[str]:
    """A note for each of the run's repeated evaluations that is not of the same settings as that in returns.csv."""
    names = {"checkpoint_step": "checkpoint", "seed": "evaluation seed", "context": "context"}
    notes = []
    for table, about in run.repetitions.items():
        differ = [key for key in names if key in about and key in run.evaluation and about[key] != run.evaluation[key]]
        if differ:
            theirs, ours = (
                ", ".join(f"{names[key]} {'not given' if said[key] is None else said[key]}" for key in differ)
                for said in (about, run.evaluation)
            )
            notes.append(f"{run.name}: {table}.csv is of {theirs}, returns.csv of {ours}: evaluate again.")
    return notes
