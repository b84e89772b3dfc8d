"""Every way in, in a clean process on a machine without a display: no other renderer than the chosen one is bound."""

import os
import subprocess
import sys

import pytest

import ringrl
from ringrl.envs.graphics import has_egl
from tests.house import sources

# Neither conftest's choice of no renderer, nor a display.
HEADLESS = {
    name: value
    for name, value in os.environ.items()
    if name not in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM")
}
MODULES = sorted({module for module, _ in ringrl._DEFINED.values()} | {"ringrl.cli.entry", "ringrl.card.card_page"})
MODULES += ["ringrl.relabelling.rewards", "ringrl.quality.observation_check", "ringrl.formats.minari"]
STEPS = [f"data:{path.stem}" for path in sources("data")]
# A process for each way in, forked from one that has imported what takes long and binds nothing.
EACH = """
import os, sys, traceback
import gymnasium, jax, numpy, scipy.stats, tensorstore, tyro
from ringrl import recipes
assert "mujoco" not in sys.modules and "dm_control" not in sys.modules
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            recipes.load("data", name[5:]) if name.startswith("data:") else __import__(name)
            bound = [each for each in ("glfw", "mujoco.glfw") if each in sys.modules]
            assert not bound, f"{name} binds {bound}"
            assert ("mujoco" in sys.modules) <= ("MUJOCO_GL" in os.environ), f"{name} leaves the choice to MuJoCo"
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""


def run(*arguments, **settings):
    return subprocess.run(
        [sys.executable, *arguments], env=HEADLESS | settings, capture_output=True, text=True, check=False
    )


def ringrl_command(*arguments, **settings):
    return run("-c", "from ringrl.cli.entry import main; main()", *map(str, arguments), **settings)


@pytest.mark.slow
def test_whichever_way_in_comes_first_the_renderer_is_chosen_before_it_is_bound():
    done = run("-W", "ignore", "-c", EACH, *MODULES, *STEPS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["osmesa", "no_such"])
def test_a_backend_that_does_not_work_is_named_in_one_line(backend):
    if backend == "osmesa" and run("-c", "import mujoco", MUJOCO_GL="osmesa").returncode == 0:
        pytest.skip("OSMesa is installed here")
    done = ringrl_command("data", "collect", "--help", MUJOCO_GL=backend)
    assert f"ringrl: MuJoCo cannot be imported with MUJOCO_GL={backend}" in done.stderr
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.slow
def test_quadruped_is_collected_relabelled_and_stored_without_a_display(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "quadruped.store"
    collect = ("data", "collect", "--policy", "random", "--episodes", 1, "--time-limit", 8, "--action-repeat", 2)
    steps = [(*collect, "--task", "quadruped_run", "--out", raw), ("data", "build_store", raw, "--out", out)]
    if has_egl():  # its terrain goes to the renderer
        steps.append((*collect, "--task", "quadruped_escape", "--out", tmp_path / "escape"))
    for step in steps:
        done = ringrl_command(*step)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
