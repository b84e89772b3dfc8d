"""Every agent's first losses on a small fixed data set: they change with its chain, tokens, loss or initial weights.

Such a change is either a mistake or meant. Where it is meant, say so in CHANGELOG.md and put here what this prints:

    JAX_PLATFORMS=cpu .venv/bin/python tests/agents/test_golden.py
"""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from ringrl.agent import make_agent
from ringrl.config import parse_config
from ringrl.episode import Episode
from ringrl.store.episode_store import DataSource, build
from ringrl.training.start import train

STEPS = 4
AGENTS = {
    "bc": {"name": "behavior_cloning", "fraction": 1.0, "window": 5},
    "bc10": {"name": "behavior_cloning", "fraction": 0.1, "window": 5},
    "dt": {"name": "decision_transformer", "window": 5},
    "dt_rates": {"name": "decision_transformer", "window": 5, "horizon": 3},
    "at": {"name": "agentic_transformer", "trajectories": 3},
    "ad": {"name": "algorithm_distillation", "trajectories": 3, "fused": True},
    "dpt": {"name": "decision_pretrained", "trajectories": 3, "fewest": 2, "within_source": True, "teacher": "TEACHER"},
    "ictd3": {"name": "in_context_td3", "trajectories": 3, "fewest": 2, "clone_weight": 0.1, "teacher": "TEACHER"},
    "td3": {"name": "td3", "hidden": [8, 8], "batch": 16, "n_step": 3, "tau": 0.3, "actor_lr": 1e-2},
    "fb": {"name": "forward_backward", "dimension": 6, "hidden": 8, "backward_hidden": [8], "batch": 16, "lr": 1e-2},
}
GOLDEN = {
    "bc": [0.374870, 0.592889, 0.862044, 0.693162],
    "bc10": [0.778491, 0.340828, 0.572974, 0.580310],
    "dt": [0.669770, 0.389617, 0.508079, 0.528216],
    "dt_rates": [0.674490, 0.322753, 0.515815, 0.530964],
    "at": [0.938374, 0.907073, 0.684006, 0.792362],
    "ad": [55.499123, 32.660427, 6.204181, 4.497471],
    "dpt": [0.297458, 0.176127, 0.135144, 0.118691],
    "ictd3": [0.546922, -0.504712, -0.414434, -1.532373],
    "td3": [28.054558, 36.659435, 31.523285, 56.795860],
    "fb": [5.965914, 4.042488, 6.429033, 3.490203],
}


def make_store(path: Path) -> Path:
    """Eight episodes of 8 to 11 steps from two sources, numbers from one seed; the last really ends."""
    rng = np.random.default_rng(7)

    def episodes():
        for index in range(8):
            rows = 9 + index % 4
            draw = lambda width: rng.normal(size=(rows, width)).astype(np.float32)  # noqa: B023, E731
            discount = np.ones(rows, np.float32)
            discount[-1] = index < 7
            reward = (1 + index % 3) * np.abs(draw(1))
            observation, action = draw(3), np.tanh(draw(2))
            yield Episode(observation, action[1:], reward[1:], discount[1:], np.zeros((rows, 1))), index // 4

    sources = [DataSource("one", "one"), DataSource("two", "two")]
    return build(path, episodes(), domain="toy", tasks=("toy_walk",), sources=sources, provenance={})


def make_teacher(data: dict[str, str], run: Path) -> Path:
    """A run of four steps of TD3."""
    steps = {"steps": STEPS, "log_every": STEPS, "checkpoint_every": STEPS}
    return train({"data": data, "agent": AGENTS["td3"], "training": steps}, out=run)


def losses(agent: str, store: Path) -> list[float]:
    """The losses of the first training steps."""
    data, settings = {"store": str(store), "task": "toy_walk"}, dict(AGENTS[agent])
    if "teacher" in settings:
        settings["teacher"] = str(make_teacher(data, store.with_name(f"teacher_{agent}")))
    values = {"data": data, "agent": settings, "training": {"steps": STEPS}}
    if agent not in ("td3", "fb"):
        values["training"] |= {"batch": 2, "row_steps": 36}
        values |= {"model": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "remat": "none"}}
        values["model"] |= {"max_steps": 12, "max_trials": 4, "trial_encoding": "table"}
        values |= {"optimizer": {"learning_rate": 3e-3, "warmup_steps": 0}}
    config = parse_config(values | {"training": values["training"] | {"log_every": 1}}, agent)
    trainer = make_agent(config.agent).make_trainer(config)
    trainer.data.prepare(Path("no run yet"))
    return [float(values["loss"]) for _, _, values in trainer.updates(trainer.init(), 0)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("golden") / "toy.store")


@pytest.mark.parametrize("agent", AGENTS)
def test_the_first_losses_are_what_they_were(agent, store):
    np.testing.assert_allclose(losses(agent, store), GOLDEN[agent], rtol=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        toy = make_store(Path(folder) / "toy.store")
        for name in AGENTS:
            print(f'    "{name}": [{", ".join(f"{loss:.6f}" for loss in losses(name, toy))}],')
