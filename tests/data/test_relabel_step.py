import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

from ringrl import __version__, envs
from ringrl.errors import UserError
from ringrl.formats import exorl
from ringrl.formats.description import describe_folder
from tests.builders import random_episode

STEP = Path(__file__).parents[2] / "data" / "relabel.py"


@pytest.fixture(scope="module")
def step():
    spec = importlib.util.spec_from_file_location("step_relabel", STEP)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """Two episodes of cartpole swingup, 15 steps each, under ExoRL's path."""
    path = tmp_path / "cartpole" / "proto"
    env = envs.make_env("cartpole_swingup", seed=0)
    for index in range(2):
        episode = random_episode(env, 15, np.random.default_rng(index))
        exorl.write_episode(path / "buffer", 10 * index, episode)
    return path


def run(step, *arguments):
    step.main(tyro.cli(step.Args, args=[str(argument) for argument in arguments]))


def test_the_files_are_kept_but_for_the_rewards(step, folder, tmp_path, capsys):
    out = tmp_path / "out"
    run(step, folder, "--out", out, "--jobs", 1, "--tasks", "cartpole_balance", "cartpole_swingup")
    pairs = list(zip(exorl.read_folder(folder), exorl.read_folder(out), strict=True))
    assert (
        len(pairs) == 2 and "2 episodes with rewards of cartpole_balance, cartpole_swingup" in capsys.readouterr().out
    )
    for (_, before), (_, after) in pairs:
        for name in ("observation", "action", "discount", "physics"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert after.reward.shape == (15, 2)
        np.testing.assert_array_equal(after.reward[:, 1:], before.reward)
    about = json.loads((out / "relabel.json").read_text())
    assert (about["domain"], about["mode"]) == ("cartpole", "exact") and about["mujoco"]
    assert about["ringrl"] == __version__
    assert sorted(path.name for path in out.iterdir()) == ["SHA256SUMS", "buffer", "relabel.json"]
    assert describe_folder(out).tasks == ("cartpole_balance", "cartpole_swingup")


def test_all_tasks_that_fit_are_the_default(step, folder, tmp_path):
    run(step, folder, "--out", tmp_path / "out", "--mode", "exorl", "--jobs", 1)
    about = json.loads((tmp_path / "out" / "relabel.json").read_text())
    assert len(about["tasks"]) == 4 and about["mode"] == "exorl"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bad_file_stops_the_run_or_is_put_aside(step, folder, tmp_path, capsys, jobs):
    bad = folder / "buffer" / "episode_000010_15.npz"
    bad.write_bytes(b"PK")
    arguments = (folder, "--out", tmp_path / "out", "--jobs", jobs, "--tasks", "cartpole_swingup")
    with pytest.raises(UserError, match="episode_000010_15.npz.*the same command continues, also with --skip-bad"):
        run(step, *arguments)
    assert not (tmp_path / "out").exists()
    run(step, *arguments, "--skip-bad")
    said = f"1 episodes with rewards of cartpole_swingup; 1 bad files skipped, see {tmp_path / 'out' / 'skipped.txt'}"
    assert capsys.readouterr().out.endswith(f"{said}\n")
    assert [path.name for path in exorl.list_episodes(tmp_path / "out")] == ["episode_000000_15.npz"]
    assert "truncated" in (tmp_path / "out" / "skipped.txt").read_text()
    assert sorted(path.name for path in bad.parent.iterdir()) == ["episode_000000_15.npz", "episode_000010_15.npz"]
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    run(step, *arguments, "--skip-bad")
    assert capsys.readouterr().out.endswith(f"{said}; they were there already\n")


def test_a_foreign_file_is_named_or_left_out(step, folder, tmp_path, capsys):
    foreign = folder / "buffer" / "stats.npz"
    foreign.write_bytes(b"PK")
    arguments = (folder, "--out", tmp_path / "out", "--jobs", 1, "--tasks", "cartpole_swingup")
    with pytest.raises(UserError, match="stats.npz: bad episode file: the name is neither"):
        run(step, *arguments)
    run(step, *arguments, "--skip-bad")
    assert "2 episodes with rewards of cartpole_swingup; 1 bad files skipped" in capsys.readouterr().out
    assert "stats.npz" in (tmp_path / "out" / "skipped.txt").read_text() and foreign.exists()


def test_files_without_states_cannot_be_relabelled(step, folder, tmp_path):
    for path in exorl.list_episodes(folder):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files if name != "physics"}
        np.savez(path, **arrays)
    with pytest.raises(UserError, match="its files have no physics states, of which rewards are computed: keep"):
        run(step, folder, "--out", tmp_path / "out")


def test_a_zip_is_read_as_it_is(step, folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "cartpole" / "zipped"), "zip", folder)
    for source, out in ((folder, "out"), (archive, "from_zip")):
        run(step, source, "--out", tmp_path / out, "--tasks", "cartpole_swingup", "--jobs", 1, "--domain", "cartpole")
    for path in exorl.list_episodes(tmp_path / "out"):
        assert (tmp_path / "from_zip" / "buffer" / path.name).read_bytes() == path.read_bytes()


def test_what_is_done_is_not_done_again(step, folder, tmp_path, capsys):
    arguments = (folder, "--out", tmp_path / "out", "--jobs", 1, "--tasks", "cartpole_swingup")
    run(step, *arguments)
    run(step, *arguments)
    assert capsys.readouterr().out.endswith("2 episodes with rewards of cartpole_swingup; they were there already\n")
    with pytest.raises(UserError, match="out exists already"):
        run(step, *arguments[:-1], "cartpole_balance")
    run(step, *arguments[:-1], "cartpole_balance", "--overwrite")
    assert describe_folder(tmp_path / "out").tasks == ("cartpole_balance",)


def test_what_does_not_fit_is_named(step, folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="is of cartpole, the tasks of walker"):
        run(step, folder, "--out", out, "--tasks", "walker_run")
    with pytest.raises(UserError, match="episode_000000_15.npz: cannot relabel with cartpole_two_poles"):
        run(step, folder, "--out", out, "--jobs", 1, "--tasks", "cartpole_two_poles")
    out.mkdir()
    with pytest.raises(UserError, match="has no relabel.json"):
        run(step, folder, "--out", out, "--overwrite")
