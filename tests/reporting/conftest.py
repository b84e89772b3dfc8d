"""Run directories as training and evaluation leave them, made of numbers."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml

HEADER = "agent,task,seed,env,trial,return,length,target_return"


def write_run(
    path: Path,
    agent: str = "agentic_transformer",
    task: str = "walker_run",
    seed: int = 0,
    envs: int = 8,
    trials: int = 4,
    first: float = 300.0,
    gain: float = 40.0,
    target: float | None = 800.0,
    random: bool = True,
    data: bool = True,
    collectors: tuple[str, ...] = ("rnd", "td3"),
    episodes: int = 60,
    points: int = 50,
    label: str | None = None,
    trajectories: int | None = None,
    expert: float | None = None,
    targets: tuple[float, ...] = (),
    ablations: dict[str, float] | None = None,
) -> Path:
    """Writes a run whose mean return rises by `gain` a trial, with noise that depends on `seed` alone.

    `expert` is that policy's return; `targets` are achieved to nine tenths; `ablations` says what each takes from every
    trial but the first.
    """
    rng = np.random.default_rng(seed)
    (path / "evaluation").mkdir(parents=True)
    config = {"seed": seed, "agent": {"name": agent}, "data": {"store": "datasets/walker", "task": task}}
    config["label"] = label
    if trajectories is not None:
        config["agent"]["trajectories"] = trajectories
    name = label or Path(agent).stem
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [HEADER]
    returns = first + gain * np.arange(trials) + rng.normal(0, 25, (envs, trials)) + rng.normal(0, 15, (envs, 1))
    asked = "" if target is None else repr(target)
    for env in range(envs):
        lines += _rows(name, task, seed, env, returns[env], asked)
        if expert is not None:
            lines += _rows("expert", task, seed, env, expert + np.full(2, env % 3 - 1.0), "")
        if random:
            lines += [f"random,{task},{seed},{env},{k},{rng.normal(30, 6):.3f},1000," for k in range(2)]
    (path / "evaluation" / "returns.csv").write_text("\n".join(lines) + "\n")
    if targets:
        swept = [HEADER]
        for target_return, env in product(targets, range(envs)):
            swept += _rows(name, task, seed, env, 0.9 * target_return + rng.normal(0, 5, trials), repr(target_return))
        (path / "evaluation" / "targets.csv").write_text("\n".join(swept) + "\n")
    for ablation, cost in (ablations or {}).items():
        worse = returns - cost * (np.arange(trials) > 0) + rng.normal(0, 2, (envs, trials))
        rows = [row for env in range(envs) for row in _rows(name, task, seed, env, worse[env], asked)]
        (path / "evaluation" / f"ablation-{ablation}.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    about = {"seconds": 41.5, "trials": trials, "envs": envs, "context": 16000, "checkpoint_step": 1000, "seed": 1000}
    tables = ["evaluation", *(["targets"] if targets else []), *(f"ablation-{name}" for name in ablations or {})]
    for table in tables:
        (path / "evaluation" / f"{table}.json").write_text(json.dumps(about))
    metrics = [
        {"step": 20 * (k + 1), "loss": 0.4 / (1 + k / 8) + 0.1 + rng.normal(0, 0.01), "tokens": 81920 * (k + 1),
         "tokens_per_s": 51000.0, "mfu": 0.31} for k in range(points)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    if data:
        (path / "dataset.json").write_text(json.dumps(card(task, collectors, episodes)))
    return path


def _rows(name: str, task: str, seed: int, env: int, returns: np.ndarray, target: str) -> list[str]:
    quoted = f'"{name}"' if "," in name else name
    return [f"{quoted},{task},{seed},{env},{k},{value:.3f},1000,{target}" for k, value in enumerate(returns)]


def card(task: str, collectors: tuple[str, ...], episodes: int) -> dict:
    """A data-set card whose collectors rise to different heights; the same for every run of the task."""
    rng = np.random.default_rng(7)
    returns, source = [], []
    for index in range(len(collectors)):
        rise = np.linspace(30, 260 + 230 * index, episodes)
        returns += (rise + rng.normal(0, 30, episodes)).round(3).tolist()
        source += [index] * episodes
    return {
        "task": task, "domain": task.split("_")[0], "store": "datasets/walker", "episodes": len(returns),
        "steps": 1000 * len(returns), "relabel": "exact", "returns": returns, "source": source,
        "sources": [{"name": f"walker-{name}", "collector": name, "episodes": episodes} for name in collectors],
    }  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`write_run` below the test's own directory: `make_run("name", agent=...)`."""
    return lambda name="run", **options: write_run(tmp_path / name, **options)


@pytest.fixture(scope="session", name="write_run")
def write_run_fixture() -> Callable[..., Path]:
    """`write_run` itself, for fixtures that live longer than a test."""
    return write_run
