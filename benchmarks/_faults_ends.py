"""Real commands that are sent SIGINT or SIGTERM at moments drawn over their whole life, the imports included."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks._faults_readers import TASK
from ringrl import recipes
from ringrl.config import load_config
from ringrl.episode import Episode
from ringrl.store.episode_store import build

_REPEAT = 25
_LINE = re.compile(r"ringrl: (interrupted by SIG\w+|\S+: (stopped after step|\d+ of \d+ episodes are kept) .*)\n")
_ASKED = re.compile(r"ringrl: SIG\w+: finishing .*\n")
_LEFT = ("*.lock", ".*.lock", ".partial-*", "*.partial-*")


def run_ends(tries: int, seed: int) -> dict[str, int]:
    """Interrupt `train`, `collect` and `build_store` by turns; print a table, and return the figures.

    `ends`: the tries in which the signal came before the command's own end; `crashed`: that ended by a signal, such as
    SIGSEGV, but for those that came while Python itself was starting; `wordless`: with another status or other lines
    than promised; `left`: with temporary files or locks.
    """
    draw, found = random.Random(seed), Counter(ends=0, crashed=0, wordless=0, left=0)
    with tempfile.TemporaryDirectory(prefix="ringrl-ends-") as place:
        folder = Path(place)
        commands = _prepare(folder)
        lives = {name: _life(command, folder) for name, command in commands.items()}
        for index in range(tries):
            name = list(commands)[index % len(commands)]
            number = draw.choice([signal.SIGINT, signal.SIGTERM])
            moment = draw.uniform(0.0, lives[name])
            found.update(_interrupt(name, commands[name], folder, number, moment))
        print(f"{'ends of':<14} seconds undisturbed")
        for name, life in lives.items():
            print(f"{name:<14} {life:.1f}")
    print(f"{dict(found)}")
    return dict(found)


def _prepare(folder: Path) -> dict[str, list[str]]:
    draw = np.random.default_rng(0)
    steps = 10 * _REPEAT
    episodes = [
        Episode.from_arrays(
            draw.normal(size=(steps + 1, 5)),
            draw.uniform(-1, 1, (steps, 1)),
            draw.uniform(size=steps),
            terminated=False,
        )
        for _ in range(4)
    ]
    build(folder / "store", episodes, domain="cartpole", tasks=[TASK])
    collect = recipes.load("data", "collect")
    collect.main(collect.Args(task=TASK, policy="random", episodes=20, out=folder / "raw"))
    settings = {
        "data": {"store": str(folder / "store"), "task": TASK, "action_repeat": _REPEAT},
        "agent": {"name": "behavior_cloning"},
        "model": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "max_steps": 64, "max_trials": 4},
        "training": {"steps": 300, "batch": 2, "row_steps": 12, "log_every": 1, "checkpoint_every": 50},
    }
    (folder / "c.yaml").write_text(json.dumps(load_config(settings).model_dump(mode="json")))  # JSON is YAML
    return {
        "train": ["train", str(folder / "c.yaml"), "--out", str(folder / "out")],
        "collect": [*"data collect --policy random --episodes 30 --task".split(), TASK, "--out", str(folder / "out")],
        "build_store": ["data", "build_store", str(folder / "raw"), "--out", str(folder / "out"), "--jobs", "1"],
    }


def _start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    for path in folder.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a background job ignores, its children do too
    return subprocess.Popen(
        [sys.executable, "-m", "ringrl.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def _life(command: list[str], folder: Path) -> float:
    began = time.monotonic()
    with _start(command, folder) as process:
        _, complaints = process.communicate()
    if process.returncode:
        raise SystemExit(f"an undisturbed command failed: {complaints[-2000:]}")
    return time.monotonic() - began


def _interrupt(name: str, command: list[str], folder: Path, number: int, moment: float) -> Counter:
    with _start(command, folder) as process:
        time.sleep(moment)
        process.send_signal(number)
        _, complaints = process.communicate()
    status, found = process.returncode, Counter()
    if status == 0 or (status == -number and not complaints.startswith("ringrl")):  # at its end, or at Python's start
        return found
    found["ends"] = 1
    found["crashed"] = int(status < 0)
    lines = _ASKED.sub("", complaints)
    found["wordless"] = int(status >= 0 and (status != 128 + number or _LINE.fullmatch(lines) is None))
    left = [path for pattern in _LEFT for path in folder.rglob(pattern)]
    found["left"] = int(bool(left))
    if found["crashed"] or found["wordless"] or left:
        sent = f"{signal.Signals(number).name} after {moment:.2f} s"
        print(f"  {name}, {sent}: status {status}, {left[:3]} {complaints[-600:]}")
    return found
