"""Trackers: what they are shown, what becomes of a training whose tracker fails, and whose modules are imported."""

import json
import logging
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from ringrl import trust
from ringrl.agent import AgentDescription
from ringrl.config import load_config
from ringrl.ending import Stopped
from ringrl.errors import UserError
from ringrl.run import RunDirectory
from ringrl.training import start
from ringrl.training.checkpoint_files import steps_of
from ringrl.training.start import train
from ringrl.training.tracker_group import TrackerGroup

OWN = """
import json
from pathlib import Path

Path("was_imported").touch()

class Lines:
    def begin(self, run, config, step):
        self.file = (run / "lines").open("a")
        self.write("begin", step, config["training"]["steps"])

    def log(self, step, values):
        self.write(step, values)

    def end(self, status):
        self.write("end", status)
        self.file.close()

    def write(self, *values):
        self.file.write(json.dumps(values) + chr(10))

class NoEnd:
    begin = log = None

class Refusing(Lines):
    def begin(self, run, config, step):
        raise ConnectionError("no such host")
"""
NAMES = iter(range(1000))


class Shown:
    """A tracker that remembers what it is shown, and raises where it is asked to."""

    def __init__(self, raises=(), error=RuntimeError):
        self.calls, self.raises, self.error = [], raises, error

    def _call(self, name, *values):
        self.calls.append((name, *values))
        if name in self.raises:
            raise self.error(f"{name} of\nmine")

    def begin(self, run, config, step):
        self._call("begin", run, config, step)

    def log(self, step, values):
        self._call("log", step, values)
        values.clear()  # its own copy

    def end(self, status):
        self._call("end", status)


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    """The name of a module in the working folder, which this process does not know yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(trust, "_accepted", set())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    module = f"own_trackers_{next(NAMES)}"
    Path(f"{module}.py").write_text(OWN)
    return module


@pytest.fixture(scope="module")
def config(tiny_config):
    return lambda *names, **training: tiny_config(
        {"name": "behavior_cloning"}, training={"steps": 3, "trackers": list(names), **training}
    )


def metrics(run: Path) -> list[tuple[int, dict[str, float]]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line.pop("step"), {name: line[name] for name in line if name != "crc32"}) for line in lines]


def test_every_tracker_is_shown_every_line(own, config):
    shown = Shown()
    run = train(config(f"{own}:Lines"), out="run", trackers=[shown])
    (_, path, settings, step), *logged, end = shown.calls
    assert (path, step, end) == (run, 0, ("end", "finished")) and settings == RunDirectory(run).settings()
    lines = [json.loads(line) for line in (run / "lines").read_text().splitlines()]
    assert lines[0] == ["begin", 0, 3] and lines[-1] == ["end", "finished"]
    assert [tuple(line) for line in lines[1:-1]] == metrics(run) and len(logged) == 3
    assert not (run / "tensorboard").exists()  # it was not named
    resumed = train(None, "training.steps=4", resume=run, trackers=[shown])
    assert shown.calls[5][3] == 3 and [step for step, _ in metrics(resumed)] == [1, 2, 3, 4]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_tracker_that_fails_is_a_warning_and_the_training_goes_on(own, config, error, caplog):
    failing, other = Shown(raises=("log", "end"), error=error), Shown()
    run = train(config(), out="run", trackers=[failing, other])
    assert [call[0] for call in failing.calls] == ["begin", "log", "end"]
    assert [call[0] for call in other.calls] == ["begin", "log", "log", "log", "end"]
    assert [step for step, _ in metrics(run)] == [1, 2, 3] and steps_of(run / "checkpoints") == [3]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"trackers[0] (Shown): failed at step 1 ({error.__name__}: log of mine); the training goes on without it",
        f"trackers[0] (Shown): failed at its end ({error.__name__}: end of mine); the run itself is whole",
        "trackers[0] (Shown): has nothing from step 1 on; metrics.jsonl has it",
    ]


def test_one_that_cannot_begin_ends_the_training_before_its_first_step(own, config):
    other, name = Shown(), f"{own}:Refusing"
    with pytest.raises(UserError, match=rf"trackers: {name}: cannot begin \(ConnectionError: no such host\); correct"):
        train(config(f"{own}:Lines", name), out="run", trackers=[other])
    assert json.loads(Path("run/lines").read_text().splitlines()[-1]) == ["end", "failed"] and not other.calls
    train(config(), out="run")  # the name is free, for nothing was kept


@pytest.mark.parametrize("raised, status", [(Stopped(15, ""), "stopped"), (KeyboardInterrupt(), "stopped"),
                                            (FloatingPointError(), "failed"), (None, "finished")])  # fmt: skip
def test_it_is_given_how_the_training_ended(raised, status, tmp_path):
    shown = Shown()
    try:
        with TrackerGroup(own=[shown]).watching(RunDirectory(tmp_path), 7):
            if raised is not None:
                raise raised
    except type(raised) as error:
        assert error is raised
    assert shown.calls == [("begin", tmp_path, {}, 7), ("end", status)]


@pytest.mark.parametrize("name, said", [
    ("nowhere_at_all:Lines", "cannot import nowhere_at_all .*; install it, or run where it lies"),
    ("OWN:Missing", "OWN has no class Missing"),
    ("OWN:NoEnd", "is no tracker; it must be an object with the methods begin, log and end"),
    ("OWN:Path.home", "`training.trackers.0`: no tracker 'OWN:Path.home'; there are tensorboard, wandb, and yours"),
    ("tensorbord", "no tracker 'tensorbord'"),
])  # fmt: skip
def test_a_wrong_name_is_one_line_before_the_data_are_read(own, config, name, said):
    with pytest.raises(UserError, match=said.replace("OWN", own)):
        train(config().model_dump(mode="json"), f"training.trackers=[{name.replace('OWN', own)}]", "data.store=nowhere")
    assert not Path("runs").exists()


def test_an_object_that_is_no_tracker_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"trackers\[0\] \(type\): is no tracker"):
        train(config(), out=tmp_path / "run", trackers=[Shown])


def test_a_module_that_a_strangers_run_names_is_not_imported(own, config, monkeypatch):
    run, name = RunDirectory("run"), f"{own}:Lines"
    run.write(config(name), {"returns": [1.0]}, None, AgentDescription("Theirs", across_trials=False))
    assert run.config()  # evaluation and export import no tracker
    with pytest.raises(UserError, match=rf"{own}.py: is a program .* \({name} of a run would import it\)"):
        train(resume="run")
    begins = partial(start._settings, None, out=None, resume="run")
    begins(("training.trackers=[]",))
    with pytest.raises(UserError, match="is a program"):
        begins(("training.steps=4",))
    with trust.trusting(True):
        begins(())
    run.write(config(), {"returns": [1.0]}, None, AgentDescription("Theirs", across_trials=False))
    begins((f"training.trackers=[{name}]",))  # who names it gives it
    run.write(config(name), {"returns": [1.0]}, None, AgentDescription("Theirs", across_trials=False))
    begins(())  # and is not asked later
    assert own not in sys.modules and not Path("was_imported").exists()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """W&B, which sends nothing and keeps its own files in the test's folder."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    yield wandb
    wandb.teardown()


def records(file: Path):
    """What a small file of W&B's says: records after a head of 7 bytes, each with its checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at = file.read_bytes(), 7
    while at < len(data):
        end = at + 7 + int.from_bytes(data[at + 4 : at + 6], "little")
        yield Record.FromString(data[at + 7 : end])
        at = end


def test_wandb_is_shown_the_config_the_lines_and_the_end_and_goes_on_with_its_run(own, config, offline):
    run = RunDirectory("run")
    run.write(config("wandb"), {"returns": [1.0]}, None, AgentDescription("Mine", across_trials=False))
    for begins, ended in ((0, pytest.raises(Stopped)), (2, nullcontext())):
        group = TrackerGroup(["wandb"])
        with ended, group.watching(run, begins):
            for step in (begins + 1, begins + 2):
                group.log(step, {"loss": 1 / step})
            if not begins:
                raise Stopped(15, "")
    offline.teardown()  # W&B's own process writes its files to the end
    files = sorted(run.wandb.glob("offline-run-*/*.wandb"))
    logs = [list(records(file)) for file in files]
    begun = [next(record.run for record in log if record.HasField("run")) for log in logs]
    assert begun[0].run_id == begun[1].run_id and {each.project for each in begun} == {"ringrl"}
    settings = {each.key: json.loads(each.value_json) for each in begun[0].config.update}
    assert settings["training"] == run.settings()["training"]
    shown = [{i.key or i.nested_key[0]: i.value_json for i in r.history.item} for log in logs for r in log]
    assert [(line["_step"], json.loads(line["loss"])) for line in shown if line] == [
        (str(step), 1 / step) for step in (1, 2, 3, 4)
    ]
    assert [r.exit.exit_code for log in logs for r in log if r.HasField("exit")] == [1, 0]
    said = [json.loads(i.value_json) for log in logs for r in log for i in r.summary.update if i.key == "status"]
    assert said == ["stopped", "finished"]


def test_wandb_that_is_not_installed_is_one_line(config, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb: is not installed; pip install 'ringrl\[wandb\]', or leave it out"):
        train(config("wandb"), out=tmp_path / "run")


def test_the_default_is_tensorboard_and_a_runs_name_does_not_say_it(own):
    assert load_config("demo_bc", ("data.store=s",)).training.trackers == ("tensorboard",)
