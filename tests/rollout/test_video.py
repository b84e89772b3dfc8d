"""Films, in a process of their own: this one must not bind a renderer (see conftest)."""

import importlib.util
import subprocess
import sys

import pytest

from ringrl.envs.graphics import has_egl

FILM = """
from pathlib import Path
from ringrl.rollout.references import RandomPolicy
from ringrl.rollout.session import Session
from ringrl.rollout.video import record
start = lambda envs: Session(RandomPolicy(1, 1, 0), 1, 5, batched=True)
record(Path({path!r}), start, "cartpole_balance", 1, seed=0, action_repeat=100)
"""


@pytest.mark.skipif(not importlib.util.find_spec("imageio"), reason="films need ringrl[video]")
@pytest.mark.skipif(not has_egl(), reason="this machine has no EGL to render with")
def test_a_trial_is_filmed_one_frame_an_agent_step(tmp_path):
    import imageio.v3

    path = tmp_path / "film.gif"
    subprocess.run(
        [sys.executable, "-c", FILM.format(path=str(path))],
        check=True,
        env={"MUJOCO_GL": "egl", "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
    )
    assert 1 <= len(imageio.v3.imread(path)) <= 10  # 10 agent steps; equal frames are one in a GIF
    assert [each.name for each in tmp_path.iterdir()] == ["film.gif"]
