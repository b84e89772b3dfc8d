"""A disk that takes no more is one line with the place. A limit of the size of files is one that every system has."""

import errno
import os
import subprocess
import sys

import pytest

from ringrl import files, recipes
from ringrl.card import card_page
from ringrl.cli.run_verbs import ExportVerb
from ringrl.errors import UserError, unwritable
from ringrl.files import check_room, write_text
from ringrl.formats.exorl import write_episode
from ringrl.reporting.page import report_page
from ringrl.run import RunDirectory
from ringrl.training.checkpoint_files import steps_of
from ringrl.training.start import train
from ringrl.training.tracker import MetricsLog
from tests.builders import make_episode, write_run

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from ringrl.cli.entry import main
sys.argv = ["ringrl", *sys.argv[1:]]
main()
"""


def test_a_store_that_does_not_fit_is_one_line_and_leaves_nothing(tmp_path):
    for index in range(2):
        write_episode(tmp_path / "cartpole" / "rnd" / "buffer", index, make_episode(4000, widths=(5, 1, 1, 4)))
    command = ["data", "build_store", "cartpole/rnd", "--out", "stores/new", "--relabel", "recorded"]
    command += ["--tasks", "cartpole_swingup"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "cannot be written (File too large)" in line, line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cartpole"]


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (ValueError("RESOURCE_EXHAUSTED: \"a\": Failed to write [os_error_code='28']"), "No space left on device"),
        (RuntimeError("I/O error: full (os error 28)"), "No space left on device"),
        (ValueError("two\nlines"), "two lines"),
        (ValueError(), "ValueError"),
    ],
    ids=str,
)
def test_the_reason_is_the_systems_where_it_is_known(tmp_path, error, reason):
    expected = f"{tmp_path}: cannot be written ({reason}); make room there, or choose another place"
    assert str(unwritable(tmp_path, error)) == expected


def test_a_file_that_cannot_be_written_is_named_as_it_would_be_called(tmp_path):
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "nowhere" / "a.json", "x")
    assert caught.value.filename == str(tmp_path / "nowhere" / "a.json")


def worked(*_, **__):
    raise AssertionError("it began to work")


def report(out, store, patch):
    patch.setattr(report_page, "analyse", worked)
    run = out.parents[1] / "run"
    report_page.write_report(run if run.exists() else write_run(run), out)


def card(out, store, patch):
    patch.setattr(card_page, "describe", worked)
    card_page.write_card(store, out)


def export(out, store, patch):
    patch.setattr(RunDirectory, "config", lambda run: None)
    patch.setattr(RunDirectory, "dataset", lambda run: {"sizes": {}})
    patch.setattr("ringrl.training.trained_model.load_model", worked)
    run = out.parents[1] / "run"
    run.mkdir(exist_ok=True)
    ExportVerb(run, out).run()


def lines(out, store, patch):
    step = recipes.load("data", "line_retrieval")
    patch.setattr(step, "write_document", worked)
    step.main(step.Args(out / "lines.npy"))


@pytest.mark.parametrize("step", [report, card, export, lines])
def test_what_cannot_be_written_is_said_before_the_work(step, tiny_store, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"file/out.* \((Not a directory|File exists)\)"):
        step(tmp_path / "file" / "out", tiny_store, monkeypatch)
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    with pytest.raises(AssertionError, match="it began to work"):  # without the fault it is what is called
        step(tmp_path / "file" / "out", tiny_store, monkeypatch)
    assert step is lines or not list((tmp_path / "file").iterdir())  # neither a folder nor a lock is left


def test_a_full_disk_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))
    with pytest.raises(UserError, match=r"new: cannot be written \(No space left on device\)"):
        check_room(tmp_path / "new")


def test_a_disk_that_is_full_while_training_is_one_line_and_the_last_checkpoint_stays(tiny_config, tmp_path):
    run, sections = tmp_path / "run", {"training": {"steps": 2, "checkpoint_every": 2, "log_every": 1}}
    train(tiny_config({"name": "behavior_cloning"}, **sections), out=run)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.replace("20_000", "8_000"), "train", "--resume", str(run), "training.steps=6"],
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (line,) = [line for line in done.stderr.splitlines() if "ringrl" in line]
    assert done.returncode == 2 and "checkpoints: cannot be written (File too large); make room there" in line, line
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr  # XLA may say that it is slow
    assert steps_of(run / "checkpoints") == [2] and sorted(os.listdir(run / "checkpoints")) == ["2"]
    train(None, "training.steps=6", resume=run, strict=True)
    assert steps_of(run / "checkpoints")[-1] == 6


def test_a_line_of_metrics_that_cannot_be_written_names_the_file(tmp_path, monkeypatch):
    with MetricsLog(tmp_path, 9, 0, "run") as tracker:
        tracker.log(1, {"loss": 1.0, "tokens_per_s": 1.0})
        tracker._file.close()
        monkeypatch.setattr(tracker, "_file", open("/dev/full", "wb"))
        for step in (2, 3):
            with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(No space left on device\)"):
                tracker.log(step, {"loss": 1.0, "tokens_per_s": 1.0})
