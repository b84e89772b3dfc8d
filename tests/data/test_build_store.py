import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tyro

from ringrl import envs
from ringrl.errors import UserError
from ringrl.formats import exorl
from ringrl.store.episode_store import open_store
from tests.builders import random_episode

STEP = Path(__file__).parents[2] / "data" / "build_store.py"


def load_step(path):
    spec = importlib.util.spec_from_file_location(f"step_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


step = load_step(STEP)


def collect(folder, task, count=3, steps=20, note=True, **written):
    env = envs.make_env(task, seed=0)
    rng = np.random.default_rng(0)
    for index in range(count):
        exorl.write_episode(folder, index, random_episode(env, steps, rng))
    if note:
        about = {"task": task, "domain": env.domain, "collector": "random", "seed": 0} | written
        (folder / "collect.json").write_text(json.dumps(about))
    return folder


def run(*arguments):
    step.main(tyro.cli(step.Args, args=[str(argument) for argument in arguments]))


def test_collected_folders_become_a_store_with_every_task(tmp_path, capsys):
    first = collect(tmp_path / "one", "walker_walk")
    second = collect(tmp_path / "two", "walker_run", count=2, collector="td3")
    run(first, second, "--out", tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert (store.domain, store.tasks) == ("walker", envs.tasks("walker"))
    np.testing.assert_array_equal(store.source, [0, 0, 0, 1, 1])
    assert [source.collector for source in store.sources] == ["random", "td3"]
    assert [source.task for source in store.sources] == ["walker_walk", "walker_run"]
    assert store.provenance["relabel"] == "exact"
    for source, task, folder in [(0, "walker_walk", first), (1, "walker_run", second)]:
        for index, (_, episode) in zip(np.flatnonzero(store.source == source), exorl.read_folder(folder), strict=True):
            steps = store.read(int(index), 0, 20, task)
            np.testing.assert_allclose(steps.reward, episode.reward[:, 0], rtol=0, atol=1e-6)
            np.testing.assert_array_equal(steps.observation, episode.observation)
            np.testing.assert_array_equal(store.physics(int(index)), episode.physics)
    printed = capsys.readouterr().out
    assert "5 episodes of walker, 100 steps, from 2 source(s)\n" in printed and "walker_run: return" in printed


def test_exorls_folders_need_no_notes(tmp_path):
    collect(tmp_path / "cartpole" / "proto" / "buffer", "cartpole_swingup", note=False)
    run(tmp_path / "cartpole" / "proto" / "buffer", "--out", tmp_path / "s", "--tasks", "cartpole_swingup")
    store = open_store(tmp_path / "s")
    assert (store.domain, store.tasks, store.sources[0].name) == ("cartpole", ("cartpole_swingup",), "cartpole/proto")


def test_modes_differ_where_the_action_is_priced(tmp_path):
    folder = collect(tmp_path / "one", "cartpole_balance")
    for mode in ("exact", "exorl", "recorded"):
        run(folder, "--out", tmp_path / mode, "--relabel", mode, "--tasks", "cartpole_balance")
    exact, theirs, recorded = (
        open_store(tmp_path / mode).returns("cartpole_balance") for mode in ("exact", "exorl", "recorded")
    )
    np.testing.assert_allclose(exact, recorded, rtol=1e-6)
    assert (theirs > exact).all()


def test_recorded_rewards_are_named_by_the_notes_or_by_the_user(tmp_path):
    noted = collect(tmp_path / "noted", "reacher_easy", count=1)
    run(noted, "--out", tmp_path / "a", "--relabel", "recorded")
    assert open_store(tmp_path / "a").tasks == ("reacher_easy",)
    bare = collect(tmp_path / "bare", "reacher_easy", count=1, note=False)
    # A domain that is not the suite's is as good as any.
    options = ("--relabel", "recorded", "--domain", "my_arm")
    run(bare, "--out", tmp_path / "b", *options, "--tasks", "my_arm_reach")
    assert open_store(tmp_path / "b").tasks == ("my_arm_reach",)
    with pytest.raises(UserError, match="nothing tells which task.*--tasks"):
        run(bare, "--out", tmp_path / "c", *options)
    with pytest.raises(UserError, match="1 reward columns, not one for each"):
        run(bare, "--out", tmp_path / "c", *options, "--tasks", "one", "two")
    with pytest.raises(UserError, match="no recorded rewards of reacher_hard; it has reacher_easy"):
        run(noted, "--out", tmp_path / "c", "--relabel", "recorded", "--tasks", "reacher_hard")


def test_recorded_rewards_that_cannot_be_recomputed_are_not_dropped_silently(tmp_path):
    folder = collect(tmp_path / "in", "finger_turn_easy", count=1)
    with pytest.raises(UserError, match="of finger_turn_easy cannot be recomputed .it draws site_pos.*recorded"):
        run(folder, "--out", tmp_path / "a")
    run(folder, "--out", tmp_path / "b", "--relabel", "recorded")
    run(folder, "--out", tmp_path / "c", "--tasks", "finger_spin")  # knowingly
    assert open_store(tmp_path / "b").tasks == ("finger_turn_easy",)
    assert sorted(os.listdir(tmp_path)) == ["b", "c", "in"]
    # The same states, but other observations: of files that tell no task only those that fit are offered.
    bare = collect(tmp_path / "bare", "humanoid_run_pure_state", count=1, note=False)
    run(bare, "--out", tmp_path / "d", "--domain", "humanoid")
    assert open_store(tmp_path / "d").tasks == ("humanoid_run_pure_state",)


def test_a_task_named_twice_is_one_line(tmp_path):
    folder = collect(tmp_path / "in", "cartpole_swingup", count=1)
    for how in ("exact", "recorded"):
        with pytest.raises(UserError, match="cartpole_swingup, cartpole_swingup, one is named twice"):
            run(folder, "--out", tmp_path / "s", "--relabel", how, "--tasks", "cartpole_swingup", "cartpole_swingup")
    assert os.listdir(tmp_path) == ["in"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_one_truncated_file_among_many_stops_the_build_and_leaves_nothing(tmp_path):
    folder = collect(tmp_path / "in", "cartpole_swingup", count=4)
    truncate(folder / "episode_000002_20.npz")
    command = [sys.executable, "-m", "ringrl.cli", "data", "build_store", str(folder), "--out", str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "episode_000002_20.npz" in lines[-1] and "truncated" in lines[-1]
    assert os.listdir(tmp_path) == ["in"]


def test_skip_bad_goes_on_without_it(tmp_path, capsys):
    folder = collect(tmp_path / "in", "cartpole_swingup", count=4)
    truncate(folder / "episode_000002_20.npz")
    run(folder, "--out", tmp_path / "s", "--skip-bad", "--tasks", "cartpole_swingup")
    assert open_store(tmp_path / "s").episodes == 3
    assert "1 bad files skipped" in capsys.readouterr().out
    assert "truncated" in (folder / "quarantine" / "reasons.txt").read_text()


def test_foreign_files_are_named_or_put_aside(tmp_path, capsys):
    folder = collect(tmp_path / "in", "cartpole_swingup", count=2)
    for name in ("stats.npz", "episode_000001_20 (1).npz"):
        shutil.copy(folder / "episode_000001_20.npz", folder / name)
    arguments = (folder, "--out", tmp_path / "s", "--tasks", "cartpole_swingup")
    with pytest.raises(UserError, match=r"20 \(1\).npz: bad episode file.* \(and 1 more\); .*--skip-bad"):
        run(*arguments)
    run(*arguments, "--skip-bad")
    assert open_store(tmp_path / "s").episodes == 2 and "2 bad files skipped" in capsys.readouterr().out
    assert (folder / "quarantine" / "stats.npz").exists()


def test_urlbs_files_without_states_are_built_with_the_rewards_that_they_have(tmp_path):
    folder = collect(tmp_path / "in", "walker_walk", note=False)
    for path in folder.glob("*.npz"):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files if name != "physics"}
        np.savez(path, **arrays)
    arguments = (folder, "--out", tmp_path / "s", "--domain", "walker")
    with pytest.raises(UserError, match="in: its files have no physics states.*--relabel recorded"):
        run(*arguments)
    assert not (tmp_path / "s").exists()
    run(*arguments, "--tasks", "walker_walk", "--relabel", "recorded")
    store = open_store(tmp_path / "s")
    assert (store.episodes, store.dims.physics) == (3, 0)
    ((_, first), *_) = exorl.read_folder(folder)
    np.testing.assert_array_equal(store.read(0, 0, 20, "walker_walk").reward, first.reward[:, 0])


def test_a_linked_folder_keeps_its_domain(tmp_path):
    collect(tmp_path / "blob" / "buffer", "cartpole_swingup", count=1, note=False)
    (tmp_path / "cartpole").mkdir()
    (tmp_path / "cartpole" / "rnd").symlink_to(tmp_path / "blob")
    run(tmp_path / "cartpole" / "rnd", "--out", tmp_path / "s", "--tasks", "cartpole_swingup")
    assert open_store(tmp_path / "s").sources[0].name == "cartpole/rnd"


def test_unlike_folders_and_foreign_tasks_are_named(tmp_path):
    cartpole = collect(tmp_path / "cartpole_random", "cartpole_swingup", count=1)
    walker = collect(tmp_path / "walker_random", "walker_run", count=1)
    poles = collect(tmp_path / "poles", "cartpole_two_poles", count=1)
    for arguments, message in [
        ((cartpole, walker), "walker_random is of walker.*cartpole_random of cartpole"),
        ((cartpole, poles), "poles has widths observation 8.*do not fit"),
        ((cartpole, "--tasks", "walker_run"), "is of cartpole, the tasks are of walker"),
        ((cartpole, "--tasks", "cartpole_swing"), "unknown task.*cartpole_swingup"),
        ((cartpole, "--tasks", "cartpole_two_poles"), "episode_000000_20.npz: cannot relabel with cartpole_two_poles"),
        ((tmp_path / "nowhere",), "cannot tell the domain|no such folder"),
        ((), "no folder"),
    ]:
        with pytest.raises(UserError, match=message):
            run(*arguments, "--out", tmp_path / "s")
    assert not list(tmp_path.glob("s*"))


def test_a_killed_build_leaves_no_store_and_the_next_one_cleans_up(tmp_path):
    folder = collect(tmp_path / "in", "cartpole_swingup", count=2, steps=200)
    for index in range(2, 400):
        os.link(folder / "episode_000000_200.npz", folder / f"episode_{index:06d}_200.npz")
    arguments = [str(folder), "--out", str(tmp_path / "s"), "--tasks", "cartpole_swingup"]
    with subprocess.Popen([sys.executable, str(STEP), *arguments], stderr=subprocess.DEVNULL) as building:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("s.partial-*/transition")) and time.monotonic() < deadline:
            time.sleep(0.01)
        building.send_signal(signal.SIGKILL)
    assert [path.name for path in tmp_path.glob("s*")] == [f"s.partial-{platform.node()}-{building.pid}"]
    for path in folder.glob("episode_000[1-9]*"):
        path.unlink()
    run(*arguments)
    assert [path.name for path in tmp_path.glob("s*")] == ["s"]
    assert open_store(tmp_path / "s").episodes == 100


def test_archives_and_several_processes_give_the_same_store(tmp_path):
    folder = collect(tmp_path / "walker" / "random" / "buffer", "walker_walk", count=5, note=False)
    archive = Path(shutil.make_archive(str(tmp_path / "random"), "zip", tmp_path, "walker/random/buffer"))
    damaged = folder / "episode_000002_20.npz"
    run(folder, "--out", tmp_path / "plain")
    run(archive, "--out", tmp_path / "shared", "--jobs", "2")
    plain, shared = open_store(tmp_path / "plain"), open_store(tmp_path / "shared")
    assert shared.domain == "walker" and shared.sources[0].collector == "random"
    spans = [(episode, 0, 20) for episode in range(5)]
    for task in plain.tasks:
        for one, other in zip(plain.read_many(spans, task), shared.read_many(spans, task), strict=True):
            np.testing.assert_array_equal(one.reward, other.reward)
            np.testing.assert_array_equal(one.observation, other.observation)

    damaged.write_bytes(damaged.read_bytes()[:99])
    with pytest.raises(UserError, match="episode_000002_20.npz"):
        run(folder, "--out", tmp_path / "whole", "--jobs", "2")
    assert not (tmp_path / "whole").exists()
    run(folder, "--out", tmp_path / "rest", "--jobs", "2", "--skip-bad")
    assert open_store(tmp_path / "rest").episodes == 4
    assert (folder / "quarantine" / damaged.name).exists()
