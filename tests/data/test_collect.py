"""What `ringrl data collect` leaves behind: ExoRL's files, in order, at the native rate, or nothing."""

import json
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from ringrl import envs, recipes
from ringrl.collect.record import record_episode
from ringrl.ending import Stopped, signals_taken
from ringrl.errors import UserError
from ringrl.formats.description import describe_folder
from ringrl.formats.exorl import list_episodes, read_episode, read_with_dummy_row
from ringrl.relabelling.rewards import Relabeler

collect = recipes.load("data", "collect")
SMALL = replace(collect.td3.CollectorConfig(), hidden=(8,), batch=8, warmup=200, updates_per_call=25, capacity=2000)


def args(out, **changes):
    return replace(collect.Args(policy="random", episodes=2, out=out, learner=SMALL), **changes)


def read(out):
    return [read_episode(path) for path in list_episodes(out / "buffer")]


@pytest.fixture(scope="module")
def random_data(tmp_path_factory):
    out = tmp_path_factory.mktemp("collect") / "cartpole" / "random"
    collect.main(args(out))
    return out


def test_files_are_exorls(random_data):
    names = [path.name for path in sorted((random_data / "buffer").iterdir())]
    assert names == ["episode_000000_1000.npz", "episode_000001_1000.npz"]
    assert all(read_with_dummy_row(path)[1].standard for path in list_episodes(random_data))
    for episode in read(random_data):
        assert episode.observation.shape == (1001, 5) and episode.physics.shape == (1001, 4)
        assert (episode.discount == 1.0).all()  # a time limit is not an end


def test_a_repeated_action_fills_a_row_each_environment_step(random_data):
    action = read(random_data)[0].action.reshape(250, 4)
    assert (action == action[:, :1]).all()
    assert len(np.unique(action[:, 0])) == 250


def test_rewards_are_those_of_each_rows_state_and_action(random_data):
    for episode in read(random_data):
        relabelled = Relabeler(["cartpole_swingup"])(episode)
        np.testing.assert_allclose(episode.reward, relabelled, atol=1e-6)


def test_observations_belong_to_the_rows_physics(random_data):
    episode = read(random_data)[0]
    position, angle = episode.physics[:, 0], episode.physics[:, 1]
    expected = np.stack([position, np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(episode.observation[:, :3], expected, atol=1e-6)


def test_the_description_tells_what_was_done(random_data):
    found = json.loads((random_data / "collect.json").read_text())
    assert found.pop("mujoco") and found.pop("dm_control")
    returns = found.pop("returns")
    np.testing.assert_allclose(returns, [episode.reward.sum() for episode in read(random_data)], rtol=1e-5)
    assert found == {
        "task": "cartpole_swingup",
        "tasks": ["cartpole_swingup"],
        "domain": "cartpole",
        "collector": "random",
        "seed": 0,
        "episodes": 2,
        "steps": 2000,
        "action_repeat": 4,
        "action_bounds": [[-1.0], [1.0]],
        "time_limit": None,
        "hyper_parameters": None,
    }
    description = describe_folder(random_data / "buffer")
    assert (description.domain, description.tasks) == ("cartpole", ("cartpole_swingup",))


@pytest.mark.parametrize("policy", ["rnd", "td3"])
def test_learners_write_the_tasks_reward_and_the_seed_determines_all(tmp_path, policy):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        collect.main(args(tmp_path / name, policy=policy, seed=seed))
    first, again, other = (read(tmp_path / name) for name in "abc")
    for one, two in zip(first, again, strict=True):
        for name in ("observation", "action", "reward", "discount", "physics"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(first[-1].action, other[-1].action)
    np.testing.assert_allclose(first[-1].reward, Relabeler(["cartpole_swingup"])(first[-1]), atol=1e-6)
    texts = [(tmp_path / name / "collect.json").read_text() for name in "ab"]
    assert texts[0] == texts[1]
    hyper_parameters = json.loads(texts[0])["hyper_parameters"]
    assert hyper_parameters["reward"] == ("rnd" if policy == "rnd" else "task")
    assert hyper_parameters["hidden"] == [8]


def test_gradient_steps_follow_the_agent_steps_after_the_warm_up():
    learner = collect.TD3Collector(replace(SMALL, update_to_data=0.5), 5, 1, seed=0)
    env = envs.make_env("cartpole_swingup", action_repeat=10)  # 100 agent steps an episode
    steps = []
    for _ in range(4):
        learner.learn(record_episode(env, learner.act)[1])
        steps.append(int(learner._state.step))
    assert steps == [0, 50, 100, 150]


def test_divergence_stops_the_run():
    learner = collect.TD3Collector(replace(SMALL, warmup=0), 1, 1, seed=0)
    nan = np.full(25, np.nan, np.float32)
    diverged = collect.AgentSteps(np.zeros((26, 1), np.float32), nan[:, None], nan, nan)
    with pytest.raises(FloatingPointError, match="diverged at gradient step 25"):
        learner.learn(diverged)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def interrupted(folder, index, episode):
        written.append(folder)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(collect, "write_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect.main(args(tmp_path / "data"))
    assert len(written) == 2 and not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept_unless_overwrite_is_given(random_data, tmp_path):
    with pytest.raises(UserError, match="--overwrite"):
        collect.main(args(random_data))
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="collect.json"):
        collect.main(args(foreign, overwrite=True))
    assert (foreign / "thesis.tex").exists()


def test_overwrite_replaces_the_whole_folder(tmp_path):
    collect.main(args(tmp_path / "data"))
    collect.main(args(tmp_path / "data", episodes=1, overwrite=True))
    assert len(read(tmp_path / "data")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_default_folder_names_domain_and_policy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    collect.main(args(None, episodes=1, task="ball_in_cup_catch", action_repeat=20))
    assert (tmp_path / "datasets" / "ball_in_cup" / "random" / "collect.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "cartpole_swinup"}, "cartpole_swingup"),
        ({"episodes": 0}, "--episodes"),
        ({"action_repeat": 0}, "action"),
        ({"time_limit": 0}, "time_limit"),
        ({"policy": "correlated", "time_constant": 0.0}, "--time-constant"),
        ({"policy": "correlated", "scale": -1.0}, "--scale"),
    ],
)
def test_bad_arguments_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        collect.main(args(tmp_path / "data", **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("policy", ["random", "td3"])
def test_the_actions_do_not_tell_what_is_hidden(tmp_path, policy):
    collect.main(args(tmp_path / "out", task="hidden_cheetah_velocity", policy=policy, seed=7, episodes=1))
    hidden = envs.make_env("hidden_cheetah_velocity", seed=7).task.hidden
    assert not np.isclose(read(tmp_path / "out")[0].action * 4, hidden, atol=1e-4).any(axis=1)[0]


def test_correlated_actions_last_and_begin_anew(tmp_path):
    """Their correlation falls to 1/e within the time constant, however many environment steps an action lasts."""
    settings = {"policy": "correlated", "task": "point_mass_easy", "time_limit": 400, "episodes": 40}
    collect.main(args(tmp_path / "out", action_repeat=5, time_constant=0.4, scale=0.3, **settings))  # 4 agent steps
    episodes = read(tmp_path / "out")
    actions = np.stack([episode.action[::5] for episode in episodes])
    assert actions.shape == (40, 80, 2)  # an environment step is 0.02 s
    assert 0.25 < actions.std() < 0.35
    flat = [np.corrcoef(actions[:, :-lag].ravel(), actions[:, lag:].ravel())[0, 1] for lag in (1, 4)]
    np.testing.assert_allclose(flat, np.exp([-1 / 4, -1]), atol=0.06)
    assert abs(np.corrcoef(actions[:-1, -1].ravel(), actions[1:, 0].ravel())[0, 1]) < 0.4
    found = json.loads((tmp_path / "out" / "collect.json").read_text())
    assert found["hyper_parameters"] == {"time_constant": 0.4, "scale": 0.3} and found["time_limit"] == 400


def test_held_out_tasks_are_not_collected(tmp_path):
    with pytest.raises(UserError, match="held out"):
        collect.main(args(tmp_path / "out", task="hidden_reacher_target", seed=envs.HELD_OUT))


@pytest.mark.parametrize("policy", ["random", "correlated", "td3", "rnd"])
def test_an_interrupted_collection_keeps_whole_episodes_and_goes_on_to_the_same_end(policy, monkeypatch, tmp_path):
    def settings(out):
        return args(out, policy=policy, episodes=4, time_limit=120, learner=replace(SMALL, warmup=20))

    collect.main(settings(tmp_path / "whole"))
    write, asked = collect.write_episode, []

    def written(folder, index, episode):
        write(folder, index, episode)
        if index == 1 and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
            time.sleep(0.3)  # in which the thread that takes signals sees it

    monkeypatch.setattr(collect, "write_episode", written)
    out, work = tmp_path / "cut", tmp_path / "cut.unfinished"
    with signals_taken(lambda: None), pytest.raises(Stopped) as stopped:
        collect.main(settings(out))
    assert stopped.value.message == f"{out}: 2 of 4 episodes are kept in {work}; give the same command to go on"
    assert not out.exists() and len(list((work / "buffer").iterdir())) == 2
    with pytest.raises(UserError, match=rf"{work}: an interrupted collection of other settings \(seed\); give those"):
        collect.main(replace(settings(out), seed=1))
    (work / "buffer" / "episode_000002_120.npz").write_bytes(b"half")  # of a process that was killed meanwhile
    collect.main(settings(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]
    files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    for name in files:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_it_goes_on_from_may_be_damaged(monkeypatch, tmp_path):
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished.npz").write_bytes(b"damaged")
    with pytest.raises(UserError, match="out.unfinished.npz: damaged; remove it to collect anew"):
        collect.main(args(tmp_path / "out"))
