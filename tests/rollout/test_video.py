"""Films, in a process of their own: this one must not bind a renderer (see conftest)."""

import importlib.util
import subprocess
import sys

import pytest

from ringrl.envs import make_vector
from ringrl.envs.graphics import has_egl
from ringrl.rollout.references import RandomPolicy
from ringrl.rollout.session import Session
from ringrl.rollout.trials import Group, TrialRows, run_trials
from ringrl.rollout.video import WatchedEnvs

# Prints the physics' time, in seconds, of each frame.
FILM = """
from pathlib import Path
from ringrl.envs import DMControlEnv
from ringrl.rollout.references import RandomPolicy
from ringrl.rollout.session import Session
from ringrl.rollout.video import record
render = DMControlEnv.render
def timed(env):
    print(round(env.physics.data.time, 6))
    return render(env)
DMControlEnv.render = timed
start = lambda envs: Session(RandomPolicy(1, 1, 0), 1, 5, batched=True)
earned = record(Path({path!r}), start, "cartpole_balance", 2, seed=0, action_repeat=100)
assert len(earned) == 2 and all(0 < value < 1000 for value in earned)
"""


@pytest.mark.skipif(not importlib.util.find_spec("imageio"), reason="films need ringrl[video]")
@pytest.mark.skipif(not has_egl(), reason="this machine has no EGL to render with")
def test_a_frame_is_the_state_after_each_agent_step_of_the_trials(tmp_path):
    import imageio.v3

    path = tmp_path / "film.gif"
    done = subprocess.run(
        [sys.executable, "-c", FILM.format(path=str(path))],
        check=True,
        env={"MUJOCO_GL": "egl", "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
    )
    tried, *shown = map(float, done.stdout.split())  # that it can render is tried first
    assert tried == 0 and shown == [float(second) for second in range(1, 11)] * 2
    assert 2 <= len(imageio.v3.imread(path)) <= 20  # equal frames are one in a GIF
    assert [each.name for each in tmp_path.iterdir()] == ["film.gif"]


def test_watching_sees_the_last_state_of_a_trial_and_changes_no_result():
    times, results = [], []
    for watched in (False, True):
        envs = make_vector("cartpole_swingup", 1, seed=3, action_repeat=250)

        def look(envs=envs):
            times.append(envs.envs[0].physics.data.time)

        session = Session(RandomPolicy(1, 1, 0), 1, 5, batched=True)
        group = Group(session, WatchedEnvs(envs, look) if watched else envs, TrialRows("a", "cartpole_swingup", 0))
        results.append(run_trials([group], 3))
        envs.close()
    assert results[0] == results[1] and len({each.return_ for each in results[0]}) == 3
    assert times == pytest.approx([2.5, 5.0, 7.5, 10.0] * 3)
