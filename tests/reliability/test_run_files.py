"""The files of a run: what has changed is named, what a kill tore apart is put together, and a log stops nothing."""

import json
import os
import shutil

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.manifest import MANIFEST, check
from ringrl.metrics_lines import format_line, parse_line
from ringrl.reporting.statistics.evaluated_run import read_run
from ringrl.returns import TrialReturn
from ringrl.run import RunDirectory
from ringrl.training.loop import run_training
from ringrl.training.start import train
from tests.builders import write_run


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    run_training(tiny_config({"name": "behavior_cloning"}, training={"steps": 2, "checkpoint_every": 1}), path)
    return path


@pytest.fixture
def run(trained, tmp_path):
    return RunDirectory(shutil.copytree(trained, tmp_path / "run"))


def read(run: RunDirectory) -> tuple:
    """All that evaluation, resuming and export read of a run but its checkpoints."""
    scales = run.normalizer()
    config, means = run.config(), (scales.observation_mean.tolist(), scales.observation_std.tolist())
    return config, run.dataset(), run.label(), run.tokens, means, scales.reward_scale, list(run.metrics())


def test_a_flipped_bit_of_any_file_is_noticed(run):
    rng, whole = np.random.default_rng(0), read(run)
    files = [run.config_file, run.record_file, run.dataset_file, run.normalizer_file, run.agent_file, run.metrics_file]
    assert check(run.path) and {path.name for path in files[:5]} <= set((run.path / MANIFEST).read_text().split())
    for path in files:
        body = path.read_bytes()
        for index in rng.integers(0, len(body), 20):
            path.write_bytes(body[:index] + bytes([body[index] ^ 2 ** rng.integers(8)]) + body[index + 1 :])
            if path == run.metrics_file:  # a space, or the name of the checksum, may change without harm
                try:
                    assert [{**line, **known} for line, known in zip(run.metrics(), whole[-1], strict=False)]
                except UserError:
                    pass
                continue
            with pytest.raises(UserError, match=f"{path.name}: (has changed since it was written|was changed)"):
                read(run)
        path.write_bytes(body)
    assert read(run) == whole


def test_a_change_of_ones_own_is_accepted_where_its_line_is_deleted(run):
    text = run.config_file.read_text().replace("trials: 2", "trials: 3")
    run.config_file.write_text(text)
    with pytest.raises(UserError, match=f"config.yaml: has changed .*, delete its line in {run.path}/{MANIFEST}"):
        run.config()
    lines = (run.path / MANIFEST).read_text().splitlines(keepends=True)
    (run.path / MANIFEST).write_text("".join(line for line in lines if "config.yaml" not in line))
    assert run.config().evaluation.trials == 3


def test_a_run_whose_hashes_were_lost_is_said_to_be_cut_off(run):
    (run.path / MANIFEST).unlink()
    with pytest.raises(UserError, match=f"its {MANIFEST} is missing: a copy that was cut off"):
        run.config()


def rows(value: float) -> list[TrialReturn]:
    return [TrialReturn("a", "t", 0, 0, 0, value, 10, float("nan"))]


def test_a_table_and_its_settings_are_of_one_evaluation(run, monkeypatch):
    """Killed before the n-th rename, for every n."""
    replace, seen = os.replace, []
    for kill_before in range(6):
        tables = RunDirectory(run.path, f"task{kill_before}")
        tables.write_table("returns", rows(1.0), {"trials": 1})
        count = 0

        def killing(source, target, kill_before=kill_before):
            nonlocal count
            if count == kill_before:
                raise KeyboardInterrupt
            count += 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killing)
            try:
                tables.write_table("returns", rows(2.0), {"trials": 2})
            except KeyboardInterrupt:
                pass
        seen.append((tables.read_table()[0].return_, tables.table_settings()["trials"]))
        with tables.writing_tables(["returns"]):
            assert (tables.read_table()[0].return_, tables.table_settings()["trials"]) == seen[-1]
        left = sorted(path.name for path in tables.evaluation.iterdir())
        assert left == [MANIFEST, "evaluation.json", "returns.csv"]
    assert seen == [(1.0, 1)] * 3 + [(2.0, 2)] * 3


def test_a_report_reads_no_table_with_the_settings_of_another(tmp_path, monkeypatch):
    path = write_run(tmp_path / "run")
    tables = RunDirectory(path)
    read_table, ended = RunDirectory.read_table, []

    def ending(self, name="returns"):
        found = read_table(self, name)
        if not ended:  # an evaluation ends while the report reads
            ended.append(tables.write_table("returns", rows(5.0), {"trials": 1, "envs": 1}))
        return found

    monkeypatch.setattr(RunDirectory, "read_table", ending)
    found = read_run(path)
    assert (found.returns[0].return_, found.evaluation["trials"]) == (5.0, 1)


def test_a_damaged_log_does_not_stop_a_run_from_going_on(run, caplog):
    lines = run.metrics_file.read_bytes().splitlines(keepends=True)
    damaged = lines[0].replace(b'"step": 1', b'"step": 1, "lo\xff": 3')
    run.metrics_file.write_bytes(damaged + lines[0].replace(b'"loss": ', b'"loss": 1') + lines[1])
    with pytest.raises(UserError, match="metrics.jsonl line 1: "):
        list(run.metrics())
    train(None, "training.steps=3", resume=run.path)
    assert [entry["step"] for entry in run.metrics()] == [2, 3]


def test_a_line_of_the_log_has_a_checksum():
    line = format_line({"step": 3, "loss": 0.1})
    assert json.loads(line) == {"step": 3, "loss": 0.1, "crc32": 1264986822} and parse_line(line, "l") == {
        "step": 3,
        "loss": 0.1,
    }
    assert parse_line(b'{"step": 3, "loss": 0.1}', "of before") == {"step": 3, "loss": 0.1}
    with pytest.raises(UserError, match="metrics.jsonl line 1: has changed since it was written"):
        parse_line(line.replace(b"0.1", b"0.2"), "metrics.jsonl line 1")


@pytest.mark.parametrize("name", ["agent.py", "metrics.jsonl", "store.json", "checkpoints"])
def test_a_run_replaces_no_file_that_is_not_of_a_run(tmp_path, name):
    new = RunDirectory(tmp_path / "project")
    new.check_new()
    new.path.mkdir()
    new.check_new()
    (new.path / name).mkdir() if name == "checkpoints" else (new.path / name).write_text("my own")
    with pytest.raises(UserError, match=rf"project/{name}: (was not made by this step|is there, though)"):
        new.check_new()
