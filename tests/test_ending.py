"""How a process ends that is asked to: real processes, and real signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

# Takes the signals as the command line does, and says when it has come so far.
BEGIN = """
import ctypes, os, signal, sys, time, warnings
from pathlib import Path
from ringrl.ending import Stopped, finishing, last_words, leave, signals_taken
from ringrl.files import atomic_file, atomic_folder, clean_up
signal.signal(signal.SIGINT, signal.SIG_IGN if "ignore" in sys.argv else signal.default_int_handler)
sleep = ctypes.CDLL(None).sleep  # in C, as the compiler works: Python's own handlers wait for its end
def ready():
    print("ready", flush=True)
with signals_taken(clean_up):
"""


def run(body: str, folder, *signals: int, wait: float = 0.0, arguments=()) -> tuple[int, str, str, float]:
    """Status, what was printed after `ready`, what was complained of, and the seconds from the last signal on."""
    code = BEGIN + "".join(f"    {line}\n" for line in body.splitlines())
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = b""  # byte by byte, for `communicate` does not find what a file object has read ahead
            while not said.endswith(b"\n") and (byte := os.read(process.stdout.fileno(), 1)):
                said += byte
            assert said == b"ready\n", process.communicate()
            for index, number in enumerate(signals):
                time.sleep(wait if index else 0.1)
                process.send_signal(number)
            began = time.monotonic()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, out, err, time.monotonic() - began


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_ends_at_once_with_nothing_half_written(number, status, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "marker").write_text("old")
    body = """
with atomic_file(Path("file")) as file, atomic_folder(Path("old"), marker="marker", overwrite=True) as folder:
    file.write_text("half")
    (folder / "marker").write_text("half")
    with last_words(lambda why: Path("why").write_text(why)):
        ready()
        sleep(50)
print("not reached")
"""
    ended, out, err, seconds = run(body, tmp_path, number)
    name = signal.Signals(number).name
    assert (ended, out, err) == (status, "", f"ringrl: interrupted by {name}\n")
    assert seconds < 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "why"]
    assert (tmp_path / "old" / "marker").read_text() == "old"
    assert (tmp_path / "why").read_text() == f"interrupted by {name}"


def test_between_two_renames_the_old_folder_is_put_back(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "marker").write_text("old")
    body = """
rename = Path.rename
def stop_after(self, target):
    rename(self, target)
    Path.rename = rename
    ready()
    sleep(50)
with atomic_folder(Path("old"), marker="marker", overwrite=True) as folder:
    (folder / "marker").write_text("new")
    Path.rename = stop_after
"""
    ended, _, _, _ = run(body, tmp_path, signal.SIGTERM)
    assert ended == 143
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "marker").read_text() == "old"


FINISHING = """
try:
    with finishing("a step") as asked:
        ready()
        for _ in range(1000):
            time.sleep(0.02)
            if asked() and "never" not in sys.argv:
                raise Stopped(asked(), "stopped well")
except Stopped as stopped:
    print(stopped.message, flush=True)
    leave(stopped.status)
"""


LOOKS_LATER = FINISHING.replace("0.02", "0.5")  # when all signals have been sent


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_is_being_finished_is_finished(number, status, tmp_path):
    # The same signal again at once: a launcher hands on what the terminal has sent as well.
    ended, out, err, _ = run(LOOKS_LATER, tmp_path, number, number)
    assert (ended, out) == (status, "stopped well\n")
    assert err == f"ringrl: {signal.Signals(number).name}: finishing a step, then stopping; Ctrl-C ends it at once\n"


def test_signals_that_interrupt_each_others_handlers_only_ask_too(tmp_path):
    """A hundred at once: the handler of one interrupts that of another at any place."""
    ended, out, err, _ = run(LOOKS_LATER, tmp_path, *[signal.SIGINT] * 100)
    assert (ended, out, err.count("\n")) == (130, "stopped well\n", 1)


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    ended, out, err, seconds = run(FINISHING, tmp_path, signal.SIGTERM, signal.SIGINT, wait=1.2, arguments=["never"])
    assert (ended, out, err.count("\n")) == (130, "", 2) and err.endswith("ringrl: interrupted by SIGINT\n")
    assert seconds < 15


def test_work_that_did_not_look_stops_at_its_end(tmp_path):
    body = FINISHING.replace("range(1000)", "range(30)")
    ended, out, _, _ = run(body, tmp_path, signal.SIGTERM, arguments=["never"])
    assert (ended, out) == (143, "interrupted by SIGTERM\n")


def test_what_ignores_ctrl_c_goes_on_ignoring_it(tmp_path):
    body = "ready()\ntime.sleep(0.5)\nprint('went on')"
    assert run(body, tmp_path, signal.SIGINT, arguments=["ignore"])[:3] == (0, "went on\n", "")


def test_a_forked_child_ends_by_signals_as_any_process(tmp_path):
    body = """
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
child = os.fork()
if not child:
    time.sleep(50)
    os._exit(0)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
ready()
print(os.waitpid(child, 0)[1])
"""
    assert run(body, tmp_path)[:3] == (0, f"{int(signal.SIGTERM)}\n", "")


def test_afterwards_the_signals_are_as_before():
    from ringrl.ending import signals_taken

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with signals_taken(lambda: None):
        assert signal.getsignal(signal.SIGTERM) != before[0]
        assert os.getpid()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
