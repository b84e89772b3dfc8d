"""Control steps a second: dm_control's plain loop on one core, ringrl's environments in one process and on all cores.

`benchmarks.rollout` calls `compare`; `python -m benchmarks._environments` prints the same by itself.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ringrl import envs
from ringrl.envs.env_pool import cores
from ringrl.envs.simulator import suite

TASKS = ("cheetah_run", "cartpole_swingup", "walker_walk")


class StepRates(NamedTuple):
    """Control steps a second of one task, medians over the rounds; ratios are of the same round."""

    dm_control: float
    one_process: float
    all_cores: float
    one_process_ratio: float
    all_cores_ratio: float


def compare(
    tasks: tuple[str, ...] = TASKS, *, environments: int = 128, steps: int = 25, rounds: int = 7
) -> dict[str, StepRates]:
    """For each task the rates of all three, in turn in each round, in environments without an action repeat.

    `dm_control` steps one environment `environments * steps` times, as its users do; the others step `environments`
    of them `steps` times each, in two groups where workers have them, as `ringrl evaluate` does.
    """
    return {task: _compare(task, environments, steps, rounds) for task in tasks}


def _compare(task: str, environments: int, steps: int, rounds: int) -> StepRates:
    plain = suite.load(*envs.split_task(task), task_kwargs={"random": 0})
    spec = plain.action_spec()
    actions = np.random.default_rng(0).uniform(spec.minimum, spec.maximum, (steps, *spec.shape))
    one = [envs.make_vector(task, environments)]
    spread = envs.make_groups(task, environments, workers=cores())
    subjects: list[Callable[[], float]] = [
        lambda: _plain_seconds(plain, actions, environments * steps),
        lambda: _vector_seconds(one, actions),
        lambda: _vector_seconds(spread, actions),
    ]
    for subject in subjects:  # everything is loaded
        subject()
    seconds = np.array([[subject() for subject in subjects] for _ in range(rounds)])
    for vector in (*one, *spread):
        vector.close()
    rates = [environments * steps / statistics.median(column) for column in seconds.T]
    ratios = [statistics.median(seconds[:, 0] / seconds[:, subject]) for subject in (1, 2)]
    return StepRates(*rates, *ratios)


def _plain_seconds(env: Any, actions: np.ndarray, steps: int) -> float:
    env.reset()
    began = time.perf_counter()
    for step in range(steps):
        if env.step(actions[step % len(actions)]).last():
            env.reset()
    return time.perf_counter() - began


def _vector_seconds(vectors: list[envs.VectorEnv], actions: np.ndarray) -> float:
    for vector in vectors:
        vector.reset()
    rows = [[np.tile(row, (vector.num_envs, 1)).astype(np.float32) for row in actions] for vector in vectors]
    began = time.perf_counter()
    for step in range(len(actions)):
        for vector, mine in zip(vectors, rows, strict=True):
            if step:
                vector.step_wait()
            vector.step_async(mine[step])
    for vector in vectors:
        vector.step_wait()
    return time.perf_counter() - began


def main() -> None:
    """Print a line for each task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print(f"control steps a second; {cores()} cores, {given.environments} environments")
    for task, rates in compare(environments=given.environments, rounds=given.rounds).items():
        print(
            f"{task:20} dm_control {rates.dm_control:8.0f}   one process {rates.one_process:8.0f} "
            f"({rates.one_process_ratio:.2f})   all cores {rates.all_cores:8.0f} ({rates.all_cores_ratio:.2f})"
        )


if __name__ == "__main__":
    main()
