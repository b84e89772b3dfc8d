"""`ringrl demo`: agents that find out a hidden task from their own trials, and some that cannot, from data to page."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ringrl import recipes
from ringrl.config import RunConfig, load_config
from ringrl.errors import UserError
from ringrl.files import write_text
from ringrl.readers import ObjectRecord, read_json
from ringrl.reporting import write_report
from ringrl.rollout.evaluate import evaluate
from ringrl.rollout.film import Film, film_run
from ringrl.run import RunDirectory
from ringrl.store.episode_store import open_store
from ringrl.training.loop import run_training

TASK = "hidden_reacher_target"
HISTORIES = {"task": TASK, "action_repeat": 5, "scale": 0.3}
"""What the data step is asked for: an expert's trials under noise that fades, of a new target each history."""

AGENTS = {"ad": "demo_ad", "at": "demo_at", "dt": "demo_dt", "bc": "demo_bc"}  # run directory -> shipped config
FILMED, TRIALS = "ad", (1, 8)


@dataclass(frozen=True)
class DemoSize:
    """How much a demo does; its stages are always the same.

    Attributes:
        name: of its folders in datasets/ and runs/.
        histories: of the data.
        share: of the configs' training steps.
        envs: unseen tasks of each evaluation; None: as many as the config says.
        warning: what is said of its answer, if it is not one.
    """

    name: str = "demo"
    histories: int = 800
    share: float = 1.0
    envs: int | None = None
    warning: str = ""

    def scaled(self, scale: float) -> "DemoSize":
        """With less data and training, and as many unseen tasks."""
        return replace(self, histories=max(8, round(self.histories * scale)), share=self.share * scale)

    def config(self, shipped: str, store: Path) -> RunConfig:
        """An agent's configuration. Where there is a warning, its label says how short its training is."""
        config = load_config(shipped, (f"data.store={store}",))
        steps = max(4, round(config.training.steps * self.share))
        changes: dict[str, Any] = {"training": config.training.model_copy(update={"steps": steps})}
        if self.envs is not None:
            changes["evaluation"] = config.evaluation.model_copy(update={"envs": self.envs})
        if self.warning:
            changes["label"] = f"{config.agent.name}, {steps} steps"
        return config.model_copy(update=changes)


QUICK = DemoSize(
    name="demo-quick",
    histories=48,
    share=0.02,
    envs=8,
    warning="a quick demo only shows that everything runs: its trainings are too short, and its tasks too few, for any "
    "answer; `ringrl demo` takes minutes, and has one",
)


def demo(out: Path, size: DemoSize, fresh: bool = False) -> Path:
    """Make data, train four agents, roll them out in unseen tasks and compare them; the path of the report's page.

    Data go to `out`/datasets/NAME and runs to `out`/runs/NAME, for `size.name`; demo.json there holds the seconds of
    every stage. What an earlier, interrupted demo finished is used again unless `fresh`.
    """
    datasets, runs = out / "datasets" / size.name, out / "runs" / size.name
    if size.warning:
        print(f"note: {size.warning}")
    if fresh:
        shutil.rmtree(datasets, ignore_errors=True)
        shutil.rmtree(runs, ignore_errors=True)
    store = datasets / "targets.store"
    if store.exists():
        _check_store(store)
    stages = _Stages(runs / "demo.json", 3 + 2 * len(AGENTS))
    histories = {**HISTORIES, "out": store, "histories": size.histories}
    stages.run("data: histories of hidden targets", store, partial(_collect, histories))
    for index, (name, shipped) in enumerate(AGENTS.items()):
        run, config = runs / name, size.config(shipped, store)
        directory = RunDirectory(run)
        _check_run(directory, config)
        stages.run(f"train {name}", directory.finished_file, partial(_train, config, run))
        # One random and one expert reference serve all: the environments have the same seeds.
        rollout = partial(evaluate, run, reference=index == 0)
        setting = config.evaluation
        what = f"evaluate {name}: {setting.trials} trials in {setting.envs} unseen tasks"
        stages.run(what, directory.table(), rollout)
    film = RunDirectory(runs / FILMED).evaluation / "film.mp4"
    stages.run(f"film {FILMED}: trials 1 and 8", film, partial(_film, runs / FILMED, film))
    page = runs / "report" / "index.html"
    page.unlink(missing_ok=True)
    stages.run("report", page, partial(write_report, [runs / name for name in AGENTS], runs / "report"))
    summary: Any = read_json(page.parent / "summary.json", ObjectRecord, "start over with --fresh")
    opening = summary["tasks"][TASK]["opening"]
    print(f"note: {size.warning}" if size.warning else f"{opening['question']} {opening['answer']}")
    return page


def _film(run: Path, film: Path) -> None:
    """Film the first and the last trial; where this machine cannot, one line says why, and the page has no film."""
    try:
        film_run(run, Film(film, TRIALS))
    except Exception as error:  # of renderers and their drivers, which raise errors of many kinds
        print(f"no film: {' '.join(str(error).split())[:200]}")


def _check_run(run: RunDirectory, config: RunConfig) -> None:
    """Raise UserError where a run is there of another demo, such as an earlier ringrl's or one of another --scale."""
    if run.exists:
        found = run.config()
        if (found.data.task, found.training.steps) != (config.data.task, config.training.steps):
            raise UserError(f"{run.path}: is of another demo; start over with --fresh, or give another --out")


@dataclass
class _Stages:
    """Runs stages in order, skips those whose result is there, and keeps the seconds that each took."""

    path: Path
    count: int
    done: int = 0

    def run(self, name: str, result: Path, stage: Callable[[], object]) -> None:
        console, self.done = Console(), self.done + 1
        title = f"[bold]{self.done}/{self.count} {name}[/]"
        if result.exists():
            console.print(f"{title}: {result} is there already")
            return
        console.print(f"{title} ...")
        began = time.perf_counter()
        stage()
        known = self.path.exists()
        seconds = dict(read_json(self.path, ObjectRecord, "start over with --fresh")) if known else {}
        seconds[name] = round(time.perf_counter() - began, 2)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(seconds, indent=1) + "\n")
        console.print(f"{title}: {seconds[name]:.1f} s")


def _check_store(store: Path) -> None:
    """Raise UserError where an earlier demo's store cannot be read, for example as it is of an earlier ringrl."""
    try:
        open_store(store)
    except UserError as error:
        raise UserError(f"{error}; or start over with --fresh") from error


def _collect(arguments: Mapping[str, Any]) -> None:
    step = recipes.load("data", "collect_histories")
    step.main(step.Args(**arguments))


def _train(config: RunConfig, run: Path) -> None:
    run_training(config, run)
    RunDirectory(run).mark_finished()
