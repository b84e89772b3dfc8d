"""The evidence of docs/results.md, a row at a time: data, three training seeds of every agent, evaluation, report.

    python -m benchmarks.results small      # row 1's Algorithm Distillation on hidden goals, one seed: 15 minutes
    python -m benchmarks.results hidden     # row 1: hidden goals and targets, held-out tasks: 2 hours
    python -m benchmarks.results context    # row 3: return against trajectories in the context: 1.5 hours
    python -m benchmarks.results exorl      # row 2: RND data, relabelled, as in Ring Attention's Table 5: 2 hours

Times are of 2 cores with `--jobs 2`, which trains two at once, each on its share of the cores. Every command that it
runs is printed and can be run by hand. What is finished is not done again, so a run that was stopped goes on; `--fresh`
starts over. The report is written to runs/results/ROW-report; its page, summary.json and the figures that
docs/results.md shows are copied to docs/results/ROW, but for `small`. The last line is one JSON object: for every task
and agent the mean return of the first and the last trial and, where there is an expert or a data set to measure by, the
same normalised.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Annotated, Literal

import tyro

from ringrl.config import load_config
from ringrl.run import RunDirectory

DATA, RUNS, OUT = Path("datasets/results"), Path("runs/results"), Path("docs/results")
FIGURES = {"hidden": ("report.png",), "context": ("trajectories.png",), "exorl": ()}  # that docs/results.md shows


@dataclass(frozen=True)
class Data:
    """A step that makes `out`."""

    out: Path
    command: str  # of `ringrl data`, without --out


@dataclass(frozen=True)
class Job:
    """A training and its evaluation."""

    name: str  # of the run directory, the seed following
    config: str
    data: tuple[Data, ...]  # what it needs, in the order of making
    overrides: Mapping[str, object] = field(default_factory=dict)
    ablations: tuple[str, ...] = ()  # of `ringrl evaluate --ablation`
    targets: tuple[float, ...] = ()  # of `ringrl evaluate --targets`
    reference: bool = True  # whether random and expert are rolled out beside it; once for each seed is enough


# Of each family of hidden tasks, the action repeat, the scale of the noise, and the training steps.
FAMILIES = {
    "goal": ("hidden_point_mass_goal", 10, 1.0, 6000),
    "target": ("hidden_reacher_target", 5, 0.3, 3000),
}
ABLATIONS = ("truncated", "shuffled", "foreign", "blind")


def _histories(family: str, trials: int) -> Data:
    task, repeat, scale, _ = FAMILIES[family]
    command = f"collect_histories --task {task} --action-repeat {repeat} --scale {scale} --trials {trials}"
    return Data(DATA / f"{family}{trials}.store", command)


def _hidden(family: str) -> tuple[Job, ...]:
    task, repeat, _, steps = FAMILIES[family]
    data = _histories(family, 8)
    where = {"data.store": data.out, "data.task": task, "data.action_repeat": repeat}
    return (
        Job(f"{family}_ad", "results_ad", (data,), where | {"training.steps": steps}, ABLATIONS),
        Job(f"{family}_bc", "results_hidden_bc", (data,), where),
    )


def _conditioned(family: str) -> tuple[Job, ...]:
    """The agents with return conditioning, with and without earlier trials."""
    data, targets = (_histories(family, 8),), (40, 70, 104, 125)
    return (
        Job(f"{family}_at", "results_hidden_at", data, ablations=ABLATIONS, targets=targets),
        Job(f"{family}_dt", "results_hidden_dt", data, targets=targets),
    )


def _context(trials: int) -> Job:
    values = {"agent.trajectories": trials, "model.max_trials": trials, "training.row_steps": 25 * trials}
    label = f"AD, {trials} trial{'s' if trials > 1 else ''} in context"
    data = (_histories("target", 16),)
    return Job(f"context_{trials}", "results_context", data, values | {"training.batch": 128 // trials, "label": label})


@dataclass(frozen=True)
class Domain:
    """RND data of a domain of ExoRL, and what is learned from them."""

    collected: str  # the task under which the collector ran, whose reward it does not see
    tasks: tuple[str, ...]
    action_repeat: int  # environment steps an agent step, for about ten agent steps a second
    trial_steps: int  # agent steps in a trial


DOMAINS = {
    "walker": Domain("walker_walk", ("walker_stand", "walker_run", "walker_walk"), 4, 250),
    "cheetah": Domain("cheetah_run", ("cheetah_run",), 10, 100),
    "jaco": Domain("jaco_reach_top_left", ("jaco_reach_top_left",), 2, 125),
    "cartpole": Domain("cartpole_swingup", ("cartpole_swingup",), 10, 100),
}
# A million steps (of jaco 250,000), which is what ExoRL's loader keeps of a collector, at its collectors' step size.
COLLECT = "--policy rnd --episodes 1000 --learner.actor-lr 1e-4 --learner.critic-lr 1e-4 --learner.rnd-lr 1e-4"
SWEPT = {"cheetah_run": (40, 80, 130, 200)}  # its data's median is 42, their best tenth earn 83, their best 131


def _exorl(name: str, domain: Domain) -> tuple[Job, ...]:
    """A training step reads about 2,000 agent steps, in the Agentic Transformer's rows of 8 trajectories."""
    files, store, trajectories = DATA / name / "rnd", DATA / f"{name}.store", 8
    collect = f"collect --task {domain.collected} --action-repeat {domain.action_repeat} {COLLECT}"
    data = (Data(files, collect), Data(store, f"build_store {files} --tasks {' '.join(domain.tasks)}"))
    steps, row = {"model.max_steps": domain.trial_steps}, trajectories * domain.trial_steps
    rows = {"training.row_steps": row, "training.batch": max(2000 // row, 1)}
    jobs = []
    for task in domain.tasks:
        where = {"data.store": store, "data.task": task, "data.action_repeat": domain.action_repeat}
        targets = SWEPT.get(task, ())
        jobs.append(Job(f"{task}_bc10", "results_bc10", data, where | steps))
        jobs.append(Job(f"{task}_dt", "results_dt", data, where | steps, targets=targets, reference=False))
        jobs.append(
            Job(f"{task}_at", "results_at", data, where | steps | rows, ("truncated",), targets, reference=False)
        )
        jobs.append(Job(f"{task}_td3", "results_td3", data, where, reference=False))
    return tuple(jobs)


ROWS = {
    "small": _hidden("goal")[:1],
    "hidden": (*_hidden("goal"), *_hidden("target"), *_conditioned("target")),
    "exorl": tuple(job for each in DOMAINS.items() for job in _exorl(*each)),
    "context": tuple(_context(trials) for trials in (1, 2, 4, 8, 16)),
}


@dataclass(frozen=True)
class Args:
    """Rerun a row of docs/results.md."""

    row: Annotated[Literal["small", "hidden", "exorl", "context"], tyro.conf.Positional]
    """Which one."""
    seeds: int | None = None
    """Training seeds of every agent; default 3, for small 1."""
    jobs: int = 1
    """Data sets, then trainings, made at once, each on its share of the cores."""
    only: str = ""
    """Only the runs whose names contain this, and no report."""
    fresh: bool = False
    """Do again what is finished, the data too."""


def main(args: Args) -> None:
    """Make the row's data, train, evaluate and report."""
    seeds = args.seeds or (1 if args.row == "small" else 3)
    jobs = [job for job in ROWS[args.row] if args.only in job.name]
    runs = [(job, seed) for seed in range(seeds) for job in jobs]
    if not runs or args.jobs < 1:
        sys.exit(f"no run of {args.row} is named like {args.only!r}" if not runs else "--jobs must be 1 or more")
    needed = dict.fromkeys(job.data for job in jobs)  # no two of them share a step
    _at_once(min(args.jobs, len(needed)), [partial(_make, data, args.fresh) for data in needed])
    _at_once(args.jobs, [partial(_train_and_evaluate, job, seed, args.fresh) for job, seed in runs])
    if not args.only:
        out = RUNS / f"{args.row}-report"
        _ringrl(f"report {' '.join(str(_folder(*each)) for each in runs)} --out {out}")
        if args.row != "small":
            _publish(out, OUT / args.row, FIGURES[args.row])
        print(json.dumps(_last_line(out)))


def _at_once(jobs: int, calls: Sequence[Callable[[set[int]], None]]) -> None:
    """Make all calls, `jobs` at a time, each with a share of the cores to itself."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    share = max(len(cores) // jobs, 1)
    shares: Queue[set[int]] = Queue()
    for index in range(jobs):
        shares.put(set(cores[index * share : (index + 1) * share] or cores))

    def run(call: Callable[[set[int]], None]) -> None:
        mine = shares.get()
        try:
            call(mine)
        finally:
            shares.put(mine)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in [pool.submit(run, call) for call in calls]:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what was not begun is not begun
            raise


def _make(needed: tuple[Data, ...], fresh: bool, cores: set[int]) -> None:
    """Make what is missing; the command stays beside the data, so that those of another one are not trained on."""
    for data in needed:
        made = Path(f"{data.out}.command")
        if data.out.exists() and not fresh:
            if not made.exists() or made.read_text() != data.command:
                sys.exit(f"{data.out} was made by another command; remove it, or start over with --fresh")
            continue
        _ringrl(f"data {data.command} --out {data.out}" + (" --overwrite" if data.out.exists() else ""), cores)
        made.write_text(data.command)
        fresh = True  # what follows is made of it


def _folder(job: Job, seed: int) -> Path:
    return RUNS / f"{job.name}-seed{seed}"


def _train_and_evaluate(job: Job, seed: int, fresh: bool, cores: set[int]) -> None:
    run = _folder(job, seed)
    directory = RunDirectory(run)
    if fresh:
        shutil.rmtree(run, ignore_errors=True)
    resumed = directory.exists
    if resumed:
        wanted = load_config(
            job.config, (f"seed={seed}", *(f"{name}={value}" for name, value in job.overrides.items()))
        )
        if load_config(directory.settings(), ("model.rope_base=null",)) != wanted:  # a run writes which it chose
            sys.exit(f"{run} was made with other settings; remove it, or start over with --fresh")
    if directory.timing_file.exists():
        return
    changes = " ".join(shlex.quote(f"{name}={value}") for name, value in job.overrides.items())
    began = time.perf_counter()
    if resumed:
        _ringrl(f"train --resume {run}", cores)
    else:
        _ringrl(f"train {job.config} seed={seed} {changes} --out {run}", cores)
    trained = time.perf_counter()
    _ringrl(f"evaluate {run}" + ("" if job.reference else " --no-reference"), cores)
    if job.ablations:
        _ringrl(f"evaluate {run} --ablation {' '.join(job.ablations)}", cores)
    if job.targets:
        _ringrl(f"evaluate {run} --targets {' '.join(map(str, job.targets))}", cores)
    seconds = {"train_s": round(trained - began, 1), "evaluate_s": round(time.perf_counter() - trained, 1)}
    directory.write_timing(seconds | {"cores": len(cores), "resumed": resumed})


def _publish(report: Path, out: Path, figures: tuple[str, ...]) -> None:
    """Copy a report's page and numbers to `out`, with those figures; the page itself has all of them."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("index.html", "summary.json", *figures):
        shutil.copyfile(report / name, out / name)


def _ringrl(command: str, cores: set[int] | None = None) -> None:
    print(f"$ ringrl {command}", flush=True)
    pin = None if cores is None or not hasattr(os, "sched_setaffinity") else lambda: os.sched_setaffinity(0, cores)
    done = subprocess.run([sys.executable, "-m", "ringrl.cli", *shlex.split(command)], preexec_fn=pin)
    if done.returncode:
        sys.exit(f"`ringrl {command}` failed with status {done.returncode}")


def _last_line(out: Path) -> dict[str, dict[str, dict[str, float | None]]]:
    tasks = json.loads((out / "summary.json").read_text())["tasks"]
    return {
        task: {
            label: {trial: agent[trial]["value"] for trial in ("first", "last")}
            | {
                f"{trial}_normalised": (agent["normalised"] or {}).get(trial, {}).get("value")
                for trial in ("first", "last")
            }
            for label, agent in of["agents"].items()
        }
        for task, of in tasks.items()
    }


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
