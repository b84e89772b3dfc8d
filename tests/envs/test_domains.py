"""Every task of ExoRL's six domains, and of hopper, from end to end: collected, written, read, relabelled, stored and
rolled out. Of each domain one task in whole episodes, as users would do it; of the others the first 40 steps."""

from functools import partial

import numpy as np
import pytest
from dm_control.suite import quadruped

from ringrl import envs, recipes
from ringrl.batch import ContextPlan
from ringrl.episode import Dims
from ringrl.errors import UserError
from ringrl.formats.description import describe_folder
from ringrl.formats.exorl import read_folder
from ringrl.relabelling.rewards import Relabeler, relabelable_tasks
from ringrl.rollout.references import RandomPolicy
from ringrl.rollout.session import Session
from ringrl.rollout.trials import Group, TrialRows, run_trials
from ringrl.sampling.chains import build_chain
from ringrl.store.episode_store import open_store

collect, build_store = recipes.load("data", "collect"), recipes.load("data", "build_store")
# Domain -> its task in whole episodes; observation, action, reward columns and physics of the files; their steps.
DOMAINS = {
    "cartpole": ("cartpole_swingup", Dims(5, 1, 1, 4), 1000),
    "cheetah": ("cheetah_run_backward", Dims(17, 6, 1, 18), 1000),
    "hopper": ("hopper_hop_backward", Dims(15, 4, 1, 14), 1000),
    "jaco": ("jaco_reach_top_left", Dims(42, 9, 1, 18), 250),
    "point_mass_maze": ("point_mass_maze_reach_top_left", Dims(4, 2, 4, 4), 1000),
    "quadruped": ("quadruped_jump", Dims(78, 12, 1, 57), 1000),
    "reacher_arm": ("reacher_arm_reach_bottom_left", Dims(6, 2, 1, 4), 1000),
    "walker": ("walker_flip", Dims(24, 6, 1, 18), 1000),
}
# Tasks whose files are of other widths than their domain's.
WIDTHS = {
    "cartpole_two_poles": Dims(8, 1, 1, 6),
    "cartpole_three_poles": Dims(11, 1, 1, 8),
    "quadruped_escape": Dims(101, 12, 1, 57),
    "quadruped_fetch": Dims(90, 12, 1, 70),
}
REPRESENTATIVES = [task for task, _, _ in DOMAINS.values()]
OTHERS = [task for domain in DOMAINS for task in envs.tasks(domain) if task not in REPRESENTATIVES]
CUT = 40


@pytest.fixture
def cut(monkeypatch):
    """Every environment ends after `CUT` steps; quadruped_escape looks for no renderer to upload its terrain to."""
    for name in ("make_env", "make_vector"):
        monkeypatch.setattr(envs, name, partial(getattr(envs, name), time_limit=CUT))
    monkeypatch.setattr(quadruped.Physics, "contexts", None)


def collect_files(task, folder, dims, steps, action_repeat):
    """(tasks of the reward columns, two episodes), read from files that are what they should be."""
    domain = envs.split_task(task)[0]
    limit = CUT if steps == CUT else None  # collect gives its own limit, also none, to make_env
    settings = {"policy": "random", "episodes": 2, "action_repeat": action_repeat, "time_limit": limit}
    collect.main(collect.Args(task=task, out=folder, **settings))
    reader, description = read_folder(folder), describe_folder(folder)
    assert reader.dims == dims
    assert (description.domain, description.source.task) == (domain, task)
    recorded = description.tasks or ()
    assert recorded == (envs.tasks(domain) if domain == "point_mass_maze" else (task,))
    episodes = [episode for _, episode in reader]
    assert [episode.length for episode in episodes] == [steps, steps]
    return recorded, episodes


def check_store(store, task, recorded, episodes, action_repeat):
    """A context of both episodes holds their observations and the task's rewards."""
    steps = episodes[0].length
    plan = ContextPlan(np.arange(2), np.zeros(2, np.int64), np.full(2, steps), np.zeros(2), np.zeros(2, bool))
    chain = build_chain(store, plan, task, action_repeat=action_repeat)
    assert chain.length == 2 * steps // action_repeat
    np.testing.assert_array_equal(
        chain.observation[: steps // action_repeat], episodes[0].observation[:-1:action_repeat]
    )
    np.testing.assert_allclose(
        chain.reward.sum(), sum(episode.reward[:, recorded.index(task)].sum() for episode in episodes), rtol=1e-5
    )


def roll_out(task, actions, steps, trials, action_repeat):
    vector = envs.make_vector(task, 2, action_repeat=action_repeat)
    width = vector.single_observation_space.shape[0]
    session = Session(RandomPolicy(2, actions, seed=0), 2, width, batched=True)
    results = run_trials([Group(session, vector, TrialRows("random", task, 0))], trials)
    assert len(results) == 2 * trials and all(0 <= one.return_ <= one.length == steps for one in results)


@pytest.mark.parametrize("domain", DOMAINS)
def test_whole_episodes_from_collection_to_rollout(domain, tmp_path):
    task, dims, steps = DOMAINS[domain]
    folder, path = tmp_path / "files", tmp_path / "store"
    recorded, episodes = collect_files(task, folder, dims, steps, action_repeat=10)
    np.testing.assert_array_equal(Relabeler(recorded)(episodes[0]), episodes[0].reward)
    build_store.main(build_store.Args(folders=(folder,), out=path))
    store = open_store(path)
    assert store.tasks == relabelable_tasks(domain, dims.physics, observation_width=dims.observation)
    assert task in store.tasks
    check_store(store, task, recorded, episodes, action_repeat=10)
    roll_out(task, dims.action, steps, trials=2, action_repeat=50)


@pytest.mark.parametrize("task", OTHERS)
def test_every_other_task_from_collection_to_rollout(task, tmp_path, cut):
    domain = envs.split_task(task)[0]
    dims = WIDTHS.get(task, DOMAINS[domain][1])
    folder, path = tmp_path / "files", tmp_path / "store"
    recorded, episodes = collect_files(task, folder, dims, CUT, action_repeat=4)
    how = {}
    if task == "quadruped_escape":
        with pytest.raises(UserError, match="rewards of quadruped_escape cannot be recomputed .it draws hfield_data"):
            build_store.main(build_store.Args(folders=(folder,), out=path))
        how = {"relabel": "recorded"}
    else:
        assert task in relabelable_tasks(domain, dims.physics, observation_width=dims.observation)
        np.testing.assert_array_equal(Relabeler(recorded)(episodes[0]), episodes[0].reward)
    build_store.main(build_store.Args(folders=(folder,), out=path, tasks=(task,), **how))
    store = open_store(path)
    assert store.tasks == (task,)
    check_store(store, task, recorded, episodes, action_repeat=4)
    roll_out(task, dims.action, CUT, trials=1, action_repeat=8)
