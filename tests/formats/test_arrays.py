"""Anyone's own episodes: what `make_episode` makes and refuses, and the program in docs/your_own_data.md."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from ringrl.config import parse_config
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.formats.arrays import make_episode, stored_episodes
from ringrl.rollout.evaluate import evaluate
from ringrl.store.episode_store import DataSource, build, open_store
from ringrl.training.loop import train

DOCUMENT = Path(__file__).parents[2] / "docs" / "your_own_data.md"


def block(language: str) -> str:
    text = DOCUMENT.read_text().split("\n## ")[-1]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return found


def write_csv(path: Path, steps: int, ended: bool, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    table = np.column_stack(
        [rng.normal(size=(steps, 2)), rng.uniform(-2, 2, steps), rng.random(steps), np.zeros(steps)]
    )
    table[-1, -1] = ended
    path.parent.mkdir(exist_ok=True)
    np.savetxt(path, table, delimiter=",", header="angle,speed,torque,reward,ended", comments="")
    return table


def test_the_documented_program_makes_a_store_that_trains_and_is_not_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tables = [write_csv(tmp_path / "episodes" / f"{i}.csv", 6 + i, i == 1, i) for i in range(3)]
    exec(compile(block("python"), str(DOCUMENT), "exec"), {})
    store = open_store("stores/rig")
    assert (store.domain, store.tasks, store.lengths.tolist()) == ("rig", ("rig_balance",), [6, 7, 8])
    for index, table in enumerate(tables):
        steps = store.read(index, 0, len(table), "rig_balance")
        np.testing.assert_allclose(steps.observation, table[:, :2], rtol=1e-6)
        np.testing.assert_allclose(steps.action, table[:, 2:3] / 2, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(steps.reward, table[:, 3], rtol=1e-6)
        np.testing.assert_array_equal(steps.discount, 1 - table[:, 4])
    values = yaml.safe_load(block("yaml"))
    values["training"] |= {"steps": 2, "batch": 2}
    values["model"] = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "max_steps": values["model"]["max_steps"]}
    train(parse_config(values, "rig"), tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses and np.isfinite(losses).all()
    with pytest.raises(UserError, match="run: there is no environment 'rig_balance' to evaluate in") as refusal:
        evaluate(tmp_path / "run")
    assert "\n" not in str(refusal.value) and not (tmp_path / "run" / "evaluation").exists()


@pytest.mark.parametrize("widths", [(1, 1), (300, 40)])
def test_any_widths_train(tmp_path, widths):
    rng = np.random.default_rng(0)
    observation, action = widths
    episodes = [
        make_episode(rng.normal(size=(5, observation)), rng.uniform(-1, 1, (5, action)), rng.random(5), terminated=True)
        for _ in range(3)
    ]
    pairs, sources = [(episode, 0) for episode in episodes], [DataSource("own", "own")]
    build(tmp_path / "s", pairs, domain="own", tasks=("own_task",), sources=sources, provenance={})
    values = {
        "data": {"store": str(tmp_path / "s"), "task": "own_task"},
        "agent": {"name": "agentic_transformer", "trajectories": 2, "fused": True},
        "model": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "remat": "none"},
        "training": {"steps": 1, "batch": 1, "row_steps": 10},
    }
    train(parse_config(values, "own"), tmp_path / "run")


def test_rows_are_those_of_an_episode():
    observation, action = np.arange(6.0).reshape(3, 2), np.array([[0.5], [-1.0]])
    episode = make_episode(observation, action, np.array([1, 2]), terminated=True, physics=10 * observation)
    expected = Episode(
        observation=observation.astype(np.float32),
        action=np.array([[0], [0.5], [-1]], np.float32),
        reward=np.array([[0], [1], [2]], np.float32),
        discount=np.array([1, 1, 0], np.float32),
        physics=10 * observation,
    )
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(episode, name), value)
        assert getattr(episode, name).dtype == value.dtype
    without_last = make_episode(observation[:2], action, np.ones((2, 3)), terminated=np.array([True, False]))
    np.testing.assert_array_equal(without_last.observation, observation[[0, 1, 1]])
    np.testing.assert_array_equal(without_last.discount, [1, 0, 1])
    assert without_last.reward.shape == (3, 3) and without_last.physics.shape == (3, 0)


@pytest.mark.parametrize(
    "end", [True, 1, np.True_, np.array(True), np.array([0, 0, 1]), np.array([False, False, True])]
)
def test_an_end_may_be_given_as_numpy_gives_it(end):
    for given, last in ((end, 0.0), (np.logical_not(end), 1.0)):
        if np.ndim(end) and last:
            continue
        episode = make_episode(np.zeros((4, 1)), np.zeros((3, 1)), np.zeros(3), terminated=given)
        np.testing.assert_array_equal(episode.discount, [1, 1, 1, last])


def test_stored_episodes_are_what_was_stored(tmp_path):
    rng = np.random.default_rng(0)
    parts = {"terminated": False, "physics": rng.normal(size=(4, 2))}
    episodes = [
        make_episode(rng.normal(size=(4, 2)), rng.uniform(-1, 1, (3, 1)), rng.random((3, 2)), **parts) for _ in range(2)
    ]
    pairs, sources = [(episode, 0) for episode in episodes], [DataSource("own", "own")]
    build(tmp_path / "s", pairs, domain="own", tasks=("a", "b"), sources=sources, provenance={})
    (found,) = stored_episodes(open_store(tmp_path / "s"), [1], "b")
    for name, value in vars(episodes[1]).items():
        np.testing.assert_array_equal(getattr(found, name), value[:, 1:] if name == "reward" else value)


def test_stored_discounts_between_0_and_1_are_refused(tmp_path):
    episode = make_episode(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(2), terminated=False)
    half = Episode(**vars(episode) | {"discount": np.array([1, 0.5, 1], np.float32)})
    build(tmp_path / "s", [(half, 0)], domain="o", tasks=("t",), sources=[DataSource("o", "o")], provenance={})
    with pytest.raises(UserError, match="episode 0 has discounts besides 0 and 1"):
        list(stored_episodes(open_store(tmp_path / "s"), [0], "t"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"observation": np.zeros((5, 1))}, "of 3 actions has 5 of observation for 4"),
        ({"reward": np.zeros(2)}, "2 of reward for 3"),
        ({"reward": np.array(1.0)}, r"reward has shape \(\): give it as \[steps\]"),
        ({"reward": np.zeros((3, 1, 1))}, r"reward has shape \(3, 1, 1\)"),
        ({"physics": np.zeros((3, 2))}, "3 of physics for 4"),
        ({"terminated": np.zeros(1, bool)}, "1 of terminated for 3"),
        ({"action": np.zeros((0, 1)), "observation": np.zeros((1, 1)), "reward": np.zeros(0)}, "no steps"),
        ({"action": np.full((3, 1), -1.5)}, "an action is 1.5 where 1 is"),
        ({"observation": np.array([[0], [np.nan], [0]])}, "observation is NaN or infinite in step 1"),
        ({"reward": np.array([0, 0, 1e300])}, "reward is NaN or infinite in step 2"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(changes, message):
    values = {"observation": np.zeros((4, 1)), "action": np.zeros((3, 1)), "reward": np.zeros(3), "terminated": False}
    with pytest.raises(UserError, match=message):
        make_episode(**values | changes)
