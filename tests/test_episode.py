"""What an `Episode` is, what it refuses, and the program in docs/your_own_data.md."""

import dataclasses
import json
import re
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import yaml

from ringrl.config import parse_config
from ringrl.episode import MAGNITUDE_LIMIT, Dims, Episode
from ringrl.errors import UserError
from ringrl.rollout.evaluate import evaluate
from ringrl.store.episode_store import DataSource, build, open_store
from ringrl.training.loop import run_training

DOCUMENT = Path(__file__).parents[1] / "docs" / "your_own_data.md"


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
        np.testing.assert_allclose(steps.observation, table[[*range(len(table)), -1], :2], rtol=1e-6)
        np.testing.assert_allclose(steps.action, table[:, 2:3] / 2, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(steps.reward, table[:, 3], rtol=1e-6)
        np.testing.assert_array_equal(steps.discount, 1 - table[:, 4])
    values = yaml.safe_load(block("yaml"))
    values["training"] |= {"steps": 2, "batch": 2}
    values["model"] = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "max_steps": values["model"]["max_steps"]}
    run_training(parse_config(values, "rig"), tmp_path / "run")
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
        Episode.from_arrays(
            rng.normal(size=(5, observation)), rng.uniform(-1, 1, (5, action)), rng.random(5), terminated=True
        )
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
    run_training(parse_config(values, "own"), tmp_path / "run")


def test_arrays_of_any_dtype_become_an_episode():
    observation, action = np.arange(6.0).reshape(3, 2), np.array([[0.5], [-1.0]])
    reward, physics = np.array([1, 2]), 10 * observation
    episode = Episode.from_arrays(observation, action, reward, terminated=True, physics=physics)
    expected = Episode(
        observation=observation.astype(np.float32),
        action=np.array([[0.5], [-1]], np.float32),
        reward=np.array([[1], [2]], np.float32),
        discount=np.array([1, 0], np.float32),
        physics=physics,
    )
    assert episode.demonstrator is None
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(episode, name), value)
        assert value is None or getattr(episode, name).dtype == value.dtype
    assert (episode.length, episode.dims, episode.returns.tolist()) == (2, Dims(2, 1, 1, 2), [3.0])
    assert episode.returns.dtype == np.float64 and str(episode.dims) == "observation 2, action 1, reward 1, physics 2"
    without_last = Episode.from_arrays(observation[:2], action, np.ones((2, 3)), terminated=np.array([False, True]))
    np.testing.assert_array_equal(without_last.observation, observation[[0, 1, 1]])
    np.testing.assert_array_equal(without_last.discount, [1, 0])
    assert without_last.reward.shape == (2, 3) and without_last.physics.shape == (3, 0)
    beyond = Episode.from_arrays(observation, action * (1 + 1e-6), reward, terminated=False).action
    np.testing.assert_array_equal(beyond, np.float32([[0.5 * (1 + 1e-6)], [-1]]))
    shown = Episode.from_arrays(observation, action, reward, terminated=False, demonstrator=-action * (1 + 1e-6))
    np.testing.assert_array_equal(shown.demonstrator, np.float32([[-0.5 * (1 + 1e-6)], [1]]))
    assert shown.demonstrator is not None and shown.demonstrator.dtype == np.float32


def test_actions_far_beyond_are_clipped_where_that_is_asked_for():
    action = np.array([[0.5, -3.0], [1e9, 1.0], [-1.001, 0.0]])
    arrays = (np.zeros((4, 1)), action, np.zeros(3))
    clipped = Episode.from_arrays(*arrays, terminated=False, truncated=True, demonstrator=-action, clip=True)
    np.testing.assert_array_equal(clipped.action, np.float32([[0.5, -1], [1, 1], [-1, 0]]))
    np.testing.assert_array_equal(clipped.demonstrator, -clipped.action)
    with pytest.raises(UserError, match="clip the actions"):
        Episode.from_arrays(*arrays, terminated=False)


def test_the_largest_numbers_are_taken():
    most = np.full((4, 1), MAGNITUDE_LIMIT)
    episode = Episode.from_arrays(most, np.zeros((3, 1)), -most[:3], terminated=False, physics=most)
    assert np.isfinite(np.square(episode.observation).sum() * episode.reward.size)


@pytest.mark.parametrize(
    "end", [True, 1, np.True_, np.array(True), np.array([0, 0, 1]), np.array([False, False, True])]
)
def test_an_end_may_be_given_as_numpy_gives_it(end):
    for given, last in ((end, 0.0), (np.logical_not(end), 1.0)):
        if np.ndim(end) and last:
            continue
        episode = Episode.from_arrays(np.zeros((4, 1)), np.zeros((3, 1)), np.zeros(3), terminated=given)
        np.testing.assert_array_equal(episode.discount, [1, 1, last])


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
        ({"terminated": np.array([True, False, False])}, "discount is 0 in step 0 of 3: only the last step can end"),
        ({"action": np.full((3, 1), -1.5)}, r"an action is 1.5, outside \[-1, 1\]"),
        ({"observation": np.array([[0], [np.nan], [0]])}, "observation is NaN or infinite in step 1"),
        ({"reward": np.array([0, 0, 1e300])}, "reward is NaN or infinite in step 2"),
        ({"demonstrator": np.zeros((4, 1))}, "of 3 actions has 4 of demonstrator for 3"),
        ({"demonstrator": np.array([[0], [1.5], [0]])}, r"a demonstrator's action is 1.5, outside \[-1, 1\]"),
        ({"demonstrator": np.array([[0], [0], [np.nan]])}, "demonstrator is NaN or infinite in step 2"),
        (
            {"observation": np.array([[0], [0], [-3e38], [0]])},
            "observation is 3e[+]38 in size, beyond 1e[+]10, .* step 2",
        ),
        ({"reward": np.array([0, 2e10, 0])}, "reward is 2e[+]10 in size, beyond 1e[+]10, first in step 1"),
        ({"physics": np.array([[0.0], [0], [0], [1e11]])}, "physics is 1e[+]11 in size.* step 3"),
        ({"terminated": np.array([0, 0, np.nan])}, "terminated has a NaN or an infinite number"),
        ({"truncated": np.array([0, 1, 0])}, "truncated is set in step 1 of 3: only the last step can end an episode"),
        ({"truncated": np.array([0, 1])}, "2 of truncated for 3"),
        ({"observation": np.zeros((4, 8, 8, 3))}, "as pixels are: give state observations"),
        ({"observation": np.zeros((4, 8, 8))}, r"float64 of shape \(4, 8, 8\), as pixels are"),
        ({"observation": np.zeros((4, 64), np.uint8)}, "observation is uint8 of shape .*, as pixels are"),
        ({"action": np.array([[0.5], [np.inf], [0]]), "clip": True}, "action is NaN or infinite in step 1"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(changes, message):
    values = {"observation": np.zeros((4, 1)), "action": np.zeros((3, 1)), "reward": np.zeros(3), "terminated": False}
    with pytest.raises(UserError, match=message) as refusal:
        Episode.from_arrays(**values | changes)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"observation": np.zeros((4, 1))}, "observation is float64, not float32; Episode.from_arrays converts it"),
        ({"discount": np.ones((3, 1), np.float32)}, r"discount has shape \(3, 1\): give it as \[steps\]"),
        ({"action": np.zeros(3, np.float32)}, r"action has shape \(3,\): give it as \[steps, width\]"),
        ({"reward": np.zeros((4, 1), np.float32)}, "an episode of 3 actions has 4 of reward for 3"),
        ({"physics": np.full((4, 1), -np.inf)}, "physics is NaN or infinite in step 0"),
        ({"discount": np.float32([1, 1, 1.5])}, r"discount is 1.5 in step 2, outside \[0, 1\]"),
        ({"discount": np.float32([1, -0.5, 1])}, r"discount is -0.5 in step 1, outside \[0, 1\]"),
        ({"discount": np.float32([1, 0, 1])}, "discount is 0 in step 1 of 3"),
        ({"demonstrator": np.zeros((3, 1))}, "demonstrator is float64, not float32"),
        ({"demonstrator": np.zeros((3, 2), np.float32)}, "demonstrator is 2 wide, and the actions are 1 wide"),
    ],
)
def test_arrays_are_checked_whichever_way_an_episode_is_made(changes, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for users
    values = {
        name: np.zeros((rows, 1), np.float32) for name, rows in (("observation", 4), ("action", 3), ("reward", 3))
    }
    values |= {"discount": np.float32([1, 0.5, 0]), "physics": np.zeros((4, 0))}
    assert Episode(**values).length == 3
    for make in (lambda: Episode(**values | changes), lambda: dataclasses.replace(Episode(**values), **changes)):
        with pytest.raises(UserError, match=message):
            make()
