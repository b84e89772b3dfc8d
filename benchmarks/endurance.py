"""Whether memory stays flat: many training steps, then many trials of one session, in one process.

    python -m benchmarks.endurance                         # 10,000 steps and 1,000 trials: minutes
    python -m benchmarks.endurance --steps 2000 --trials 200

The data are made here, and a model of one layer learns them, with checkpoints and metrics as any run has them. Then the
agent acts in one environment, far beyond the context that its session was given, so that whole trials are forgotten.
There is no peer. At every interval the table has the memory of the process (resident), what JAX has of it (the bytes
of its live arrays) and the objects that Python's collector knows. The last line is one JSON object: of steps and of
trials, their number, and how much more there was at the end than after the first fifth. The status is 1 where that is
above `--most` megabytes, or what JAX keeps grew by more than one.
"""

import gc
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tyro

from ringrl import Episode, build_store, load_agent, make_env, train
from ringrl.run import RunDirectory

_TASK, _REPEAT, _STEPS = "cartpole_balance", 4, 40  # environment steps of an episode
_INTERVALS = 20


@dataclass(frozen=True)
class Args:
    """Train and roll out for long, and look at the memory."""

    steps: int = 10_000
    """Gradient steps."""
    trials: int = 1_000
    """Of one session, in one environment."""
    most: float = 32.0
    """Megabytes that the process may grow by, from the first fifth on."""


class Memory(NamedTuple):
    """What there is at one moment."""

    done: int  # steps or trials
    resident: float  # megabytes
    arrays: float  # megabytes
    objects: int


def look(done: int) -> Memory:
    """The process's memory after so many steps or trials."""
    gc.collect()
    arrays = sum(each.nbytes for each in jax.live_arrays())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Memory(done, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, arrays / 1e6, len(gc.get_objects()))


def main(args: Args) -> None:
    """Print a table for each part, then the figures as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        figures = {"steps": _report("steps", _train(Path(folder), args.steps))}
        figures["trials"] = _report("trials", _roll_out(Path(folder) / "run", args.trials))
    print(json.dumps(figures))
    if any(each["growth_mb"] > args.most or each["arrays_mb"] > 1.0 for each in figures.values()):
        sys.exit(1)


def _report(what: str, seen: list[Memory]) -> dict[str, float]:
    print(f"\n{what:>8}  resident MB  JAX MB   objects")
    for each in seen:
        print(f"{each.done:>8,}  {each.resident:>11.1f}  {each.arrays:>6.2f}  {each.objects:>8,}")
    first, last = next(each for each in seen if each.done >= seen[-1].done / 5), seen[-1]
    growth = {"growth_mb": last.resident - first.resident, "arrays_mb": last.arrays - first.arrays}
    return {"number": last.done} | {name: round(value, 2) for name, value in growth.items()}


def _train(folder: Path, steps: int) -> list[Memory]:
    """A run in `folder`/run; what a thread sees meanwhile, by the steps that the run has logged."""
    draw, ended, seen = np.random.default_rng(0), threading.Event(), []
    made = [
        Episode.from_arrays(
            draw.normal(size=(_STEPS + 1, 5)), np.repeat(draw.uniform(-1, 1, (_STEPS // _REPEAT, 1)), _REPEAT, 0),
            draw.uniform(size=_STEPS), terminated=False,
        )
        for _ in range(8)
    ]  # fmt: skip
    build_store(folder / "store", made, domain="cartpole", tasks=[_TASK])
    every = max(steps // _INTERVALS, 1)
    config = {
        "data": {"store": str(folder / "store"), "task": _TASK, "action_repeat": _REPEAT},
        "agent": {"name": "agentic_transformer", "trajectories": 2, "fused": True},
        "model": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "max_steps": 10, "remat": "none"},
        "training": {"steps": steps, "batch": 2, "row_steps": 20, "log_every": every, "checkpoint_every": 4 * every},
    }
    watcher = threading.Thread(target=_watch, args=(folder / "run", ended, seen.append))
    watcher.start()
    try:
        train(config, out=folder / "run")
    finally:
        ended.set()
        watcher.join()
    return [*seen, look(steps)]


def _watch(run: Path, ended: threading.Event, note: Callable[[Memory], None]) -> None:
    last = 0
    while not ended.wait(0.2):
        step = max((int(line["step"]) for line in RunDirectory(run).metrics()), default=0)
        if step > last:
            note(look(step))
            last = step


def _roll_out(run: Path, trials: int) -> list[Memory]:
    """One session with room for four trials, whose context is full from then on."""
    env = make_env(_TASK, action_repeat=_REPEAT, time_limit=_STEPS)
    session, seen = load_agent(run).start(trials=4, trial_steps=env.agent_steps), []
    for trial in range(1, trials + 1):
        observation, _ = env.reset()
        session.new_trial()
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(session.act(observation))
            ended = terminated or truncated
            session.observe(reward, ended)
        if trial % max(trials // _INTERVALS, 1) == 0:
            seen.append(look(trial))
    env.close()
    return seen


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
