"""Every task of ExoRL's domains, and hopper's: sizes, episodes, seeds, and rewards that follow from stored states."""

import functools

import numpy as np
import pytest

from ringrl import envs
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.relabelling.rewards import Relabeler

# Domain -> widths of observation, action and physics state, and steps in an episode: those of ExoRL's files.
SIZES = {
    "cartpole": (5, 1, 4, 1000),
    "cheetah": (17, 6, 18, 1000),
    "hopper": (15, 4, 14, 1000),
    "jaco": (42, 9, 18, 250),
    "point_mass_maze": (4, 2, 4, 1000),
    "quadruped": (78, 12, 57, 1000),
    "walker": (24, 6, 18, 1000),
}
REACH = ("reach_top_left", "reach_top_right", "reach_bottom_left", "reach_bottom_right")
TASKS = {
    "cartpole": ("balance", "balance_sparse", "swingup", "swingup_sparse"),
    "cheetah": ("run", "run_backward", "flip", "flip_backward"),
    "hopper": ("stand", "hop", "hop_backward", "flip", "flip_backward"),
    "jaco": REACH,
    "point_mass_maze": REACH,
    "quadruped": ("walk", "run", "stand", "jump", "roll", "roll_fast"),
    "walker": ("stand", "walk", "run", "flip"),
}
EVERY = [(domain, f"{domain}_{name}") for domain, names in TASKS.items() for name in names]


def actions_for(env, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


def episode_of(env, seed, steps=25):
    """An episode cut off after a few steps, with the live rewards."""
    observation, info = env.reset(seed=seed)
    rows = [(observation, np.zeros(env.action_space.shape, np.float32), 0.0, info["physics"])]
    for action in actions_for(env, steps, seed):
        observation, _, _, _, info = env.step(action)
        rows.append((observation, action, info["rows"]["reward"][0], info["physics"]))
    observation, action, reward, physics = (np.stack(column) for column in zip(*rows, strict=True))
    reward = reward.astype(np.float32)[1:, None]
    return Episode(observation, action[1:], reward, np.ones(steps, np.float32), physics)


@functools.cache
def make(task):
    return envs.make_env(task)


@pytest.mark.parametrize("domain, task", EVERY)
def test_sizes_rewards_and_seeds(domain, task):
    env, (observation, action, physics, steps) = make(task), SIZES[domain]
    episode = episode_of(env, seed=3)
    assert (env.domain, env.time_limit_steps) == (domain, steps)
    assert episode.observation.shape == (26, observation) and env.observation_space.shape == (observation,)
    assert episode.action.shape == (25, action) and episode.physics.shape == (26, physics)
    assert (episode.reward >= 0).all() and (episode.reward <= 1).all()
    again, other = episode_of(env, seed=3), episode_of(env, seed=4)
    for name in ("observation", "physics", "reward"):
        np.testing.assert_array_equal(getattr(again, name), getattr(episode, name))
    assert not np.array_equal(other.physics[0], episode.physics[0])
    # The seed given to make is that of a first reset with the same seed.
    np.testing.assert_array_equal(envs.make_env(task, seed=3).reset()[0], episode.observation[0])


@pytest.mark.parametrize("domain, task", EVERY)
def test_relabelling_gives_the_live_reward_bit_for_bit(domain, task):
    episode = episode_of(make(task), seed=5)
    np.testing.assert_array_equal(Relabeler([task])(episode), episode.reward)


@pytest.mark.parametrize("domain", TASKS)
def test_the_tasks_of_a_domain_share_its_physics(domain):
    episode = episode_of(make(f"{domain}_{TASKS[domain][0]}"), seed=6)
    names = [f"{domain}_{name}" for name in TASKS[domain]]
    together = Relabeler(names)(episode)
    for column, name in enumerate(names):
        np.testing.assert_array_equal(together[:, column : column + 1], Relabeler([name])(episode))


def test_the_refused_are_the_two_that_need_more_than_such_a_state():
    rest = {task for domain in TASKS for task in envs.tasks(domain)} - {task for _, task in EVERY}
    assert rest == {"cartpole_two_poles", "cartpole_three_poles", "quadruped_escape", "quadruped_fetch"}
    # Its terrain is drawn; without a renderer it cannot even be started.
    with pytest.raises(UserError, match="quadruped_escape"):
        Relabeler(["quadruped_escape"])
    # It has a ball, so its states are wider than the other tasks'; from its own they do follow.
    assert envs.make_env("quadruped_fetch").physics.get_state().size == 57 + 13
    Relabeler(["quadruped_fetch"])


@pytest.mark.parametrize("domain", SIZES)
def test_a_stored_state_gives_its_observation_again(domain):
    env = envs.make_env(envs.tasks(domain)[0])
    episode = episode_of(env, seed=7)
    env.set_state(episode.physics[9], episode.action[8])
    parts = env.parts()
    np.testing.assert_array_equal(env.physics.get_state(), episode.physics[9])
    late = {"imu", "force_torque", "touch", "jaco_arm/joints_torque"}  # what MuJoCo computes before it reaches a state
    start = 0
    for name, part in parts.items():
        if name not in late:
            np.testing.assert_array_equal(part, episode.observation[9, start : start + part.size])
        start += part.size
    assert start == SIZES[domain][0]


def test_states_that_cannot_be_set_are_named():
    env = envs.make_env("walker_flip")
    action = np.zeros(6, np.float32)
    with pytest.raises(UserError, match="a state of walker_flip has width 18, not 4"):
        env.set_state(np.zeros(4), action)
    with pytest.raises(UserError, match="MuJoCo rejects a state of walker_flip: .*BADQPOS"):
        env.set_state(np.full(18, 1e300), action)


def test_names_of_exorls_own_tasks():
    assert {"jaco", "point_mass_maze"} <= set(envs.domains())
    assert envs.tasks("jaco") == tuple(f"jaco_{name}" for name in REACH)
    assert envs.split_task("point_mass_maze_reach_top_left") == ("point_mass_maze", "reach_top_left")
    assert envs.split_task("point_mass_easy") == ("point_mass", "easy")
    with pytest.raises(UserError, match="jaco_reach_top_lef.*jaco_reach_top_left"):
        envs.make_env("jaco_reach_top_lef")


def test_exorls_own_tasks_are_stepped_as_one_batch():
    vector = envs.make_vector("jaco_reach_top_left", 2, seed=1, action_repeat=100)
    observation, _ = vector.reset()
    lengths = []
    for _ in range(3):
        observation, _, _, truncated, infos = vector.step(np.zeros((2, 9), np.float32))
        lengths.append(infos["length"].tolist())
    assert observation.shape == (2, 42) and truncated.all() and lengths == [[100, 100], [100, 100], [50, 50]]
