"""`ringrl demo`: the main job from physics to report, on dm_control's cartpole swingup."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

from rich.console import Console

from ringrl import recipes
from ringrl.config import RunConfig, load_config
from ringrl.errors import UserError
from ringrl.files import write_text
from ringrl.readers import ObjectRecord, read_json
from ringrl.reporting import write_report
from ringrl.rollout.evaluate import evaluate
from ringrl.run import RunDirectory
from ringrl.store.episode_store import open_store
from ringrl.training.loop import run_training

TASK = "cartpole_swingup"
ACTION_REPEAT = 4
EPISODES = {"random": 20, "rnd": 20, "td3": 80}  # collector -> episodes of the mixed data set
AGENTS = {"bc": "demo_bc", "dt": "demo_dt", "at": "demo_at"}  # run directory -> shipped config


def demo(out: Path, scale: float = 1.0, fresh: bool = False) -> Path:
    """Collect, relabel, store, train three agents, evaluate and compare them; returns the path of the report's page.

    Data sets go to `out`/datasets/demo and runs to `out`/runs/demo; demo.json there holds the seconds of every stage.
    What an earlier, interrupted demo finished is used again unless `fresh`. `scale` shrinks the data and the training.
    """
    datasets, runs = out / "datasets" / "demo", out / "runs" / "demo"
    if fresh:
        shutil.rmtree(datasets, ignore_errors=True)
        shutil.rmtree(runs, ignore_errors=True)
    store = datasets / "cartpole.store"
    if store.exists():
        _check_store(store)
    stages = _Stages(runs / "demo.json")
    steps = {name: recipes.load("data", name) for name in ("collect", "relabel", "build_store")}
    for collector, episodes in EPISODES.items():
        raw, relabelled = datasets / collector, datasets / "relabelled" / collector
        count = max(2, round(episodes * scale))
        what = {"task": TASK, "policy": collector, "episodes": count, "action_repeat": ACTION_REPEAT, "out": raw}
        stages.run(f"collect {collector}", raw, partial(_call, steps["collect"], **what))
        stages.run(f"relabel {collector}", relabelled, partial(_call, steps["relabel"], folder=raw, out=relabelled))
    folders = tuple(datasets / "relabelled" / collector for collector in EPISODES)
    stages.run(
        "build store", store, partial(_call, steps["build_store"], folders=folders, out=store, relabel="recorded")
    )
    for index, (name, shipped) in enumerate(AGENTS.items()):
        run, config = runs / name, _config(shipped, store, scale)
        directory = RunDirectory(run)
        stages.run(f"train {name}", directory.finished_file, partial(_train, config, run))
        # One random reference serves all: the environments have the same seeds.
        stages.run(f"evaluate {name}", directory.table(), partial(evaluate, run, reference=index == 0))
    page = runs / "report" / "index.html"
    page.unlink(missing_ok=True)
    stages.run("report", page, partial(write_report, [runs / name for name in AGENTS], runs / "report"))
    return page


@dataclass
class _Stages:
    """Runs stages in order, skips those whose result is there, and keeps the seconds that each took."""

    path: Path

    def run(self, name: str, result: Path, stage: Callable[[], object]) -> None:
        console = Console()
        if result.exists():
            console.print(f"[bold]{name}[/]: {result} is there already")
            return
        console.print(f"[bold]{name}[/] ...")
        began = time.perf_counter()
        stage()
        known = self.path.exists()
        seconds = dict(read_json(self.path, ObjectRecord, "start over with --fresh")) if known else {}
        seconds[name] = round(time.perf_counter() - began, 2)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(seconds, indent=1) + "\n")
        console.print(f"[bold]{name}[/]: {seconds[name]:.1f} s")


def _check_store(store: Path) -> None:
    """Raise UserError where an earlier demo's store cannot be read, for example as it is of an earlier ringrl."""
    try:
        open_store(store)
    except UserError as error:
        raise UserError(f"{error}; or start over with --fresh") from error


def _call(step: ModuleType, **arguments: object) -> None:
    step.main(step.Args(**arguments))


def _config(shipped: str, store: Path, scale: float) -> RunConfig:
    config = load_config(shipped, (f"data.store={store}",))
    steps = max(4, round(config.training.steps * scale))
    return config.model_copy(update={"training": config.training.model_copy(update={"steps": steps})})


def _train(config: RunConfig, run: Path) -> None:
    run_training(config, run)
    RunDirectory(run).mark_finished()
