"""What tests of several rooms make: episodes, configurations, runs, and the shorter episodes of evaluations.

`from tests.builders import make_config`.
"""

import json
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

if TYPE_CHECKING:
    from ringrl.envs import DMControlEnv

# Sections of runs that take seconds, and of the decoder that the planner's tests compile.
TINY: dict[str, dict[str, Any]] = {
    "data": {"store": "missing.store", "task": "cartpole_balance", "action_repeat": 4},
    "model": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "max_steps": 16, "max_trials": 4},
    "training": {"steps": 5, "batch": 4, "row_steps": 24, "log_every": 1, "checkpoint_every": 100},
    "optimizer": {"warmup_steps": 2},
    "evaluation": {"trials": 2, "envs": 2},
}
PLANNED: dict[str, dict[str, Any]] = {
    "data": {"store": "missing.store", "task": "cartpole_swingup"},
    "agent": {"name": "agentic_transformer", "trajectories": 2, "fused": True},
    "training": {"steps": 10},
}


def make_config(base: Mapping[str, Mapping[str, Any]], **sections: Mapping[str, Any]):
    """The RunConfig of `base` with the fields of `sections` changed; an agent of another name replaces the base's."""
    from ringrl.config import parse_config

    values = {name: dict(section) for name, section in base.items()}
    for name, section in sections.items():
        replaced = name == "agent" and "name" in section
        values[name] = dict(section) if replaced else values.get(name, {}) | dict(section)
    return parse_config(values, "test")


def make_episode(
    length: int = 6,
    seed: int = 0,
    widths: tuple[int, int, int, int] = (3, 2, 1, 4),
    discount: np.ndarray | None = None,
):
    """An Episode of `length` random steps; `widths` are those of `Dims`; the discount is 1 unless it is given."""
    from ringrl.episode import Episode

    rng = np.random.default_rng(seed)
    observation, action, reward, physics = widths
    return Episode(
        observation=rng.normal(size=(length + 1, observation)).astype(np.float32),
        action=rng.uniform(-1, 1, (length, action)).astype(np.float32),
        reward=rng.normal(size=(length, reward)).astype(np.float32),
        discount=np.ones(length, np.float32) if discount is None else discount,
        physics=rng.normal(size=(length + 1, physics)),
    )


def unseal(folder: Path) -> None:
    """Make a store, run or export one of an earlier ringrl, without hashes, in which anything may have changed."""
    (folder / "SHA256SUMS").unlink()
    for path in (folder / name for name in ("store.json", "run.json", "config.json")):
        if path.exists():
            about = json.loads(path.read_text())
            del about["manifest"]
            path.write_text(json.dumps(about, indent=2))


def random_episode(env: "DMControlEnv", steps: int, rng: np.random.Generator):
    """An Episode of `steps` uniform actions from a reset of `env`, which need not last so long: no discount is 0."""
    from ringrl.episode import Episode

    (observation, info), reward = env.reset(), []
    observations, states = [observation], [info["physics"]]
    action = rng.uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)
    for each in action:
        observation, paid, _, _, info = env.step(each)
        observations.append(observation)
        states.append(info["physics"])
        reward.append(paid)
    ones = np.ones(steps, np.float32)
    return Episode(np.stack(observations), action, np.asarray(reward, np.float32)[:, None], ones, np.stack(states))


def limit_evaluation(patch: pytest.MonkeyPatch, time_limit: int) -> None:
    """Evaluations roll out episodes of at most `time_limit` steps, in this process, until `patch` is undone."""
    from ringrl.envs import make_groups, make_vector

    patch.setattr("ringrl.rollout.trained_agent.make_vector", partial(make_vector, time_limit=time_limit))

    def short_groups(*arguments, workers, trials, **options):
        return make_groups(*arguments, time_limit=time_limit, workers=0, **options)

    patch.setattr("ringrl.rollout.shared_envs.make_groups", short_groups)


RETURNS_HEADER = "agent,task,seed,env,trial,return,length,target_return,demonstrations"


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
    demonstrations: dict[int, float] | None = None,
) -> Path:
    """Writes a run whose mean return rises by `gain` a trial, with noise that depends on `seed` alone.

    `expert` is that policy's return; `targets` are achieved to nine tenths; `ablations` says what each takes from every
    trial but the first, `demonstrations` what each number of them adds to the first trial, half of it to the others.
    """
    rng = np.random.default_rng(seed)
    (path / "evaluation").mkdir(parents=True)
    settings = {"name": agent} if trajectories is None else {"name": agent, "trajectories": trajectories}
    config = {"label": label, "seed": seed, "agent": settings, "data": {"store": "datasets/walker", "task": task}}
    name = label or Path(agent).stem
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    lines = []
    returns = first + gain * np.arange(trials) + rng.normal(0, 25, (envs, trials)) + rng.normal(0, 15, (envs, 1))
    asked = "" if target is None else repr(target)
    for env in range(envs):
        lines += _rows(name, task, seed, env, returns[env], asked)
        lines += _baselines(task, seed, env, expert, rng if random else None)
    _write_table(path, "returns", lines)
    swept = []
    for target_return, env in product(targets, range(envs)):
        swept += _rows(name, task, seed, env, 0.9 * target_return + rng.normal(0, 5, trials), repr(target_return))
    _write_table(path, "targets", swept)
    for ablation, cost in (ablations or {}).items():
        worse = returns - cost * (np.arange(trials) > 0) + rng.normal(0, 2, (envs, trials))
        rows = [row for env in range(envs) for row in _rows(name, task, seed, env, worse[env], asked)]
        _write_table(path, f"ablation-{ablation}", rows)
    _write_table(path, "demonstrations", _demonstrated(name, task, seed, returns, asked, demonstrations or {}))
    _write_about(path, trials, envs)
    (path / "metrics.jsonl").write_text(_metrics(points, rng))
    if data:
        (path / "dataset.json").write_text(json.dumps(dataset_card(task, collectors, episodes)))
    return path


def _write_table(path: Path, name: str, rows: list[str]) -> None:
    """Writes a table of evaluation/, if it has rows."""
    if rows:
        (path / "evaluation" / f"{name}.csv").write_text("\n".join([RETURNS_HEADER, *rows]) + "\n")


def _write_about(path: Path, trials: int, envs: int) -> None:
    """Beside every table, how it was measured."""
    about = {"seconds": 41.5, "trials": trials, "envs": envs, "context": 16000, "checkpoint_step": 1000, "seed": 1000}
    for table in (path / "evaluation").glob("*.csv"):
        name = "evaluation" if table.stem == "returns" else table.stem
        table.with_name(f"{name}.json").write_text(json.dumps(about))


def _metrics(points: int, rng: np.random.Generator) -> str:
    """A line of JSON for each of `points` logged training steps, with a loss that falls."""
    return "".join(
        json.dumps({
            "step": 20 * (k + 1), "loss": 0.4 / (1 + k / 8) + 0.1 + rng.normal(0, 0.01), "tokens": 81920 * (k + 1),
            "tokens_per_s": 51000.0, "mfu": 0.31,
        }) + "\n" for k in range(points)
    )  # fmt: skip


def _baselines(task: str, seed: int, env: int, expert: float | None, rng: np.random.Generator | None) -> list[str]:
    """Rows of the expert, where its return is given, and of the random policy, where `rng` is."""
    rows = [] if expert is None else _rows("expert", task, seed, env, expert + np.full(2, env % 3 - 1.0), "")
    return rows if rng is None else rows + _rows("random", task, seed, env, rng.normal(30, 6, 2), "")


def _rows(
    name: str, task: str, seed: int, env: int, returns: np.ndarray, target: str, demonstrations: int = 0
) -> list[str]:
    before = f'"{name}",{task},{seed},{env}' if "," in name else f"{name},{task},{seed},{env}"
    return [f"{before},{k},{value:.3f},1000,{target},{demonstrations}" for k, value in enumerate(returns)]


def _demonstrated(
    name: str, task: str, seed: int, returns: np.ndarray, target: str, worth: dict[int, float]
) -> list[str]:
    """The rows of `returns` [envs, trials] again for each number of demonstrations, with what that is worth added."""
    rng, rows = np.random.default_rng(seed), []
    for (number, more), (env, each) in product(worth.items(), enumerate(returns)):
        better = each + more * np.where(np.arange(len(each)) > 0, 0.5, 1.0) + rng.normal(0, 2, len(each))
        rows += _rows(name, task, seed, env, better, target, number)
    return rows


def dataset_card(task: str, collectors: tuple[str, ...], episodes: int) -> dict:
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
