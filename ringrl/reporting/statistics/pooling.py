"""Rows of returns as full arrays, those of several seeds stacked: an evaluation, its targets, its ablations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from ringrl.errors import UserError
from ringrl.reporting.statistics.evaluated_run import EvaluatedRun
from ringrl.returns import TrialReturn
from ringrl.run import TARGETS, RunDirectory


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
class AblationReturns:
    """An evaluation with its context ablated, beside the intact one of the same seeds and environments."""

    name: str
    intact: Float64[np.ndarray, "seeds envs trials"]
    ablated: Float64[np.ndarray, "seeds envs trials"]


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
    tables = [
        (run, [row for row in run.targets if (row.task, row.agent, row.seed) == (task, agent, seed)])
        for run, seed in replicas
    ]
    tables = [(run, rows) for run, rows in tables if rows]
    if not tables:
        return None
    shared = set.intersection(*({row.target_return for row in rows} for _, rows in tables))
    targets = tuple(sorted(shared))
    if not targets:
        return None
    grids = [
        grid([row for row in rows if row.target_return == target], RunDirectory(run.path).table(TARGETS))
        for target in targets
        for run, rows in tables
    ]
    returns = stack(grids)[0][0]
    return Sweep(targets, returns.reshape(len(targets), len(tables), *returns.shape[1:]))


def pool_ablations(
    task: str, agent: str, replicas: Sequence[Replica], returns: Float64[np.ndarray, "seeds envs trials"]
) -> tuple[AblationReturns, ...]:
    """The context ablations of an agent, by name; `returns` is the intact evaluation of the replicas."""
    ablations = []
    for name in sorted({name for replica in replicas for name in replica.run.ablations}):
        grids, intact = [], []
        for (run, seed), whole in zip(replicas, returns, strict=True):
            rows = [r for r in run.ablations.get(name, ()) if (r.task, r.agent, r.seed) == (task, agent, seed)]
            if rows:
                grids.append(grid(rows, RunDirectory(run.path).ablation_table(name)))
                intact.append(whole)
        if grids:
            ablated = stack(grids)[0][0]
            envs, trials = (min(ablated.shape[axis], returns.shape[axis]) for axis in (1, 2))
            ablations.append(AblationReturns(name, np.stack(intact)[:, :envs, :trials], ablated[:, :envs, :trials]))
    return tuple(ablations)


def other_settings(run: EvaluatedRun) -> list[str]:
    """A note for each of the run's tables of ablations and targets that is not of the evaluation in returns.csv."""
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
