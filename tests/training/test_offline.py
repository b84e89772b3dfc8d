"""Whole offline runs of an agent that sees no context: trained, resumed, evaluated, and refused where they must be."""

import json

import jax
import numpy as np
import pytest

from ringrl.agent import make_agent, make_decoder
from ringrl.config import parse_config
from ringrl.envs import HELD_OUT
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.rollout.evaluate import evaluate
from ringrl.sampling.normalizer import Normalizer
from ringrl.store.episode_store import DataSource, build, open_store
from ringrl.training.loop import run_training
from ringrl.training.start import train
from ringrl.training.training_data import EpisodeData
from ringrl.training.transitions import calls, fill_replay, pack
from tests.builders import limit_evaluation

AGENT = {"name": "td3", "hidden": [8, 8], "batch": 8, "n_step": 2, "actor_lr": 3e-3, "critic_lr": 3e-3}


@pytest.fixture(scope="module")
def offline_config(tiny_config):
    """A function (steps, agent settings, **sections) -> RunConfig; what TD3 has no use for is left out."""

    def make(steps, agent=AGENT, **sections):
        known = tiny_config(agent).model_dump(include={"data", "evaluation"})
        training = {"steps": steps, "log_every": 10, "checkpoint_every": 20}
        return parse_config(known | {"agent": agent, "training": training} | sections, "tiny")

    return make


@pytest.fixture(scope="module")
def finished(offline_config, tmp_path_factory):
    config, run = offline_config(60), tmp_path_factory.mktemp("offline") / "run"
    run_training(config, run)
    return config, run


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_leaves_what_every_run_leaves(finished):
    _, run = finished
    lines = metrics(run)
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert {"loss", "grad_norm", "q", "reward", "tokens", "tokens_per_s"} <= set(lines[0])
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["tokens"] == 60 * 8
    card = json.loads((run / "dataset.json").read_text())
    assert card["episodes"] == 8 and card["sizes"] == {"observation": 5, "action": 1}
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"40", "60"}
    assert Normalizer.load(run / "normalizer.json").observation_mean.shape == (5,)


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(finished, offline_config, tmp_path):
    _, whole = finished
    run = tmp_path / "run"
    run_training(offline_config(20), run)
    run_training(offline_config(60), run)  # continues from 20
    train(resume=run)  # nothing is left to do
    assert [line["loss"] for line in metrics(run)] == pytest.approx([line["loss"] for line in metrics(whole)], rel=1e-6)
    with pytest.raises(UserError, match="was trained with seed 0, not 1"):
        run_training(offline_config(80, seed=1), run)


@pytest.mark.parametrize("task", ["visible_point_mass_goal_30mm", "hidden_point_mass_goal_30mm"])
def test_a_task_of_a_family_is_learned_from_reward_free_data(task, offline_config, tmp_path, monkeypatch):
    """Resumed, its members are drawn as if it had never stopped; only the visible task's observations show them."""
    rng, width = np.random.default_rng(0), 4 + 2 * task.startswith("visible")
    states = [rng.uniform(-0.2, 0.2, (9, 4)) for _ in range(3)]
    actions = rng.uniform(-1, 1, (8, 2)).astype(np.float32)
    rewards, discounts = np.zeros((8, 1), np.float32), np.ones(8, np.float32)
    episodes = [Episode(x.astype(np.float32), actions, rewards, discounts, x) for x in states]
    features = {"point_mass_goal_30mm": lambda episode: episode.observation[:, :2]}
    store = build(tmp_path / "s", episodes, domain="point_mass", tasks=("point_mass_easy",), features=features)
    data = {"store": str(store), "task": task, "action_repeat": 2}
    whole, run = tmp_path / "whole", tmp_path / "run"
    run_training(offline_config(60, data=data), whole)
    for steps in (20, 60):
        run_training(offline_config(steps, data=data), run)
    assert [line["loss"] for line in metrics(run)] == pytest.approx([line["loss"] for line in metrics(whole)], rel=1e-6)
    assert json.loads((run / "dataset.json").read_text())["sizes"] == {"observation": width, "action": 2}
    limit_evaluation(monkeypatch, 8)
    assert len(evaluate(run, trials=1, seed=HELD_OUT, reference=False).read_text().splitlines()) == 3


def test_it_is_rolled_out_in_the_same_trials_as_the_others(finished, monkeypatch):
    _, run = finished
    limit_evaluation(monkeypatch, 22)
    header, *rows = evaluate(run, trials=2).read_text().splitlines()
    assert header == "agent,task,seed,env,trial,return,length,target_return,demonstrations,explored"
    assert [row.split(",")[0] for row in rows].count("td3") == 4 and len(rows) == 8
    again = evaluate(run, trials=2, reference=False).read_text().splitlines()[1:]
    assert again == [row for row in rows if row.startswith("td3")]
    assert evaluate(run, trials=1, checkpoint="40").exists()


def replay_of(config, run):
    data = EpisodeData(config)
    data.prepare(run)
    return fill_replay(config, make_agent(config.agent), data)


def test_transitions_are_those_of_the_store_by_agent_step(offline_config, tiny_store, tmp_path):
    replay = replay_of(offline_config(1, AGENT | {"n_step": 1}), tmp_path)
    store, scales = open_store(tiny_store), Normalizer.fit(open_store(tiny_store), "cartpole_balance", action_repeat=4)
    steps = store.read(0, 0, int(store.lengths[0]), "cartpole_balance")
    agent_steps = -(-len(steps.reward) // 4)
    assert replay.size == sum(-(-store.lengths // 4))
    observation, action, reward, discount, successor = (rows[:agent_steps] for rows in replay._rows)
    seen = scales.normalize_observation(np.concatenate([steps.observation[:-1:4], steps.observation[-1:]]))
    np.testing.assert_array_equal(observation, seen[:-1])
    np.testing.assert_array_equal(successor, seen[1:])
    np.testing.assert_array_equal(action, steps.action[::4])
    np.testing.assert_allclose(reward, np.add.reduceat(steps.reward, range(0, len(steps.reward), 4)), rtol=1e-6)
    assert (discount == np.float32(0.99)).all()


def numbers_store(path, discount):
    """One episode of five steps of one number each."""
    column = np.arange(6, dtype=np.float32)[:, None]
    episode = Episode(column, column[1:] / 10, column[1:], np.float32(discount), np.zeros((6, 1)))
    what = {"domain": "cartpole", "tasks": ("cartpole_balance",), "provenance": {}}
    return build(path, [(episode, 0)], sources=[DataSource("one", "one")], **what)


@pytest.mark.parametrize("repeat, ended, kept", [(1, True, [1, 1, 1, 1, 0]), (1, False, [1] * 5), (2, True, [1, 1, 0])])
def test_a_real_end_is_learned_and_a_cut_is_not_taken_for_one(repeat, ended, kept, offline_config, tmp_path):
    store = numbers_store(tmp_path / "s", [1, 1, 1, 1, 0 if ended else 1])
    data = {"store": str(store), "task": "cartpole_balance", "action_repeat": repeat}
    replay = replay_of(offline_config(1, AGENT | {"n_step": 1, "gamma": 0.5}, data=data), tmp_path)
    np.testing.assert_array_equal(replay._rows[3], np.pad(np.float32(kept) / 2, (0, len(replay._rows[3]) - len(kept))))
    assert replay.size == len(kept)


def test_calls_end_where_something_is_written():
    assert list(calls(0, 7, 2, 4)) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert list(calls(3, 9, 4)) == [(3, 4), (4, 8), (8, 9)]
    assert [stop - start for start, stop in calls(0, 1000, 1000)] == [100] * 10
    assert list(calls(5, 5, 4)) == []


def test_a_packed_state_is_plain_arrays_by_name(offline_config):
    state = make_agent(offline_config(1).agent).init(5, 1, 0)
    packed = pack(state)
    assert {name.partition(".")[0] for name in packed} == set(state._fields) - {"rnd"}
    assert all(isinstance(x, jax.Array) and x.dtype in (np.float32, np.int32, np.uint32) for x in packed.values())


@pytest.mark.parametrize(
    "agent, sections, message",
    [
        ({"fused": True}, {}, "agent.fused mean nothing"),
        ({}, {"training": {"batch": 64, "steps": 3}}, "training.batch mean nothing"),
        ({}, {"model": {"preset": "tiny"}, "mesh": {"seq": 2}}, "model.preset, mesh.seq mean nothing"),
        ({}, {"optimizer": {"learning_rate": 0.1}}, "optimizer.learning_rate"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(agent, sections, message, offline_config, tmp_path):
    with pytest.raises(UserError, match=message):
        run_training(offline_config(3, AGENT | agent, **sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_has_no_sequence_model():
    assert make_agent("td3").decoder is None
    with pytest.raises(UserError, match="td3: this agent has no sequence model"):
        make_decoder("td3")
