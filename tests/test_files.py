import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.files import alone_in, atomic_file, atomic_folder, user_path, write_text
from ringrl.formats.exorl import list_episodes, write_episode
from ringrl.run import RunDirectory
from ringrl.store.episode_store import build, open_store

PARTIAL = f"out.partial-{platform.node()}-"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_at_the_end(tmp_path):
    with atomic_folder(tmp_path / "deep" / "out", marker="m.json") as partial:
        (partial / "m.json").touch()
        assert names(tmp_path / "deep") == [".out.lock", f"{PARTIAL}{os.getpid()}"]
    assert names(tmp_path / "deep") == ["out"] and names(tmp_path / "deep" / "out") == ["m.json"]


def test_the_second_to_make_a_folder_is_refused_at_once(tmp_path):
    with atomic_folder(tmp_path / "out", marker="m.json", overwrite=True):
        with pytest.raises(UserError, match=rf"/out: in use by process {os.getpid()} on .*; wait for it to end"):
            with atomic_folder(tmp_path / "out", marker="m.json", overwrite=True):
                pytest.fail("never entered")
    assert names(tmp_path) == ["out"]


def test_partial_folders_of_dead_processes_are_removed_and_those_of_the_living_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        for name in (f"{PARTIAL}{dead.pid}", f"{PARTIAL}{os.getpid()}"):
            (tmp_path / name).mkdir()
        kept = [f"{PARTIAL}{alive.pid}", f"{PARTIAL}mine", f"out.partial-elsewhere-{dead.pid}"]
        kept.append(PARTIAL.replace("out", "other") + str(dead.pid))
        for name in kept:
            (tmp_path / name).mkdir()
        with atomic_folder(tmp_path / "out", marker="m.json"):
            pass
        assert names(tmp_path) == sorted(["out", *kept])
        alive.communicate(b"\n")


def test_replacing_keeps_the_old_folder_until_the_new_one_is_whole(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.json").write_text("old")
    with pytest.raises(UserError, match="exists already"), atomic_folder(out, marker="m.json"):
        pytest.fail("never entered")
    with pytest.raises(RuntimeError), atomic_folder(out, marker="m.json", overwrite=True):
        raise RuntimeError
    assert (out / "m.json").read_text() == "old"
    with atomic_folder(out, marker="m.json", overwrite=True) as partial:
        (partial / "m.json").write_text("new")
        assert (out / "m.json").read_text() == "old"
    assert (out / "m.json").read_text() == "new" and names(tmp_path) == ["out"]


def test_a_folder_that_another_made_meanwhile_stays(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="exists already"), atomic_folder(out, marker="m.json"):
        out.mkdir()
        (out / "m.json").write_text("another's")
    assert (out / "m.json").read_text() == "another's" and names(tmp_path) == ["out"]


def test_a_place_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out: cannot be written"):
        with atomic_folder(tmp_path / "file" / "out", marker="m.json"):
            pytest.fail("never entered")


def test_what_is_replaced_comes_back_if_the_new_folder_cannot_take_its_place(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.json").write_text("old")
    rename = Path.rename

    def failing(path, target):
        if Path(target) == out and not path.name.endswith("-old"):
            raise OSError("disk")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk"), atomic_folder(out, marker="m.json", overwrite=True):
        pass
    assert (out / "m.json").read_text() == "old" and names(tmp_path) == ["out"]


def test_what_stepped_aside_for_a_process_that_died_comes_back(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    aside = tmp_path / f"{PARTIAL}{dead.pid}-old"
    aside.mkdir()
    (aside / "m.json").write_text("old")
    with pytest.raises(UserError, match="exists already"), atomic_folder(tmp_path / "out", marker="m.json"):
        pytest.fail("never entered")
    assert (tmp_path / "out" / "m.json").read_text() == "old" and names(tmp_path) == ["out"]


def test_a_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []
    with atomic_file(path) as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == ".txt" and temporary.parent == tmp_path and not path.exists()
    assert path.read_text() == "whole" and names(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path, staging = tmp_path / "a.txt", tmp_path / "staging"
    staging.mkdir()
    with atomic_file(path) as one, atomic_file(path, staging=staging) as two:
        assert one != two and two.parent == staging
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one" and names(tmp_path) == ["a.txt", "staging"] and not names(staging)
    write_text(path, "ä", staging=staging)
    assert path.read_bytes() == "ä".encode()


def test_temporary_files_of_dead_processes_are_removed_and_those_of_the_living_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    prefix = f".partial-{platform.node()}-"
    with (
        atomic_file(tmp_path / "a.txt") as mine,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive,
    ):
        mine.touch()
        kept = [f"{prefix}{alive.pid}-0123-a", ".partial-elsewhere-1-0123-a", ".partial-012345-a", ".index.html.12"]
        swept = [f"{prefix}{dead.pid}-0123-a", f"{prefix}{os.getpid()}-0123-a", ".partial-old-a", ".index.html.34"]
        for name in kept + swept:
            (tmp_path / name).touch()
        for name in swept[2:]:
            os.utime(tmp_path / name, (0, 0))
        with alone_in(tmp_path):
            assert names(tmp_path) == sorted([*kept, mine.name, ".lock"])
        alive.communicate(b"\n")


def test_paths_in_the_home_folder_are_found_by_all_that_take_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a" and user_path("~nobody-here/a") == Path("~nobody-here/a")
    episode = Episode.from_arrays(np.zeros((3, 1)), np.zeros((2, 1)), np.ones(2), terminated=True)
    assert build("~/stores/rig", [episode], domain="rig") == tmp_path / "stores" / "rig"
    assert open_store("~/stores/rig").path == tmp_path / "stores" / "rig"
    path = write_episode(tmp_path / "files", 0, episode)
    assert list_episodes("~/files") == [path]
    assert RunDirectory("~/runs/a").path == tmp_path / "runs" / "a"


@pytest.mark.parametrize("url", ["gs://bucket/run", Path("s3://bucket/run")], ids=str)  # a Path has one of its slashes
def test_a_url_is_no_folder(url):
    with pytest.raises(UserError, match=r"^(gs://|s3:/)bucket/run: is a URL, and a file or folder is needed here"):
        user_path(url)
