"""A training that is asked to stop keeps its last step, and comes to the same end; Ctrl-C is no crash."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ringrl.ending import Stopped, signals_taken
from ringrl.training import loop
from ringrl.training.start import train
from ringrl.training.tracker import MetricsLog

STEPS = 40


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(run)]


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config({"name": "behavior_cloning"}, training={"steps": STEPS, "log_every": 1, "checkpoint_every": 15})


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    return losses(train(config, out=tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture(autouse=True)
def not_ignored():
    """Where pytest runs in the background, SIGINT may be ignored, also by its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(monkeypatch, number: int, at: int) -> None:
    """Send this process a signal when the step `at` is logged, and let the thread that takes signals see it."""
    log = MetricsLog.log

    def logged(self, step, values):
        log(self, step, values)
        if step == at:
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    monkeypatch.setattr(MetricsLog, "log", logged)


@pytest.mark.parametrize("number, at", [(signal.SIGTERM, 7), (signal.SIGINT, 15), (signal.SIGTERM, STEPS)])
def test_it_is_kept_to_the_step_and_goes_on_to_the_same_end(number, at, config, whole, monkeypatch, tmp_path):
    run = tmp_path / "run"
    interrupt(monkeypatch, number, at)
    with signals_taken(lambda: None), pytest.raises(Stopped) as stopped:
        train(config, out=run)
    assert stopped.value.status == 128 + number
    assert stopped.value.message == (
        f"{run}: stopped after step {at} of {STEPS}, which is kept; go on with `ringrl train --resume {run}`"
    )
    assert losses(run) == whole[:at]
    assert max(int(path.name) for path in (run / "checkpoints").iterdir()) == at
    assert not (run / ".lock").exists()
    monkeypatch.undo()
    train(resume=run)
    assert losses(run) == whole


def test_before_the_first_step_nothing_is_waited_for(config, monkeypatch, tmp_path):
    """Compiling may take longer than a batch system waits, and there is nothing to keep."""

    def refused():
        raise RuntimeError([line["step"] for line in lines(tmp_path / "run")])

    monkeypatch.setattr(loop, "stopping_point", refused)
    with pytest.raises(RuntimeError, match=r"^\[1\]$"):
        train(config, out=tmp_path / "run")


def test_td3_stops_between_two_compiled_calls(config, monkeypatch, tmp_path):
    settings = {
        "data": config.data.model_dump(),
        "agent": {"name": "td3", "hidden": [8, 8]},
        "training": {"steps": 30, "log_every": 10},
    }
    interrupt(monkeypatch, signal.SIGTERM, 20)
    with signals_taken(lambda: None), pytest.raises(Stopped, match="stopped after step 20 of 30"):
        train(settings, out=tmp_path / "run")


@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.0])
def test_ctrl_c_while_it_starts_is_one_line(seconds, tmp_path):
    command = [sys.executable, "-m", "ringrl.cli", "train", "demo_bc", "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            time.sleep(seconds)
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    interrupted = process.returncode == 130 and err == "ringrl: interrupted by SIGINT\n"
    early = process.returncode == -signal.SIGINT  # Python itself was still starting
    ended = process.returncode == 2 and re.match("ringrl: .*does not exist", err)
    assert interrupted or early or ended, (process.returncode, err)
    assert not (tmp_path / "run").exists()
