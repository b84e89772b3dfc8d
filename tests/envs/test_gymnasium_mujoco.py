import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from ringrl import envs
from ringrl.envs.gymnasium_mujoco import gymnasium_tasks
from ringrl.errors import UserError
from ringrl.relabelling.rewards import Relabeler, relabelable_tasks


def make_plain(task):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
        return gymnasium.make(task, disable_env_checker=True)


def actions_for(env, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


@pytest.mark.filterwarnings("ignore:.*Box observation space m")
def test_passes_gymnasiums_checker():
    check_env(envs.make_env("Hopper-v5"), skip_render_check=True)


@pytest.mark.parametrize(
    "task, bound, sizes",
    [
        ("HalfCheetah-v5", 1.0, (17, 6, 18)),
        ("Hopper-v5", 1.0, (11, 3, 12)),
        ("Walker2d-v4", 1.0, (17, 6, 18)),
        ("Humanoid-v5", 0.4, (348, 17, 47)),
        ("InvertedPendulum-v5", 3.0, (4, 1, 4)),
    ],
)
def test_matches_gymnasium_step_by_step(task, bound, sizes):
    env, plain = envs.make_env(task, seed=3), make_plain(task)
    observation, info = env.reset()
    expected, _ = plain.reset(seed=3)
    assert (observation.size, env.action_space.shape[0], info["physics"].size) == sizes
    ends = 0
    for action in actions_for(env, 150):
        np.testing.assert_array_equal(observation, expected.astype(np.float32))
        np.testing.assert_array_equal(info["physics"], plain.unwrapped.state_vector())
        assert observation.dtype == np.float32 and info["physics"].dtype == np.float64
        np.testing.assert_allclose(env.control(action), bound * action, rtol=1e-6, atol=1e-9)
        observation, reward, *ended, info = env.step(action)
        expected, paid, *plain_ended, _ = plain.step(env.control(action).astype(np.float32))
        assert (reward, ended) == (paid, plain_ended)
        if any(ended):
            ends += 1
            (observation, info), (expected, _) = env.reset(), plain.reset()
    assert ends or task.startswith("HalfCheetah")


def test_a_fall_terminates_with_discount_zero_and_a_short_last_hold():
    env = envs.make_env("Hopper-v5", action_repeat=7)
    env.reset(seed=0)
    ended = False
    while not ended:
        _, reward, terminated, truncated, info = env.step(np.full(3, 0.9, np.float32))
        ended = terminated or truncated
        assert reward == pytest.approx(info["rows"]["reward"].sum(), rel=1e-6)
    assert (terminated, truncated, info["discount"]) == (True, False, 0.0)
    discount = info["rows"]["discount"]
    assert len(discount) < 7 and not discount[-1] and discount[:-1].all()
    np.testing.assert_array_equal(info["rows"]["physics"][-1], env.physics.get_state())
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(3, np.float32))


def test_truncates_at_the_time_limit():
    env = envs.make_env("Reacher-v5", action_repeat=20)
    env.reset()
    steps = [env.step(np.zeros(2, np.float32)) for _ in range(3)]
    assert [step[3] for step in steps] == [False, False, True] and not any(step[2] for step in steps)
    assert [len(step[4]["rows"]["reward"]) for step in steps] == [20, 20, 10]
    assert (env.time_limit_steps, steps[-1][4]["discount"]) == (50, 1.0)


def test_reset_seed_decides_all_later_episodes():
    def starts(env, seed):
        return np.stack([env.reset(seed=seed)[0], env.reset()[0]])

    used = envs.make_env("Hopper-v5", seed=9)
    used.reset()
    used.step(np.ones(3, np.float32))
    np.testing.assert_array_equal(starts(used, 5), starts(envs.make_env("Hopper-v5", seed=0), 5))
    assert not np.array_equal(starts(used, 5), starts(used, 6))
    np.testing.assert_array_equal(envs.make_env("Hopper-v5", seed=5).reset()[0], used.reset(seed=5)[0])


def test_a_batch_resets_only_those_that_fell():
    vector = envs.make_vector("Hopper-v5", 3, seed=1)
    vector.reset()
    done = np.zeros(3, bool)
    while not done.any():
        actions = np.stack([np.full(3, value, np.float32) for value in (1.0, 0.0, -0.2)])
        observation, _, terminated, truncated, _ = vector.step(actions)
        done = terminated | truncated
    assert not done.all()
    restarted, _ = vector.reset(options={"reset_mask": done})
    np.testing.assert_array_equal(restarted[~done], observation[~done])
    assert not np.array_equal(restarted[done], observation[done])
    np.testing.assert_array_equal(terminated, done)


def test_names():
    assert envs.tasks("HalfCheetah") == ("HalfCheetah-v5", "HalfCheetah-v4")
    assert envs.split_task("Ant-v5") == ("Ant", "v5")
    assert {"HalfCheetah", "Hopper", "Walker2d", "walker"} <= set(envs.domains())
    assert set(gymnasium_tasks().values()) == {envs.split_task(task) for task in gymnasium_tasks()}
    env = envs.make_env("Walker2d-v5")
    assert (env.domain, env.task_name, env.task_id) == ("Walker2d", "v5", "Walker2d-v5")
    assert (env.time_limit_steps, env.control_timestep, env.metadata["render_fps"]) == (1000, 0.008, 125)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: envs.make_env("Hoper-v5"), "unknown task 'Hoper-v5': did you mean Hopper-v5"),
        (lambda: envs.tasks("HalfCheeta"), "unknown domain 'HalfCheeta': did you mean HalfCheetah"),
        (lambda: envs.make_env("Pusher-v4"), "Pusher-v4: Gymnasium says: .*mujoco<3.*; choose another version"),
        (lambda: envs.make_env("Hopper-v5", action_repeat=0), "action_repeat is 0"),
        (lambda: relabelable_tasks("Hopper", 12), "Hopper-v5 do not follow from stored states"),
        (lambda: Relabeler(["Hopper-v5"]), "Hopper-v5 do not follow from stored states"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_package_that_gymnasium_misses_is_named(monkeypatch):
    def miss(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'imageio'")

    monkeypatch.setattr(gymnasium, "make", miss)
    with pytest.raises(UserError, match=r"imageio.*pip install 'gymnasium\[mujoco\]'"):
        envs.make_env("Hopper-v5")


def test_rendering_without_a_backend_says_what_to_do():
    env = envs.make_env("Hopper-v5", render_mode="rgb_array")
    env.reset()
    with pytest.raises(UserError, match="cannot render Hopper-v5.*EGL"):
        env.render()


RENDER = """
import os
for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
    os.environ.pop(name, None)
from ringrl import envs
from ringrl.envs.graphics import has_egl
env = envs.make_env("HalfCheetah-v5", render_mode="rgb_array")  # of the models that MuJoCo finds fault with
env.reset()
if has_egl():
    picture = env.render()
    assert picture.shape == (240, 320, 3) and picture.std() > 0
    env.close()
"""


def test_is_silent_and_renders_where_egl_works(tmp_path):
    command = [sys.executable, "-W", "error", "-c", RENDER]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())  # no MUJOCO_LOG.TXT
