"""Each of ExoRL's six domains from end to end: collected, written, read, relabelled, stored and rolled out."""

import numpy as np
import pytest

from ringrl import envs, recipes
from ringrl.episode import ChainPlan
from ringrl.experience.exorl import read_folder
from ringrl.experience.folders import describe_folder
from ringrl.experience.reader import build_chain
from ringrl.experience.relabel import Relabeler, relabelable_tasks
from ringrl.experience.store import open_store
from ringrl.rollout.policy import RandomPolicy
from ringrl.rollout.trials import run_trials

collect, build_store = recipes.load("data", "collect"), recipes.load("data", "build_store")
# Domain -> task collected; observation, action, reward columns and physics of the files; steps in an episode.
DOMAINS = {
    "cartpole": ("cartpole_swingup", (5, 1, 1, 4), 1000),
    "cheetah": ("cheetah_run_backward", (17, 6, 1, 18), 1000),
    "jaco": ("jaco_reach_top_left", (42, 9, 1, 18), 250),
    "point_mass_maze": ("point_mass_maze_reach_top_left", (4, 2, 4, 4), 1000),
    "quadruped": ("quadruped_jump", (78, 12, 1, 57), 1000),
    "walker": ("walker_flip", (24, 6, 1, 18), 1000),
}


@pytest.mark.parametrize("domain", DOMAINS)
def test_from_collection_to_rollout(domain, tmp_path):
    task, widths, steps = DOMAINS[domain]
    folder, path = tmp_path / "files", tmp_path / "store"
    collect.main(collect.Args(task=task, policy="random", episodes=2, out=folder, action_repeat=10))
    reader = read_folder(folder)
    assert reader.dims == widths
    description = describe_folder(folder)
    assert (description.domain, description.source.task) == (domain, task)
    recorded = description.tasks or ()
    assert recorded == (envs.tasks(domain) if domain == "point_mass_maze" else (task,))
    episodes = [episode for _, episode in reader]
    assert [episode.length for episode in episodes] == [steps, steps]
    np.testing.assert_array_equal(Relabeler(recorded)(episodes[0]), episodes[0].reward)

    build_store.main(build_store.Args(folders=(folder,), out=path))
    store = open_store(path)
    assert store.tasks == relabelable_tasks(domain, widths[3]) and task in store.tasks
    plan = ChainPlan(np.arange(2), np.zeros(2, np.int64), np.full(2, steps), np.zeros(2), np.zeros(2, bool))
    chain = build_chain(store, plan, task, action_repeat=10)
    assert chain.length == 2 * steps // 10
    np.testing.assert_array_equal(chain.observation[: steps // 10], episodes[0].observation[:-1:10])
    np.testing.assert_allclose(
        chain.reward.sum(), sum(episode.reward[:, recorded.index(task)].sum() for episode in episodes), rtol=1e-5
    )

    vector = envs.make_vector(task, 2, action_repeat=50)
    policy = RandomPolicy(2, widths[1], seed=0)
    results = run_trials(policy, vector, 2, agent="random", task=task, seed=0, action_repeat=50)
    assert len(results) == 4 and all(0 <= one.return_ <= one.length == steps for one in results)
