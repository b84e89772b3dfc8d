import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ringrl.errors import UserError
from ringrl.files import atomic_file, atomic_folder, exclusive, write_text

PARTIAL = f"out.partial-{platform.node()}-"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_at_the_end(tmp_path):
    with atomic_folder(tmp_path / "deep" / "out", marker="m.json") as partial:
        (partial / "m.json").touch()
        assert names(tmp_path / "deep") == [f"{PARTIAL}{os.getpid()}"]
    assert names(tmp_path / "deep") == ["out"] and names(tmp_path / "deep" / "out") == ["m.json"]


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
    with pytest.raises(UserError, match=r"file/out: cannot be made"):
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


LOCK = """
import sys, time
from pathlib import Path
from ringrl.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_one_process_holds_a_lock_and_a_killed_one_no_longer(tmp_path):
    lock = tmp_path / "x.lock"
    owner = subprocess.Popen([sys.executable, "-c", LOCK, lock], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match="another process is at work on this"), exclusive(lock):
        pass
    owner.kill()
    owner.communicate()
    with exclusive(lock):
        assert lock.exists()
    assert not lock.exists()


def test_of_many_at_once_one_at_a_time_holds_the_lock(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(200):
            try:
                with exclusive(tmp_path / "x.lock"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except UserError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and not (tmp_path / "x.lock").exists()


def test_a_lock_that_is_waited_for_comes_when_it_is_free(tmp_path):
    order = []

    def wait():
        with exclusive(tmp_path / "x.lock", wait=True):
            order.append("waiter")

    with exclusive(tmp_path / "x.lock"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        waiter.join(0.2)
        order.append("first")
    waiter.join()
    assert order == ["first", "waiter"] and not (tmp_path / "x.lock").exists()


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="x.lock: cannot be written"), exclusive(tmp_path / "nowhere/x.lock"):
        pass


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
