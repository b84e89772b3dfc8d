import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ringrl import envs
from ringrl.errors import UserError
from ringrl.formats.exorl import list_episodes, read_folder, write_episode
from ringrl.relabelling import relabelled_folder as relabel_folder_module
from ringrl.relabelling.relabelled_folder import RelabelJob, relabel_folder
from ringrl.relabelling.workers import Workers
from tests.builders import random_episode

MANY = 120
ALONE = Workers()


def write_files(folder, steps, count):
    """One episode of cartpole under `count` names; the copies are links."""
    env = envs.make_env("cartpole_swingup", seed=0)
    first = write_episode(folder, 0, random_episode(env, steps, np.random.default_rng(0)))
    for index in range(1, count):
        os.link(first, folder / f"episode_{index:06d}_{steps}.npz")


@pytest.fixture
def folder(tmp_path):
    """Five short episodes, under ExoRL's path."""
    write_files(tmp_path / "cartpole" / "rnd" / "buffer", 10, 5)
    return tmp_path / "cartpole" / "rnd"


def job_of(folder, *tasks):
    reader = read_folder(folder)
    return RelabelJob(tuple(reader.files), reader.dims, {"tasks": tasks or ("cartpole_swingup",), "mode": "exact"})


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside(out):
    return sorted(path.name for path in out.parent.glob(f"{out.name}*"))


def finished(work):
    return list((work / "buffer").glob("*.npz"))


def test_all_files_appear_at_once(folder, tmp_path):
    out, job = tmp_path / "out", job_of(folder)
    steps = relabel_folder(job, out, workers=ALONE)
    assert next(steps) and not out.exists() and len(finished(job.work_folder(out))) == 1
    assert list(steps) == [True] * 4
    assert len(list_episodes(out)) == 5 and beside(out) == ["out"] and job.made(out)
    assert sorted(path.name for path in out.iterdir()) == ["SHA256SUMS", "buffer", "relabel.json"]


def test_what_is_there_is_not_done_again(folder, tmp_path):
    out, job = tmp_path / "out", job_of(folder)
    steps = relabel_folder(job, out, workers=ALONE)
    next(steps), next(steps)
    steps.close()
    done = {path.name: path.stat().st_ino for path in finished(job.work_folder(out))}
    assert len(done) == 2
    empty = sorted(done)[0]
    (job.work_folder(out) / "buffer" / empty).write_bytes(b"")  # as after a power cut
    assert len(list(relabel_folder(job, out, workers=ALONE))) == 5
    kept = {path.name for path in finished(out) if path.stat().st_ino == done.get(path.name)}
    assert kept >= set(done) - {empty} and (out / "buffer" / empty).stat().st_size
    assert not list(relabel_folder(job, out, workers=ALONE))


def test_another_job_has_another_key(folder, tmp_path):
    job = job_of(folder)
    assert job.key == job_of(folder).key
    assert job.key != job_of(folder, "cartpole_balance").key
    os.utime(job.files[2], ns=(0, 0))
    assert job.key != job_of(folder).key


def test_a_second_run_of_the_same_job_shares_it(folder, tmp_path):
    out, job = tmp_path / "out", job_of(folder)
    for overwrite in (False, True):
        slow = relabel_folder(job, out, workers=ALONE, overwrite=overwrite)
        next(slow)
        assert len(list(relabel_folder(job, out, workers=ALONE, overwrite=overwrite))) == 5
        assert len(list(slow)) <= 4
        assert job.made(out) and len(list_episodes(out)) == 5 and beside(out) == ["out"]


def test_another_job_for_the_same_folder_is_not_mixed_in(folder, tmp_path):
    out, slow_job, fast_job = tmp_path / "out", job_of(folder), job_of(folder, "cartpole_balance")
    slow = relabel_folder(slow_job, out, workers=ALONE)
    next(slow)
    list(relabel_folder(fast_job, out, workers=ALONE))
    before = contents(out)
    with pytest.raises(UserError, match="out exists already.*finished files, 5, stay in .*out.relabel-"):
        list(slow)
    assert contents(out) == before and fast_job.made(out)
    list(relabel_folder(slow_job, out, workers=ALONE, overwrite=True))
    assert slow_job.made(out) and beside(out) == ["out"]


def test_what_is_no_folder_of_ours_is_not_replaced(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for overwrite, message in ((False, "exists already"), (True, "has no relabel.json")):
        with pytest.raises(UserError, match=message):
            list(relabel_folder(job_of(folder), out, workers=ALONE, overwrite=overwrite))
    assert beside(out) == ["out"]


def test_a_damaged_file_leaves_what_was_finished_for_the_next_run(folder, tmp_path):
    out = tmp_path / "out"
    bad = folder / "buffer" / "episode_000003_10.npz"
    bad.unlink()  # the link, not the episode
    bad.write_bytes(b"PK")
    job, before = job_of(folder), contents(folder)
    with pytest.raises(UserError, match="episode_000003_10.npz: bad.*finished files, 3, stay in .*also with --sk"):
        list(relabel_folder(job, out, workers=ALONE))
    (job.work_folder(out) / "skipped.txt").write_text("of a run that died")
    done = list(relabel_folder(job, out, workers=ALONE, skip_bad=True))
    assert sorted(done) == [False, True, True, True, True]
    assert (out / "skipped.txt").read_text().startswith(f"{bad}: bad episode file: it is truncated")
    assert len(list_episodes(out)) == 4 and beside(out) == ["out"]
    assert contents(folder) == before and not list(relabel_folder(job_of(folder), out, workers=ALONE, skip_bad=True))


def test_two_runs_that_skip_write_the_reasons_once_and_in_order(folder, tmp_path):
    out = tmp_path / "out"
    for index in (1, 3):
        bad = folder / "buffer" / f"episode_{index:06d}_10.npz"
        bad.unlink()
        bad.write_bytes(b"PK")
    slow = relabel_folder(job_of(folder), out, workers=ALONE, skip_bad=True)
    next(slow)
    list(relabel_folder(job_of(folder), out, workers=ALONE, skip_bad=True))
    list(slow)
    first, second = (out / "skipped.txt").read_text().splitlines()
    assert "episode_000001_10.npz" in first and "episode_000003_10.npz" in second and beside(out) == ["out"]


def test_a_place_that_cannot_be_written_is_said(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for out in (Path("/proc/x/y"), tmp_path / "file" / "out"):
        with pytest.raises(UserError, match=f"{out}: cannot be made .*; choose another place with --out"):
            list(relabel_folder(job_of(folder), out, workers=ALONE))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    steps = relabel_folder(job_of(folder), out, workers=ALONE)
    next(steps)
    monkeypatch.setattr(relabel_folder_module, "write_file", full)
    with pytest.raises(UserError, match="out.relabel-.*: No space left on device .finished files, 1, stay in"):
        list(steps)


def test_without_a_finished_file_nothing_stays(folder, tmp_path):
    with pytest.raises(UserError, match="episode_000000_10.npz: cannot relabel"):
        list(relabel_folder(job_of(folder, "cartpole_two_poles"), tmp_path / "out", workers=ALONE))
    assert not beside(tmp_path / "out")


@pytest.mark.parametrize("leaver", [0, 1])
@pytest.mark.parametrize("how", [KeyboardInterrupt, UserError])
def test_a_run_that_leaves_early_takes_nothing_from_another(folder, tmp_path, monkeypatch, leaver, how):
    bad = folder / "buffer" / "episode_000000_10.npz"
    bad.unlink()
    bad.write_bytes(b"PK")
    monkeypatch.setattr(relabel_folder_module.random, "sample", lambda files, _: files)
    out, job = tmp_path / "out", job_of(folder)

    def two_runs():
        runs = [relabel_folder(job, out, workers=ALONE, skip_bad=True) for _ in range(2)]
        assert [next(run) for run in runs] == [False, False] and not finished(job.work_folder(out))
        with pytest.raises(how):
            runs.pop(leaver).throw(how("stop"))
        return runs[0]

    last = two_runs()
    with pytest.raises(how):
        last.throw(how("stop"))
    assert not beside(out)
    assert list(two_runs()) == [True] * 4
    assert len(list_episodes(out)) == 4 and beside(out) == ["out"]


def test_a_work_folder_that_somebody_removes_is_named(folder, tmp_path):
    job = job_of(folder)
    steps = relabel_folder(job, tmp_path / "out", workers=ALONE)
    next(steps)
    shutil.rmtree(job.work_folder(tmp_path / "out"))
    with pytest.raises(UserError, match="was removed while this run was at work on it"):
        list(steps)


def start(folder, out, *arguments):
    command = [sys.executable, "-m", "ringrl.cli", "data", "relabel", folder, "--out", out, *arguments]
    command += ["--tasks", "cartpole_swingup"]
    return subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_runs_continue_and_two_at_once_make_one_folder(tmp_path):
    folder, out, serial = tmp_path / "cartpole" / "rnd", tmp_path / "out", tmp_path / "serial"
    write_files(folder / "buffer", 400, MANY)

    def begun() -> list[Path]:
        return list(tmp_path.glob("out.relabel-????????????????/buffer/*.npz"))

    run = start(folder, out, "--jobs", 2)
    wait_for(lambda: len(begun()) >= 10)
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.communicate()
    wait_for(lambda: all(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in children))
    done = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in begun()}
    assert 10 <= len(done) < MANY and not out.exists()

    runs = [start(folder, out, "--jobs", 1) for _ in range(2)]
    for each in runs:
        error = each.communicate(timeout=120)[1]
        assert (each.returncode, error) == (0, "")
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished(out)}
    assert len(after) == MANY and done.items() <= after.items()
    assert beside(out) == ["out"]

    assert start(folder, serial, "--jobs", 1).communicate()[1] == ""
    assert contents(out) == contents(serial)
