"""Locks: one process at a time, free when it is dead, and who has it is said."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ringrl.errors import UserError
from ringrl.locks import exclusive

LOCK = """
import os, sys, time
from pathlib import Path
from ringrl.locks import exclusive
with exclusive(Path(sys.argv[1])):
    if not sys.argv[2:] or os.fork() == 0:  # the child, once it runs and has let go of what it got of its parent
        print("locked", flush=True)
    time.sleep(60)
"""


@contextmanager
def process_with(lock, *more):
    """A process that has the lock, and in whose process group its child is."""
    command = [sys.executable, "-c", LOCK, lock, *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as owner:
        try:
            assert owner.stdout is not None and owner.stdout.readline() == "locked\n"
            yield owner
        finally:
            with suppress(ProcessLookupError):
                os.killpg(owner.pid, signal.SIGKILL)


@pytest.mark.parametrize("more", [(), ("fork",)], ids=["alone", "its child lives on"])
def test_one_process_has_a_lock_and_a_killed_one_no_longer(tmp_path, more):
    lock = tmp_path / ".lock"
    with process_with(lock, *more) as owner:
        who = rf"{owner.pid} on {platform.node()}"
        expected = rf"^{tmp_path}: in use by process {who} since \d{{4}}-\d\d-\d\d .*; wait for"
        with pytest.raises(UserError, match=expected), exclusive(lock, of=tmp_path):
            pytest.fail("never entered")
        assert lock.exists()
        owner.kill()
        owner.wait()
        with exclusive(lock):
            assert lock.exists()
        assert not lock.exists()


def test_of_many_at_once_one_at_a_time_has_the_lock(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(200):
            try:
                with exclusive(tmp_path / "deep/x.lock"):
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
    assert max(most) == 1 and not list(tmp_path.rglob("*.lock"))


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


def test_folders_are_made_and_only_empty_ones_removed(tmp_path):
    with exclusive(tmp_path / "a/b/x.lock"):
        assert (tmp_path / "a/b/x.lock").exists()
    assert not (tmp_path / "a").exists()
    with exclusive(tmp_path / "a/b/x.lock"):
        (tmp_path / "a/kept").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="file/x.lock: cannot be written"), exclusive(tmp_path / "file/x.lock"):
        pytest.fail("never entered")
    with pytest.raises(UserError, match="link: (is a link to nothing|cannot be written)"):
        with exclusive(tmp_path / "link/x.lock", of=tmp_path / "link"):
            pytest.fail("never entered")


def test_where_no_folder_can_be_made_it_is_not_tried_for_ever(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with (
        pytest.raises(UserError, match="runs/a: cannot be written"),
        exclusive(Path("runs/a/.lock"), of=Path("runs/a")),
    ):
        pytest.fail("never entered")
    monkeypatch.chdir(tmp_path)


def test_a_file_system_without_locks_keeps_nobody_out_and_says_so(tmp_path, monkeypatch, caplog):
    def unsupported(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with exclusive(tmp_path / "x.lock"), exclusive(tmp_path / "x.lock"):
        assert os.listdir(tmp_path) == ["x.lock"]
    assert "no locks on this file system (No locks available)" in caplog.text
