"""Families of rewards: every family alike, then worked examples of goals, fields and poses."""

import dataclasses
import functools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl import envs
from ringrl.collect.record import record_episode
from ringrl.envs import HELD_OUT, VALIDATION, family_of
from ringrl.envs.custom import FAMILIES
from ringrl.errors import UserError
from ringrl.relabelling.features import FeatureReader

# Family -> widths of observation, action, features, parameter, and the least that a hindsight member pays in its state,
# where goals may lie there at all.
SIZES = {
    "point_mass_goal_10mm": (4, 2, 2, 2, 1.0),
    "point_mass_goal_15mm": (4, 2, 2, 2, 1.0),
    "point_mass_goal_30mm": (4, 2, 2, 2, 1.0),
    "point_mass_field": (4, 2, 2, 48, 1.0),
    "point_mass_maze_goal_15mm": (4, 2, 3, 2, 0.8),
    "reacher_arm_goal_15mm": (6, 2, 2, 2, 1.0),
    "reacher_arm_goal_50mm": (6, 2, 2, 2, 1.0),
    "jaco_goal_50mm": (42, 9, 3, 3, 0.0),
    "cartpole_pose": (5, 1, 5, 3, 1.0),
    "cartpole_pose_dense": (5, 1, 5, 3, 0.4),
    "walker_motion": (24, 6, 5, 20, 0.9),
    "cheetah_motion": (17, 6, 5, 20, 0.9),
    "quadruped_motion": (78, 12, 5, 25, 0.999),
    "walker_speed": (24, 6, 5, 2, 0.0),
    "cheetah_speed": (17, 6, 5, 2, 0.0),
}
each_family = pytest.mark.parametrize("name", FAMILIES)


@functools.cache
def reader(name):
    return FeatureReader(FAMILIES[name])


@functools.cache
def rollout(task, steps=12, seed=3):
    """A short episode under random actions, and its environment."""
    env, rng = envs.make_env(task, seed=seed, time_limit=steps), np.random.default_rng(0)
    episode, _ = record_episode(env, lambda _: rng.uniform(-1, 1, env.widths[1]).astype(np.float32))
    return episode, env


@functools.cache
def seen(name):
    """Features of a family in some states of the domain: of a rollout, and others far from it."""
    found = reader(name)(rollout(f"hidden_{name}")[0])
    spread = np.random.default_rng(1).normal(0, 1, (20, *found.shape)).astype(np.float32)
    far = (found + spread * (0.1 + np.abs(found))).reshape(-1, found.shape[1])
    ease = [each == "ease" for each in FAMILIES[name].features]  # of a control in [-1, 1]
    far[:, ease] = far[:, ease].clip(0, 1)
    return np.concatenate([found, far])


def test_every_family_is_here():
    assert set(SIZES) == set(FAMILIES)


@each_family
def test_sizes(name):
    family, (observation, action, features, parameters, _) = FAMILIES[name], SIZES[name]
    assert family_of(f"hidden_{name}") is family is family_of(f"visible_{name}") and family.name == name
    assert name.startswith(family.domain) and family.domain in envs.domains()
    assert (len(family.features), len(family.parameters)) == (features, parameters)
    assert len(set(family.features)) == features and len(set(family.parameters)) == parameters
    assert reader(name)(rollout(f"hidden_{name}")[0]).shape == (13, features)
    rng = np.random.default_rng(0)
    for members in (family.members(rng, 5), family.hindsight(rng, seen(name)[:5])):
        assert members.shape == (5, parameters) and members.dtype == np.float32 and np.isfinite(members).all()
    assert family.members(rng, 0).shape == (0, parameters)
    for kind, wider in (("hidden", 0), ("visible", parameters)):
        assert envs.make_env(f"{kind}_{name}").widths == (observation + wider, action)


@each_family
def test_the_visible_twin_sees_the_parameter_and_nothing_else_differs(name):
    hidden, visible = rollout(f"hidden_{name}")[0], rollout(f"visible_{name}")[0]
    width = hidden.observation.shape[1]
    np.testing.assert_array_equal(visible.observation[:, :width], hidden.observation)
    np.testing.assert_array_equal(visible.reward, hidden.reward)
    member = FAMILIES[name].member(3)
    np.testing.assert_array_equal(visible.observation[:, width:], np.broadcast_to(member, (13, len(member))))


@each_family
def test_the_environment_pays_what_the_family_pays_for_its_features_to_the_bit(name):
    family = FAMILIES[name]
    for member in (family.member(3), family.hindsight(np.random.default_rng(0), seen(name)[8:9])[0]):
        env = envs.make_env(f"hidden_{name}", seed=3, time_limit=12, parameter=member)
        rng = np.random.default_rng(0)
        episode, _ = record_episode(env, lambda _: rng.uniform(-1, 1, env.widths[1]).astype(np.float32))  # noqa: B023
        features = reader(name)(episode)
        np.testing.assert_array_equal(family.reward(features[1:], member), episode.reward.ravel())


@each_family
def test_a_reward_is_between_0_and_1_and_rows_do_not_touch_each_other(name):
    family, features = FAMILIES[name], seen(name)
    rng = np.random.default_rng(2)
    members = family.members(rng, len(features))
    members[::2] = family.hindsight(rng, features)[::2]
    together = family.reward(features, members)
    assert together.dtype == np.float32 and (together >= 0).all() and (together <= 1).all()
    alone = [family.reward(one[None], member[None])[0] for one, member in zip(features, members, strict=True)]
    np.testing.assert_array_equal(together, alone)
    table = family.reward(features[:7, None], members[None, :5])
    np.testing.assert_array_equal(
        table, [[family.reward(one, member) for member in members[:5]] for one in features[:7]]
    )


@each_family
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 70), data=st.data())
def test_any_members_in_any_states(name, seed, rows, data):
    family, rng = FAMILIES[name], np.random.default_rng(seed)
    features = rng.permutation(seen(name))[:rows]
    members = family.members(rng, len(features)) if data.draw(st.booleans()) else family.hindsight(rng, features)
    paid = family.reward(features, members)
    assert (paid >= 0).all() and (paid <= 1).all() and not family.held_out(members).any()
    row = data.draw(st.integers(0, len(features) - 1))
    assert family.reward(features[row], members[row]) == paid[row]


@each_family
def test_a_member_made_in_hindsight_pays_in_its_state(name):
    family, rng = FAMILIES[name], np.random.default_rng(0)
    found = reader(name)(rollout(f"hidden_{name}")[0])
    fitted = family.fit(rng, found.astype(np.float64)).astype(np.float32)
    paid = family.reward(found, fitted)
    assert (paid >= SIZES[name][-1]).all() and (paid > 0).all()


@each_family
def test_members_of_seeds_are_their_own_and_the_same_in_every_process(name):
    family = FAMILIES[name]
    seeds = [0, 1, VALIDATION, VALIDATION + 1, HELD_OUT, HELD_OUT + 1]
    members = np.stack([family.member(seed) for seed in seeds])
    assert len(np.unique(members, axis=0)) == len(seeds) and not family.held_out(members).any()
    np.testing.assert_array_equal(envs.make_env(f"hidden_{name}", seed=HELD_OUT).task.hidden, members[4])


def test_members_in_another_process():
    code = "from ringrl.envs.custom import FAMILIES; print([f.member(7).tobytes().hex() for f in FAMILIES.values()])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == str([family.member(7).tobytes().hex() for family in FAMILIES.values()])


CANONICAL = [(name, task) for name, family in FAMILIES.items() for task in family.canonical]


@pytest.mark.parametrize(("name", "task"), CANONICAL)
def test_a_canonical_task_is_a_member_and_held_out(name, task):
    family = FAMILIES[name]
    member = np.asarray(family.canonical[task], np.float32)
    assert envs.split_task(task)[0] == family.domain and family.held_out(member[None]).all()
    env, model = envs.make_env(task), rollout(f"hidden_{name}")[1].physics.model
    env.reset()
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (30, model.nu)).astype(np.float32)
    states = [rollout(f"hidden_{name}")[0].physics[index % 13] for index in range(30)]
    states = np.stack([state + (index > 12) * rng.normal(0, 0.3, state.shape) for index, state in enumerate(states)])
    wanted = []
    for state, action in zip(states, actions, strict=True):
        env.set_state(state, action)
        wanted.append(env.task.get_reward(env.physics))
    episode = dataclasses.replace(
        rollout(f"hidden_{name}", 30)[0], physics=np.concatenate([states[:1], states]), action=actions
    )
    paid = family.reward(reader(name)(episode)[1:], member)
    np.testing.assert_allclose(paid, wanted, rtol=0, atol=1e-6)


@each_family
def test_nothing_is_drawn_near_a_canonical_task(name):
    family, rng = FAMILIES[name], np.random.default_rng(0)
    if not family.canonical:
        assert not family.held_out(family.members(rng, 10)).any()
        return
    share = family.held_out(family.draw(rng, 2000).astype(np.float32)).mean()
    assert 0.001 < share < 0.5  # there are such members, and most are none
    assert not family.held_out(family.members(rng, 2000)).any()
    assert not family.held_out(family.hindsight(rng, np.repeat(seen(name), 3, axis=0))).any()


def test_an_environment_of_any_member():
    env = envs.make_env("visible_point_mass_goal_10mm", seed=1, parameter=(0.1, -0.2))
    np.testing.assert_array_equal(env.task.hidden, np.float32([0.1, -0.2]))
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation[4:], np.float32([0.1, -0.2]))
    other, _ = envs.make_env("visible_point_mass_goal_10mm", seed=1).reset(seed=0)
    np.testing.assert_array_equal(observation[:4], other[:4])


@pytest.mark.parametrize(
    ("task", "parameter", "message"),
    [
        ("hidden_point_mass_goal_10mm", (0.1,), r"shape \(1,\): a member of .*_10mm is 2 numbers \(goal_x, goal_y\)"),
        ("hidden_point_mass_field", (0.1, 0.2), r"shape \(2,\): .* 48 numbers \(x_0, y_0, .*, \.\.\.\)"),
        ("hidden_point_mass_goal_10mm", (0.1, float("nan")), "of finite numbers"),
        ("walker_walk", (0.1,), "walker_walk is no family of rewards; leave it out"),
        ("hidden_reacher_target", (0.1, 0.1), "hidden_reacher_target is no family of rewards"),
    ],
)
def test_parameters_that_no_member_has(task, parameter, message):
    with pytest.raises(UserError, match=message) as refused:
        envs.make_env(task, parameter=parameter)
    assert "\n" not in str(refused.value)


def test_no_goal_of_the_maze_lies_in_a_wall():
    goals = FAMILIES["point_mass_maze_goal_15mm"].members(np.random.default_rng(0), 5000)
    bar = (np.abs(goals[:, 1]) < 0.03) & (np.abs(goals[:, 0]) < 0.2)
    column = (np.abs(goals[:, 0]) < 0.03) & (np.abs(goals[:, 1]) < 0.2)
    assert not (bar | column).any() and np.abs(goals).max() > 0.25


@pytest.mark.parametrize("task", FAMILIES["point_mass_maze_goal_15mm"].canonical)
def test_of_the_maze_members_pay_what_exorls_tasks_pay_around_their_goals(task):
    family, env, rng = FAMILIES["point_mass_maze_goal_15mm"], envs.make_env(task), np.random.default_rng(0)
    env.reset()
    goal, paid = np.float32(family.canonical[task]), []
    for _ in range(20):
        env.set_state(np.concatenate([goal + rng.normal(0, 0.015, 2), np.zeros(2)]), rng.uniform(-1, 1, 2).astype("f4"))
        features = np.array(family.read(env.physics), np.float32)
        paid.append((family.reward(features, goal), env.task.get_reward(env.physics)))
    ours, theirs = np.array(paid).T
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert theirs.min() < 0.5 and theirs.max() > 0.8


def test_of_the_maze_the_action_costs_a_fifth():
    family = FAMILIES["point_mass_maze_goal_15mm"]
    assert family.reward(np.float32([0.1, 0.2, 0.0]), np.float32([0.1, 0.2])) == pytest.approx(0.8)


@pytest.mark.parametrize("task", FAMILIES["reacher_arm_goal_15mm"].canonical)
def test_of_the_arm_members_pay_what_the_tasks_pay_around_their_goals(task):
    family, env, rng = FAMILIES["reacher_arm_goal_15mm"], envs.make_env(task), np.random.default_rng(0)
    env.reset()
    goal = np.float32(family.canonical[task])
    bend = 2 * np.arccos(np.linalg.norm(goal) / 0.24)  # of two links of 0.12 m
    joints, paid = np.array([np.arctan2(goal[1], goal[0]) - bend / 2, bend]), []
    for _ in range(20):
        env.set_state(np.concatenate([joints + rng.normal(0, 0.15, 2), np.zeros(2)]), np.zeros(2, np.float32))
        features = np.array(family.read(env.physics), np.float32)
        np.testing.assert_array_equal(env.parts()["finger"], features)
        paid.append((family.reward(features, goal), env.task.get_reward(env.physics)))
    ours, theirs = np.array(paid).T
    np.testing.assert_array_equal(ours, theirs)
    assert 0.2 < theirs.mean() < 0.95


def test_targets_of_the_arm_pay_where_the_finger_touches_them():
    for millimetres, edge in ((15, 0.025), (50, 0.06)):
        family, target = FAMILIES[f"reacher_arm_goal_{millimetres}mm"], np.float32([0.1, 0.0])
        where = np.float32([[0.1 + edge - 1e-4, 0.0], [0.1 + edge + 1e-4, 0.0]])
        assert family.reward(where, target).tolist() == [1, 0]


def test_poses_are_the_suites_about_another_position_and_angle():
    sparse, dense = FAMILIES["cartpole_pose"], FAMILIES["cartpole_pose_dense"]
    pose = np.float32([1.0, 0.6, 0.8])  # 1 m to the right, leaning by 37 degrees
    at, off, moved = [1.2, 0.6, 0.8, 0.0, 1.0], [1.0, -0.6, 0.8, 0.0, 1.0], [1.0, 0.6, 0.8, 5.0, 0.0]
    assert sparse.reward(np.float32([at, off, moved]), pose).tolist() == [1, 0, 1]
    # cos(2 * 37 degrees) = 0.28; a tenth of slowness at 5 rad/s; full force costs a fifth.
    wanted = [(1 + 0.1 ** (0.1**2)) / 2, (0.28 + 1) / 2, 0.55 * 0.8]
    np.testing.assert_allclose(dense.reward(np.float32([at, off, moved]), pose), wanted, rtol=1e-5)
