"""AD-eps histories: one hidden task each, from noise to the expert's own actions, determined by the seed alone."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from ringrl import envs, recipes
from ringrl.collect.noisy_expert import Noise, noisy_history
from ringrl.envs import HELD_OUT
from ringrl.errors import UserError
from ringrl.manifest import MANIFEST
from ringrl.store.episode_store import open_store

step = recipes.load("data", "collect_histories")
GOAL = "hidden_point_mass_goal"
REPEAT, TRIALS = 10, 5  # eps is 1, 3/4, 1/2, 1/4, 0


CREATED = r'"created": ".*"'  # when, in store.json


def args(out, **changes):
    return replace(step.Args(out=out, task=GOAL, histories=3, trials=TRIALS, action_repeat=REPEAT, jobs=1), **changes)


def chosen(episode, repeat=REPEAT):
    """The actions of an episode's agent steps: without repetitions."""
    return episode.action[::repeat]


def experts(task, seed, episode):
    """What the expert does in the states of an episode's agent steps."""
    env = envs.make_env(task, seed=seed)
    env.reset()
    actions = []
    for state in episode.physics[:-1:REPEAT]:
        env.set_state(state, np.zeros(2, np.float32))
        actions.append(env.task.expert(env.physics))
    return np.stack(actions)


def files(folder):
    """All but the hashes, which change with the moment at which a store was made."""
    found = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in found if name.name != MANIFEST)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    out = tmp_path_factory.mktemp("histories") / "goal.store"
    step.main(args(out))
    return out


def test_every_history_is_a_source_of_one_hidden_task(path):
    store = open_store(path)
    assert (store.domain, store.tasks, store.episodes) == ("hidden_point_mass", (GOAL,), 3 * TRIALS)
    assert [source.name for source in store.sources] == ["seed 0", "seed 1", "seed 2"]
    assert {source.collector for source in store.sources} == {"ad_eps"}
    np.testing.assert_array_equal(store.source, np.repeat(range(3), TRIALS))
    assert (store.lengths == 250).all()


def test_the_store_tells_how_it_was_made(path):
    provenance = open_store(path).provenance
    assert provenance["relabel"] == "recorded"
    settings = {
        "task": GOAL,
        "histories": 3,
        "trials": TRIALS,
        "mix": "blend",
        "anneal": 0.8,
        "correlation": 0.8,
        "seed": 0,
    }
    assert settings.items() <= provenance["histories"].items() and "jobs" not in provenance["histories"]


def test_the_rewards_are_those_of_the_histories_own_task(path):
    store = open_store(path)
    episodes = noisy_history(GOAL, 1, TRIALS, REPEAT, Noise())
    np.testing.assert_allclose(
        store.returns(GOAL)[TRIALS : 2 * TRIALS], [each.reward.sum() for each in episodes], rtol=1e-5
    )
    env = envs.make_env(GOAL, seed=1)
    env.reset()
    for row in (1, 100, 250):
        env.set_state(episodes[2].physics[row], episodes[2].action[row - 1])
        assert env.task.get_reward(env.physics) == pytest.approx(episodes[2].reward[row - 1, 0], rel=1e-5)


def test_the_seed_determines_the_store_and_the_processes_do_not(path, tmp_path):
    step.main(args(tmp_path / "two.store", jobs=2))
    step.main(args(tmp_path / "later.store", seed=1, histories=2))
    names = files(path)
    assert files(tmp_path / "two.store") == names
    for name in names:
        one, two = ((folder / name).read_text("latin-1") for folder in (path, tmp_path / "two.store"))
        assert re.sub(CREATED, "", one) == re.sub(CREATED, "", two)
    first, later = open_store(path), open_store(tmp_path / "later.store")
    np.testing.assert_array_equal(later.returns(GOAL), first.returns(GOAL)[TRIALS:])


def test_a_demonstrator_is_the_expert_before_every_environment_step(path, tmp_path):
    """And the rest of the store is what it is without."""
    out = tmp_path / "shown.store"
    step.main(args(out, demonstrator=True))
    assert {name.parts[0] for name in set(files(out)) - set(files(path))} == {"demonstrator"}
    for name in files(path):
        one, two = ((folder / name).read_text("latin-1") for folder in (path, out))
        one, two = (
            json.loads(re.sub(CREATED, '"created": ""', text)) if name.suffix == ".json" else text
            for text in (one, two)
        )
        if name.name == "store.json":
            assert two.pop("demonstrator") is True and two["content"].pop("demonstrator")
        assert one == two
    store = open_store(out)
    assert store.demonstrator and not open_store(path).demonstrator
    for trial in (0, 2, TRIALS - 1):
        episode = store.episode(2 * TRIALS + trial, GOAL)
        env = envs.make_env(GOAL, seed=2)
        env.reset()
        for state, shown in zip(episode.physics, episode.demonstrator, strict=False):
            env.set_state(state, np.zeros(2, np.float32))
            np.testing.assert_array_equal(shown, env.task.expert(env.physics).astype(np.float32))
    last = store.episode(TRIALS - 1, GOAL)  # all the expert's, which acts once in an agent step
    np.testing.assert_array_equal(last.action[::REPEAT], last.demonstrator[::REPEAT])
    assert (last.action != last.demonstrator).any()


@pytest.mark.parametrize("mix", ["blend", "coin"])
@pytest.mark.parametrize("task", [GOAL, "hidden_reacher_target"])
def test_noise_fades_from_all_to_nothing(mix, task, monkeypatch):
    history = noisy_history(task, 4, TRIALS, REPEAT, Noise(mix=mix))
    shares = []
    for episode in history:
        off = np.abs(chosen(episode) - experts(task, 4, episode)).max(axis=1)
        shares.append(np.mean(off > 1e-6))
    assert shares[0] == 1 and shares[-1] == 0  # the last trials are exactly the expert's
    if mix == "coin":
        np.testing.assert_allclose(shares, [1, 0.75, 0.5, 0.25, 0], atol=0.25)
    returns = [episode.reward.sum() for episode in history]
    assert returns[-1] > returns[0]
    # The first trial does not depend on the expert, so nothing in it tells what is hidden.
    monkeypatch.setattr(type(envs.make_env(task).task), "expert", lambda *_: np.full(2, 0.123))
    (blind, *_) = noisy_history(task, 4, TRIALS, REPEAT, Noise(mix=mix))
    np.testing.assert_array_equal(blind.action, history[0].action)


def test_every_trial_of_a_shorter_anneal_is_the_experts():
    history = noisy_history(GOAL, 0, 4, REPEAT, Noise(anneal=0.25))
    for episode in history[1:]:
        np.testing.assert_allclose(chosen(episode), experts(GOAL, 0, episode), atol=1e-6)


def test_a_blend_of_noise_and_expert(monkeypatch):
    monkeypatch.setattr(type(envs.make_env(GOAL).task), "expert", lambda *_: np.array([0.5, -0.5]))
    still = Noise(correlation=0.0, scale=1e-9)  # nothing but the expert's share is left
    shares = [chosen(episode).mean(axis=0) for episode in noisy_history(GOAL, 0, 5, REPEAT, still)]
    np.testing.assert_allclose(shares, np.outer([0, 0.25, 0.5, 0.75, 1], [0.5, -0.5]), atol=1e-6)


def test_the_blended_noise_goes_on_from_one_agent_step_to_the_next():
    def correlation(noise):
        draws = np.concatenate([chosen(noisy_history(GOAL, seed, 1, 5, noise)[0], 5) for seed in range(6)])
        return np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]

    assert correlation(Noise(correlation=0.9, scale=0.3)) > 0.7
    assert abs(correlation(Noise(correlation=0.0, scale=0.3))) < 0.15


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": "hidden_cheetah_velocity"}, "hidden_cheetah_velocity has no expert.*--policy td3"),
        ({"task": "cartpole_swingup"}, "cartpole_swingup has no expert"),
        ({"task": "hidden_point_mass_gaol"}, "unknown task.*hidden_point_mass_goal"),
        ({"seed": HELD_OUT}, "seeds 1000000 to 1000002: training tasks are 0 to 999999"),
        ({"seed": HELD_OUT - 2}, "seeds 999998 to 1000000"),
        ({"seed": -1}, "seeds -1 to 1"),
        ({"histories": 0}, "--histories 0"),
        ({"trials": 0}, "--trials 0"),
        ({"anneal": 0.0}, "--anneal must be in"),
        ({"anneal": 1.5}, "--anneal must be in"),
        ({"correlation": 1.0}, "--correlation in"),
        ({"scale": 0.0}, "--scale above 0"),
        ({"action_repeat": 0}, "action_repeat is 0"),
    ],
)
def test_what_is_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as refused:
        step.main(args(tmp_path / "none.store", **changes))
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_a_store_that_is_there_is_kept_unless_settings(path, tmp_path):
    out, small = tmp_path / "a.store", {"histories": 1, "trials": 1}
    step.main(args(out, **small))
    with pytest.raises(UserError, match=r"a\.store"):
        step.main(args(out, **small))
    step.main(args(out, overwrite=True, seed=7, **small))
    assert open_store(out).sources[0].name == "seed 7"
