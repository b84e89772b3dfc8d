"""The evidence of docs/results.md, a row at a time: data, three training seeds of every agent, evaluation, report.

    python -m benchmarks.results small      # return against trajectories in the context, one seed: some 12 minutes
    python -m benchmarks.results relabelled # the same, three seeds, and what it is compared with: 1 hour
    python -m benchmarks.results hidden_goal   # row 1: hidden goals, held-out tasks: 45 minutes
    python -m benchmarks.results hidden_target # row 1: hidden targets, and agents with return conditioning: 1.5 hours
    python -m benchmarks.results context    # row 3: return against trajectories in the context: 1.5 hours
    python -m benchmarks.results ablations  # row 0's student with its context ablated, and other trainings: 1 hour
    python -m benchmarks.results own_trials # row 0's student on trials of its own: 20 minutes
    python -m benchmarks.results library    # many hidden goals in one context, and a cue: 30 minutes a seed
    python -m benchmarks.results exorl      # row 2: RND data, relabelled, as in Ring Attention's Table 5: 2 hours
    python -m benchmarks.results motion_cheetah # from RND data, canonical tasks held out: 40 minutes of a core a seed
    python -m benchmarks.results motion_walker  # the same of the walker: 1.5 hours of a core a seed
    python -m benchmarks.results hopper     # Gymnasium's Hopper from a learner's replay: 40 minutes

Times are of 2 cores with `--jobs 2`, which trains two at once, each on its share of the cores. Every command that it
runs is printed and can be run by hand. What is finished is not done again, so a run that was stopped goes on; `--fresh`
starts over. The report is written to runs/results/ROW-report and compared with what docs/results/ROW has published;
`--publish` replaces that: the page, summary.json, the figures of docs/results.md, and runs.zip, the runs' configs and
tables. `--verify` recomputes all published numbers from these. `--restore` goes on from published runs, so that a row
can be finished on another machine; they have no checkpoints, which a student needs of its teacher.

The last line is one JSON object: for every task and agent the mean return of the first and the last trial; where there
is an expert or a data set to measure by, the same normalised; and where contexts began with trajectories of a store,
the first trial's after each number of them.
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Annotated, Any, Literal

import tyro

from benchmarks._library_curves import write_curves
from benchmarks._results_context_use import ROWS as CONTEXT_USE
from benchmarks._results_jobs import ROWS as EARLIER
from benchmarks._results_jobs import RUNS, Data, Job
from benchmarks._results_library import ROWS as LIBRARY
from benchmarks._results_motion import ROWS as MOTION
from benchmarks._results_published import NUMBERS, RUNS_FILE, Difference, compare, describe, publish, restore, verify
from benchmarks._results_relabelled import NAME as FAMILY
from benchmarks._results_relabelled import ROWS as RELABELLED
from benchmarks._results_replay import ROWS as REPLAY
from ringrl.config import load_config
from ringrl.errors import UserError
from ringrl.run import RunDirectory

ROWS = RELABELLED | CONTEXT_USE | LIBRARY | MOTION | REPLAY | EARLIER
OUT = Path("docs/results")
FIGURES = {
    "relabelled": (f"demonstrations-hidden_{FAMILY}.png",),
    "ablations": ("demonstrated_ablations.png", "demonstrations.png"),
    "own_trials": ("explored.png",),
    "library": (),
    "hidden_goal": ("report.png",),
    "hidden_target": ("report.png",),
    "context": ("trajectories.png",),
    "exorl": (),
    "hopper": (),
    "motion_cheetah": (),
    "motion_walker": (),
}  # that docs/results.md shows
FIRST_SEED = {"motion_cheetah": 1, "motion_walker": 1}  # their settings were chosen on seed 0


Row = Literal[
    "small", "relabelled", "ablations", "own_trials", "library",
    "motion_cheetah", "motion_walker", "hidden_goal", "hidden_target", "exorl", "context", "hopper",
]  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Rerun a row of docs/results.md."""

    row: Annotated[Row, tyro.conf.Positional]
    """Which one."""
    seeds: int | None = None
    """Training seeds of every agent; default 3, for small 1."""
    jobs: int = 1
    """Data sets, then trainings, made at once, each on its share of the cores."""
    only: str = ""
    """Only the runs whose names contain this, and no report."""
    fresh: bool = False
    """Do again what is finished, the data too."""
    publish: bool = False
    """Replace what docs/results/ROW has published by this report and its runs."""
    restore: bool = False
    """Take published runs for finished ones, where runs/results has none of their names."""
    verify: bool = False
    """Run nothing: recompute every published number from the published runs."""


def main(args: Args) -> None:
    """Make the row's data, train, evaluate and report."""
    published = OUT / args.row
    if args.verify:
        sys.exit(_say_differences(*verify(published)))
    if args.publish and (args.only or args.row not in FIGURES):
        sys.exit(f"--publish: is of a whole row, and not of small; leave out {'--only' if args.only else '--publish'}")
    jobs = [job for job in ROWS[args.row] if args.only in job.name]
    if not jobs or args.jobs < 1:
        sys.exit(f"no run of {args.row} is named like {args.only!r}" if not jobs else "--jobs must be 1 or more")
    if args.restore:
        restore(published / RUNS_FILE, RUNS)
    runs = _train(args, jobs)
    if args.only:
        return
    out, paths = RUNS / f"{args.row}-report", [job.run(seed) for job, seed in runs]
    _ringrl(f"report {' '.join(map(str, paths))} --out {out}")
    if args.publish and args.row == "library":
        write_curves(paths, published / "curves.json")
    if args.publish:
        publish(out, paths, published, FIGURES[args.row])
    elif (published / NUMBERS).is_file():
        _say_differences(*compare(published, json.loads((out / NUMBERS).read_text())))
    print(json.dumps(_last_line(out)))


def _train(args: Args, jobs: list[Job]) -> list[tuple[Job, int]]:
    """Make what data there must be, train and evaluate all seeds of the jobs; returns these, in order."""
    seeds, first = args.seeds or (1 if args.row == "small" else 3), FIRST_SEED.get(args.row, 0)
    runs = [(job, first + n) for n in range(seeds) for job in jobs if job.seeds is None or n < job.seeds]
    left = [(job, seed) for job, seed in runs if args.fresh or not RunDirectory(job.run(seed)).timing_file.exists()]
    needed = dict.fromkeys(chain for job, _ in left for chain in job.data)  # no two of them share a step
    if needed:
        _at_once(min(args.jobs, len(needed)), [partial(_make, chain, args.fresh) for chain in needed])
    for wave in _waves(jobs):
        ready = [(job, seed) for job, seed in runs if job in wave]
        _at_once(args.jobs, [partial(_train_and_evaluate, job, seed, args.fresh) for job, seed in ready])
    return runs


def _say_differences(numbers: int, changed: list[Difference]) -> int:
    """Print what differs from what is published; returns the status to end with."""
    print(describe(numbers, changed))
    return 1 if changed else 0


def _waves(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in groups, each after those whose runs it needs; needed jobs that are not among `jobs` are there."""
    names, waves, done = {job.name for job in jobs}, [], set[str]()
    while left := [job for job in jobs if job.name not in done]:
        waves.append([job for job in left if not (set(job.after) & names) - done])
        done |= {job.name for job in waves[-1]}
    return waves


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


def _train_and_evaluate(job: Job, seed: int, fresh: bool, cores: set[int]) -> None:
    run, changes = job.run(seed), job.changes(seed)
    directory = RunDirectory(run)
    if fresh:
        shutil.rmtree(run, ignore_errors=True)
    if job.copies is not None and not directory.exists:
        _copy_run(RUNS / f"{job.copies}-seed{seed}", run)
    resumed = directory.exists
    if resumed:
        _check_settings(job, seed)
    if directory.timing_file.exists():
        return
    began = time.perf_counter()
    written = " ".join(shlex.quote(f"{name}={value}") for name, value in changes.items())
    _ringrl(f"train --resume {run}" if resumed else f"train {job.config} seed={seed} {written} --out {run}", cores)
    trained = time.perf_counter()
    for options in job.evaluations:
        _ringrl(f"evaluate {run} {options}".rstrip(), cores)
    seconds = {"train_s": round(trained - began, 1), "evaluate_s": round(time.perf_counter() - trained, 1)}
    directory.write_timing(seconds | {"cores": len(cores), "resumed": resumed})


def _copy_run(trained: Path, run: Path) -> None:
    """A run without its evaluations. End where there is none, or it is not finished."""
    if not RunDirectory(trained).timing_file.exists():
        sys.exit(f"{trained} is not there, or not finished: it is of another row; run that first")
    leave_out = shutil.ignore_patterns("evaluation", "report", RunDirectory(trained).timing_file.name)
    shutil.copytree(trained, run, ignore=leave_out)


def _check_settings(job: Job, seed: int) -> None:
    """End where a run was made with other settings than the job's."""
    run, changes = job.run(seed), job.changes(seed)
    chosen = ("model.rope_base=null", "mesh.layout=auto", "mesh.stripe=null")  # a run writes which it chose
    found = load_config(RunDirectory(run).settings(), chosen)
    changed = (f"{name}={value}" for name, value in changes.items())
    if found != load_config(job.config, (f"seed={seed}", *changed, *chosen)):
        sys.exit(f"{run} was made with other settings; remove it, or start over with --fresh")


def _ringrl(command: str, cores: set[int] | None = None) -> None:
    print(f"$ ringrl {command}", flush=True)
    pin = None if cores is None or not hasattr(os, "sched_setaffinity") else lambda: os.sched_setaffinity(0, cores)
    done = subprocess.run([sys.executable, "-m", "ringrl.cli", *shlex.split(command)], preexec_fn=pin)
    if done.returncode:
        sys.exit(f"`ringrl {command}` failed with status {done.returncode}")


def _last_line(out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    tasks = json.loads((out / "summary.json").read_text())["tasks"]
    return {
        task: {label: _in_short(agent, of["demonstrations"].get(label)) for label, agent in of["agents"].items()}
        for task, of in tasks.items()
    }


def _in_short(agent: Mapping[str, Any], shown: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of an agent in a summary.json: its trials' returns, and its first trial's after each number of trajectories."""
    ends, scaled = ("first", "last"), agent["normalised"] or {}
    found = {trial: agent[trial]["value"] for trial in ends}
    found |= {f"{trial}_normalised": scaled.get(trial, {}).get("value") for trial in ends}
    if shown is None:
        return found
    points = [point["value"] for point in shown["first"]["points"]]
    return found | {"after_trajectories": dict(zip(map(str, shown["numbers"]), points, strict=True))}


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
