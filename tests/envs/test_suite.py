import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
from dm_control import suite
from dm_control.suite.wrappers import action_scale
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from ringrl import envs
from ringrl.errors import UserError


def actions_for(env, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


@pytest.mark.filterwarnings("ignore:.*Box observation space m")
def test_passes_gymnasiums_checker():
    check_env(envs.make_env("cartpole_swingup"), skip_render_check=True)


@pytest.mark.parametrize("task, sizes", [("cartpole_swingup", (5, 1, 4)), ("walker_walk", (24, 6, 18))])
def test_matches_dm_control_step_by_step(task, sizes):
    env = envs.make_env(task, seed=3)
    reference = action_scale.Wrapper(suite.load(*envs.split_task(task), task_kwargs={"random": 3}), -1.0, 1.0)
    assert (env.observation_space.shape[0], env.action_space.shape[0], env.physics.get_state().size) == sizes
    observation, info = env.reset()
    timestep = reference.reset()
    for action in actions_for(env, 30):
        expected = np.concatenate([np.ravel(part) for part in timestep.observation.values()])
        np.testing.assert_array_equal(observation, expected.astype(np.float32))
        np.testing.assert_array_equal(info["physics"], reference.physics.get_state())
        assert observation.dtype == np.float32 and info["physics"].dtype == np.float64
        observation, reward, terminated, truncated, info = env.step(action)
        timestep = reference.step(action)
        assert reward == pytest.approx(timestep.reward, abs=1e-7)
        assert (terminated, truncated, info["discount"]) == (False, False, 1.0)


def test_actions_are_mapped_onto_bounds_that_are_not_one():
    env = envs.make_env("quadruped_walk")
    spec = suite.load("quadruped", "walk").action_spec()
    ends = env.control(np.stack([-np.ones(12), np.ones(12), 5 * np.ones(12)]).astype(np.float32))
    np.testing.assert_allclose(ends, np.stack([spec.minimum, spec.maximum, spec.maximum]))


def test_actuators_without_bounds_take_the_action_itself():
    env = envs.make_env("lqr_lqr_2_1")
    np.testing.assert_allclose(env.control(np.array([0.25], np.float32)), [0.25])
    assert env.time_limit_steps == 1000


@pytest.mark.parametrize("task", ["cartpole_swingup", "lqr_lqr_2_1", "walker_flip", "Reacher-v5"])
@pytest.mark.parametrize("time_limit, action_repeat", [(7, 3), (60, 1)])
def test_a_time_limit_counts_environment_steps(task, time_limit, action_repeat):
    env = envs.make_env(task, time_limit=time_limit, action_repeat=action_repeat)
    assert env.time_limit_steps == time_limit  # Reacher's own limit is 50
    for _ in range(2):
        env.reset()
        rows, ends = [], [False]
        while not ends[-1]:
            _, _, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
            assert not terminated
            rows.append(len(info["rows"]["reward"]))
            ends.append(truncated)
        assert sum(rows) == time_limit and len(rows) == -(-time_limit // action_repeat)
    vector = envs.make_vector(task, 2, time_limit=time_limit)
    assert vector.time_limit_steps == time_limit
    vector.close()


def test_a_repeated_action_sums_rewards_and_gives_every_row():
    repeated = envs.make_env("cartpole_swingup", seed=1, action_repeat=4)
    native = envs.make_env("cartpole_swingup", seed=1)
    repeated.reset(), native.reset()
    for action in actions_for(native, 5):
        observation, reward, _, _, info = repeated.step(action)
        steps = [native.step(action) for _ in range(4)]
        np.testing.assert_array_equal(info["rows"]["observation"], [step[0] for step in steps])
        np.testing.assert_array_equal(info["rows"]["physics"], [step[4]["physics"] for step in steps])
        np.testing.assert_allclose(info["rows"]["reward"], [step[1] for step in steps], rtol=1e-6)
        assert info["rows"]["reward"].dtype == info["rows"]["discount"].dtype == np.float32
        assert reward == pytest.approx(sum(step[1] for step in steps))
        np.testing.assert_array_equal(observation, steps[-1][0])


def test_truncates_at_the_time_limit_with_a_short_last_repeat():
    env = envs.make_env("cartpole_swingup", action_repeat=300)
    env.reset()
    action = np.zeros(1, np.float32)
    lengths = []
    truncated = False
    while not truncated:
        _, _, terminated, truncated, info = env.step(action)
        lengths.append(len(info["rows"]["reward"]))
        assert not terminated and info["discount"] == 1.0
    assert lengths == [300, 300, 300, 100] and sum(lengths) == env.time_limit_steps
    with pytest.raises(ResetNeeded):
        env.step(action)


def test_terminates_where_the_discount_is_zero(monkeypatch):
    env = envs.make_env("cartpole_swingup", action_repeat=5)
    env.reset()
    monkeypatch.setattr(env.task, "get_termination", lambda physics: 0.0 if physics.time() > 0.025 else None)
    _, _, terminated, truncated, info = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated, info["discount"], len(info["rows"]["reward"])) == (True, False, 0.0, 3)
    np.testing.assert_array_equal(info["rows"]["discount"], [1, 1, 0])


def test_reset_seed_decides_all_later_episodes():
    def starts(env, seed):
        first = env.reset(seed=seed)[0]
        return np.stack([first, env.reset()[0]])

    used = envs.make_env("walker_run", seed=9)
    used.reset()
    used.step(np.ones(6, np.float32))
    np.testing.assert_array_equal(starts(used, 5), starts(envs.make_env("walker_run", seed=0), 5))
    assert not np.array_equal(starts(used, 5), starts(used, 6))
    # The seed given to make is that of a first reset with the same seed.
    np.testing.assert_array_equal(envs.make_env("walker_run", seed=5).reset()[0], used.reset(seed=5)[0])


def test_names():
    assert envs.split_task("ball_in_cup_catch") == ("ball_in_cup", "catch")
    assert envs.split_task("point_mass_easy") == ("point_mass", "easy")
    assert envs.split_task("humanoid_CMU_run") == ("humanoid_CMU", "run")
    assert "cheetah" in envs.domains()
    assert envs.tasks("walker") == ("walker_stand", "walker_walk", "walker_run", "walker_flip")
    assert all(envs.split_task(task)[0] == domain for domain in envs.domains() for task in envs.tasks(domain))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: envs.make_env("cartpole_swing"), "cartpole_swing.*cartpole_swingup"),
        (lambda: envs.make_env("zzz"), "choose one of acrobot_swingup"),
        (lambda: envs.tasks("wolker"), "wolker.*walker"),
        (lambda: envs.make_env("cartpole_swingup", action_repeat=0), "action_repeat is 0"),
        (lambda: envs.make_env("cartpole_swingup", time_limit=0), "time_limit is 0"),
        (lambda: envs.make_env("cartpole_swingup", render_mode="human"), "render_mode is 'human'"),
        (lambda: envs.make_vector("cartpole_swingup", 0), "count is 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_observation_order_is_that_of_the_spec(monkeypatch):
    env = envs.make_env("walker_walk")
    parts = OrderedDict(z=np.array([1.0]), a=np.array([[2.0, 3.0]]), m=np.float64(4.0), b=np.arange(5, 25))
    monkeypatch.setattr(env.task, "get_observation", lambda physics: parts)
    np.testing.assert_array_equal(env.reset()[0], np.arange(1, 25, dtype=np.float32))


def test_rendering_without_a_backend_says_what_to_do():
    env = envs.make_env("cartpole_swingup", render_mode="rgb_array")
    env.reset()
    with pytest.raises(UserError, match="cannot render cartpole_swingup.*EGL"):
        env.render()


RENDER = """
import os
for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
    os.environ.pop(name, None)
from ringrl import envs
from ringrl.envs.graphics import has_egl
assert os.environ["MUJOCO_GL"] == ("egl" if has_egl() else "disabled"), os.environ["MUJOCO_GL"]
if has_egl():
    env = envs.make_env("cartpole_swingup", render_mode="rgb_array")
    env.reset()
    picture = env.render()
    assert picture.shape == (240, 320, 3) and picture.std() > 0
    env.close()
"""


@pytest.mark.parametrize("options", [[], ["-W", "error"]])
def test_without_a_display_the_import_is_silent_and_renders_where_egl_works(options):
    done = subprocess.run([sys.executable, *options, "-c", RENDER], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
