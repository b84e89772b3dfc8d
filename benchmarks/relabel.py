"""Relabelling, ringrl and the plain loop in turn: rewards of stored physics states, states a second.

    python -m benchmarks.relabel                                 # walker, cheetah, quadruped; one core and two
    python -m benchmarks.relabel --domains walker --rounds 15

The peer is what ExoRL and its users do, with the row's action set, as the live reward needs it: for each row, inside
dm_control's `reset_context`, set the state and the control, which ends with a forward pass; then ask each task for its
reward. ringrl is `Relabeler`, in `exact` mode. States are those of random rollouts, repeated.
Each core has a process of its own, bound to it, with one thread, that does both in turn, in an order that is new in
every round; all get an equal part of the states and start together. Reading and writing files is not timed. A figure
is the median over the rounds; with two cores a round takes as long as the slower process. The cores are of different
physical cores where Linux tells (a virtual machine may hide it); a number of cores of which this process may not use so
many is left out, with a line that says so.

The last line is one JSON object: how many times faster ringrl is on one core with all tasks of the domain (`walker`),
with one task alone (`walker_one`), and with all tasks on two cores (`walker_2_cores`); `bit_equal` says whether every
float32 of every task was the same.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks._workers import Worker, medians, orders, seconds_of, serve

SUBJECTS = {"peer": "plain loop", "ringrl": "ringrl"}
ONE_TASK = "run"
"""The task that is relabelled alone: every domain here has it."""
DISTINCT = 1000
"""States of the rollouts; the rest repeats them."""


@dataclass(frozen=True)
class Args:
    """Compare relabelling with the plain loop."""

    domains: tuple[str, ...] = ("walker", "cheetah", "quadruped")
    """Each with a task called run."""
    rows: int = 5000
    """States for each core and turn."""
    rounds: int = 5
    """Turns of each subject."""
    cores: tuple[int, ...] = (1, 2)
    """How many work at once."""
    worker: str | None = None
    """Used by the benchmark itself: the domain that this process relabels."""


def main(args: Args) -> None:
    """Print a table, then the ratios as JSON."""
    if args.worker:
        return work(args.worker, args.rows)
    ratios: dict[str, float | bool] = {}
    equal, usable = True, physical_cores()
    counts = [count for count in args.cores if 0 < count <= len(usable)]
    for count in sorted(set(args.cores) - set(counts)):
        print(f"{count} cores: left out, as this process may use {len(usable)}")
    if not counts:
        raise SystemExit(f"--cores: none from 1 to {len(usable)}")
    for domain in args.domains:
        for cores in counts:
            for which in ("all", "one") if cores == 1 else ("all",):
                seconds, same, tasks = measure(args, domain, usable[:cores], which)
                key = domain + ("_one" if which == "one" else "") + ("" if cores == 1 else f"_{cores}_cores")
                ratios[key] = print_line(domain, tasks, cores, args.rows, seconds)
                equal &= same
    print(json.dumps(ratios | {"bit_equal": equal}))


def print_line(domain: str, tasks: int, cores: int, rows: int, seconds: dict[str, float]) -> float:
    """The ratio, also printed beside the rates."""
    rates = "".join(f"{title} {cores * rows / seconds[name]:>9,.0f} states/s   " for name, title in SUBJECTS.items())
    ratio = round(seconds["peer"] / seconds["ringrl"], 2)
    print(f"{domain:<10}{tasks} task{'s' if tasks > 1 else ' '}  {cores} core{'s' if cores > 1 else ' '}  ", end="")
    print(f"{rates}{ratio:>6} times", flush=True)
    return ratio


def physical_cores() -> list[int]:
    """One CPU of each physical core that this process may use, or all that it may use where that is not known."""
    found: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        found.setdefault(siblings.read_text().strip() if siblings.is_file() else str(cpu), cpu)
    return list(found.values())


def measure(args: Args, domain: str, cores: list[int], which: str) -> tuple[dict[str, float], bool, int]:
    """Median seconds of each subject; whether the rewards were equal; the number of tasks."""
    arguments = ["--worker", domain, "--rows", str(args.rows)]
    seconds: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    with ExitStack() as stack:
        workers = []
        for core in cores:
            environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CORE": str(core)}
            worker = Worker(f"{domain} on core {core}", "benchmarks.relabel", arguments, environment)
            workers.append(stack.enter_context(worker))
        for worker in workers:
            worker.send(which)
        ready = [json.loads(worker.receive()) for worker in workers]
        for order in orders(list(SUBJECTS), args.rounds):
            for name in order:
                for worker in workers:
                    worker.send(name)
                seconds[name].append(max(float(worker.receive()) for worker in workers))
    return medians(seconds), all(each["equal"] for each in ready), ready[0]["tasks"]


def work(domain: str, rows: int) -> None:
    """Be one process: compare the two ways, then time one of them for every line that comes in."""
    os.sched_setaffinity(0, [int(os.environ["CORE"])])
    from ringrl.relabelling.rewards import relabelable_tasks

    episode = rollout(f"{domain}_{ONE_TASK}", rows)
    possible = relabelable_tasks(domain, episode.physics.shape[1])
    tasks = possible if sys.stdin.readline().strip() == "all" else (f"{domain}_{ONE_TASK}",)
    calls = {"peer": plain_loop(tasks), "ringrl": fast(tasks)}
    equal = np.array_equal(calls["peer"](episode), calls["ringrl"](episode))
    ready = json.dumps({"equal": equal, "tasks": len(tasks)})
    serve(ready, lambda name: seconds_of(lambda: calls[name](episode)))


def rollout(task: str, rows: int) -> Any:
    """An episode of `rows` transitions: those of a random rollout, again and again."""
    from ringrl import envs
    from ringrl.episode import Episode

    env = envs.make_env(task, seed=0)
    rng = np.random.default_rng(0)
    _, info = env.reset()
    states, actions = [info["physics"]], [np.zeros(env.action_space.shape or (), np.float32)]
    while len(states) <= DISTINCT:
        action = rng.uniform(-1, 1, actions[0].shape).astype(np.float32)
        *_, truncated, info = env.step(action)
        states.append(info["physics"])
        actions.append(action)
        if truncated:
            env.reset()
    index = 1 + np.arange(rows) % DISTINCT
    nothing, physics = np.zeros((rows + 1, 1), np.float32), np.stack(states)[[0, *index]]
    return Episode(nothing, np.stack(actions)[index], nothing[1:], nothing[1:, 0] + 1, physics)


def fast(tasks: tuple[str, ...]) -> Callable:
    """ringrl: episode -> float32 [rows, tasks]."""
    from ringrl.relabelling.rewards import Relabeler

    return Relabeler(tasks)


def plain_loop(tasks: tuple[str, ...]) -> Callable:
    """The peer: episode -> float32 [rows, tasks]. One physics serves all, though floors differ."""
    from ringrl import envs

    environments = [envs.make_env(task) for task in tasks]
    for environment in environments:
        environment.reset()
    physics = environments[0].physics

    def relabel(episode: Any) -> np.ndarray:
        rewards = np.zeros((episode.length, len(tasks)), np.float32)
        controls = environments[0].control(episode.action)
        for row in range(len(rewards)):
            with physics.reset_context():
                physics.set_state(episode.physics[row + 1])
                physics.set_control(controls[row])
            for column, environment in enumerate(environments):
                rewards[row, column] = environment.task.get_reward(physics)
        return rewards

    return relabel


if __name__ == "__main__":
    main(tyro.cli(Args))
