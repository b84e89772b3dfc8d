"""Rewards and dynamics of ExoRL's own tasks against formulas and environments that are not ours."""

import mujoco
import numpy as np
import pytest
from dm_control import manipulation, suite

from ringrl import envs

STATES = 60


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def falling(value, target, margin, value_at_margin):
    """1 from `target` on; below, a line through `value_at_margin` at a distance of `margin`, down to 0."""
    if value >= target:
        return 1.0
    return max(0.0, 1.0 - (1.0 - value_at_margin) * (target - value) / margin)


def bell(distance, width):
    """1 at 0, a tenth at a distance of `width`."""
    return 10.0 ** -((distance / width) ** 2)


def random_states(env, rng):
    """States around the initial one, slow and fast, so that rewards take all their values; and actions."""
    base = env.reset(seed=0)[1]["physics"]
    model = env.physics.model
    for _ in range(STATES):
        scale = np.where(np.arange(base.size) < model.nq, 0.3, 3.0) * rng.uniform(0, 1)
        state = base + rng.normal(0, scale)
        if model.nq > model.nv:  # a root with a quaternion
            state[3:7] /= np.linalg.norm(state[3:7])
        yield state, rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)


def velocity(data, kind, index):
    """(angular, linear) velocity in world axes at the centre of mass of a body, or at a site."""
    out = np.zeros(6)
    mujoco.mj_objectVelocity(data.model, data, kind, index, out, 0)
    return out[:3], out[3:]


def whole_body(env):
    """(mass, centre of mass, its velocity, angular momentum about it), summed over all bodies."""
    model, data = env.physics.model.ptr, env.physics.data.ptr
    bodies = range(1, model.nbody)
    moving = {body: velocity(data, mujoco.mjtObj.mjOBJ_BODY, body) for body in bodies}  # mjOBJ_BODY: inertial frame
    mass = sum(model.body_mass[body] for body in bodies)
    centre = sum(model.body_mass[body] * data.xipos[body] for body in bodies) / mass
    speed = sum(model.body_mass[body] * moving[body][1] for body in bodies) / mass
    momentum = np.zeros(3)
    for body in bodies:
        spin, linear = moving[body]
        axes = data.ximat[body].reshape(3, 3)
        momentum += axes @ np.diag(model.body_inertia[body]) @ axes.T @ spin
        momentum += model.body_mass[body] * np.cross(data.xipos[body] - centre, linear - speed)
    return mass, centre, speed, momentum


def body(env, name):
    return mujoco.mj_name2id(env.physics.model.ptr, mujoco.mjtObj.mjOBJ_BODY, name)


def upright(env):
    return env.physics.data.ptr.xmat[body(env, "torso"), 8]


def spin(env, direction):
    return falling(direction * whole_body(env)[3][1], 5, 5, 0)


def walker_flip(env, action):
    height = env.physics.data.ptr.xpos[body(env, "torso"), 2]
    tall = 1.0 if height >= 1.2 else bell(1.2 - height, 0.6)
    return (3 * tall + (1 + upright(env)) / 2) / 4 * (5 * spin(env, 1) + 1) / 6


def hopper(quantity):
    def reward(env, action):
        data = env.physics.data.ptr
        height = data.xipos[body(env, "torso"), 2] - data.xipos[body(env, "foot"), 2]
        return quantity(env) if 0.6 <= height <= 2 else 0.0

    return reward


def quadruped(quantity):
    return lambda env, action: (1 + upright(env)) / 2 * quantity(env)


def torso_speed(env):
    model, data = env.physics.model.ptr, env.physics.data.ptr
    site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "torso")
    return np.linalg.norm(velocity(data, mujoco.mjtObj.mjOBJ_SITE, site)[1])


def maze(x, y):
    def reward(env, action):
        distance = np.hypot(*(env.physics.data.ptr.qpos - [x, y]))
        near = 1.0 if distance <= 0.015 else bell(distance - 0.015, 0.015)
        return near * (4 + np.mean(1 - action.astype(np.float64) ** 2)) / 5

    return reward


REWARDS = {
    "walker_flip": walker_flip,
    "cheetah_run_backward": lambda env, action: falling(-whole_body(env)[2][0], 10, 10, 0),
    "cheetah_flip": lambda env, action: spin(env, 1),
    "cheetah_flip_backward": lambda env, action: spin(env, -1),
    "hopper_hop_backward": hopper(lambda env: falling(-whole_body(env)[2][0], 2, 1, 0.5)),
    "hopper_flip": hopper(lambda env: spin(env, 1)),
    "hopper_flip_backward": hopper(lambda env: spin(env, -1)),
    "quadruped_stand": quadruped(lambda env: 1.0),
    "quadruped_jump": quadruped(lambda env: falling(whole_body(env)[1][2], 1, 1, 0.5)),
    "quadruped_roll": quadruped(lambda env: falling(torso_speed(env), 0.5, 0.5, 0.5)),
    "quadruped_roll_fast": quadruped(lambda env: falling(torso_speed(env), 5, 5, 0.5)),
}


@pytest.mark.parametrize("task", REWARDS)
def test_rewards_are_what_the_formulas_say(task, rng):
    env, seen = envs.make_env(task), []
    for state, action in random_states(env, rng):
        env.set_state(state, action)
        seen.append(env.task.get_reward(env.physics))
        assert seen[-1] == pytest.approx(REWARDS[task](env, action), abs=1e-9)
    assert len(np.unique(np.round(seen, 6))) > 4  # not the same everywhere


CORNERS = {"top_left": (-1, 1), "top_right": (1, 1), "bottom_left": (-1, -1), "bottom_right": (1, -1)}


@pytest.mark.parametrize("corner", CORNERS)
def test_rewards_of_the_maze(corner, rng):
    env, goal = envs.make_env(f"point_mass_maze_reach_{corner}"), 0.15 * np.array(CORNERS[corner])
    for _ in range(STATES):
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        env.set_state(np.concatenate([goal + rng.uniform(-0.03, 0.03, 2), rng.normal(size=2)]), action)
        assert env.task.get_reward(env.physics) == pytest.approx(maze(*goal)(env, action), rel=1e-9, abs=1e-12)
    env.set_state(np.array([*goal, 0.0, 0.0]), np.zeros(2, np.float32))
    assert env.task.get_reward(env.physics) == 1.0


@pytest.mark.parametrize("corner", CORNERS)
def test_rewards_of_jaco(corner, rng):
    env, goal = envs.make_env(f"jaco_reach_{corner}"), np.array([*(0.09 * np.array(CORNERS[corner])), 0.001])
    between_fingers = slice(30, 33)  # of the observation
    env.reset(seed=1)
    for action in rng.uniform(-1, 1, (20, 9)).astype(np.float32):
        observation, reward, *_ = env.step(action)
        distance = np.linalg.norm(observation[between_fingers].astype(np.float64) - goal)
        assert reward == pytest.approx(1.0 if distance <= 0.05 else bell(distance - 0.05, 0.05), rel=1e-4)


def test_jaco_is_dm_controls_own_reach_without_its_target(rng):
    ours = envs.make_env("jaco_reach_top_left", seed=5)
    theirs = manipulation.load("reach_site_features", seed=5)
    observation, info = ours.reset()
    timestep = theirs.reset()
    spec = theirs.action_spec()
    for action in rng.uniform(-1, 1, (60, 9)).astype(np.float32):
        parts = [np.ravel(part) for name, part in timestep.observation.items() if name != "target_position"]
        np.testing.assert_array_equal(observation, np.concatenate(parts).astype(np.float32))
        np.testing.assert_array_equal(info["physics"], theirs.physics.get_state())
        observation, _, _, _, info = ours.step(action)
        timestep = theirs.step(spec.minimum + (spec.maximum - spec.minimum) * (action.astype(np.float64) + 1) / 2)
    assert ours.time_limit_steps == 250 and ours.control_timestep == 0.04


def test_jaco_starts_with_the_hand_over_the_table():
    env = envs.make_env("jaco_reach_top_left")
    for seed in range(5):
        hand, direction = np.split(env.reset(seed=seed)[0][30:], [3])
        assert (np.abs(hand[:2]) <= 0.2 + 1e-3).all() and 0.02 - 1e-3 <= hand[2] <= 0.4 + 1e-3
        np.testing.assert_allclose(direction.reshape(3, 3)[:, 2], [0, 0, -1], atol=0.05)


def test_the_maze_starts_at_the_top_left_and_at_rest():
    env = envs.make_env("point_mass_maze_reach_bottom_right")
    starts = np.stack([env.reset(seed=seed)[0] for seed in range(50)])
    assert (starts[:, 0] >= -0.29).all() and (starts[:, 0] <= -0.15).all()
    assert (starts[:, 1] >= 0.15).all() and (starts[:, 1] <= 0.29).all() and not starts[:, 2:].any()


def drive(env, start, action, steps=400):
    env.reset(seed=0)
    env.set_state(np.array([*start, 0.0, 0.0]), np.zeros(2, np.float32))
    for _ in range(steps):
        observation, *_ = env.step(np.asarray(action, np.float32))
    return observation[:2]


def test_the_maze_has_a_cross_with_gaps_at_its_ends():
    env = envs.make_env("point_mass_maze_reach_top_left")
    ball = 0.01
    for along in (-0.15, -0.1, 0.1, 0.15):  # against the arms: from the left, the right, below and above
        assert drive(env, (-0.1, along), (1, 0))[0] == pytest.approx(-0.02 - ball, abs=2e-3)
        assert drive(env, (0.1, along), (-1, 0))[0] == pytest.approx(0.02 + ball, abs=2e-3)
        assert drive(env, (along, -0.1), (0, 1))[1] == pytest.approx(-0.02 - ball, abs=2e-3)
        assert drive(env, (along, 0.1), (0, -1))[1] == pytest.approx(0.02 + ball, abs=2e-3)
    for end in (-0.24, 0.24):  # through the gaps, to the edge
        assert drive(env, (-0.1, end), (1, 0))[0] > 0.27
        assert drive(env, (end, -0.1), (0, 1))[1] > 0.27


def test_without_walls_the_maze_is_the_suites_point_mass(rng):
    ours, theirs = envs.make_env("point_mass_maze_reach_top_left"), suite.load("point_mass", "easy", {"random": 0})
    ours.reset(seed=0)
    theirs.reset()
    ours.physics.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
    start = np.array([-0.2, 0.2, 0.0, 0.0])
    ours.set_state(start, np.zeros(2, np.float32))
    with theirs.physics.reset_context():
        theirs.physics.set_state(start)
    for action in rng.uniform(-1, 1, (50, 2)).astype(np.float32):
        _, _, _, _, info = ours.step(action)
        theirs.step(action.astype(np.float64))
        np.testing.assert_allclose(info["physics"], theirs.physics.get_state(), rtol=0, atol=1e-12)
