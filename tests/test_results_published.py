"""What docs/results ships of a row: packed, restored, recomputed, and compared with a rerun."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks._results_published import RUNS_FILE, compare, describe, pack, publish, restore, verify
from ringrl.errors import UserError
from ringrl.manifest import MANIFEST
from ringrl.reporting import summarise_runs, write_report
from tests.builders import write_run


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    """A row of two runs, one of which was evaluated in another task too: what is published, the runs, their report."""
    tmp_path = tmp_path_factory.mktemp("row")
    runs = [
        write_run(tmp_path / "runs" / f"a-seed{seed}", seed=seed, trials=2, episodes=4, points=3) for seed in (0, 1)
    ]
    table = write_run(tmp_path / "other", task="walker_walk", trials=2, seed=1) / "evaluation"
    table.rename(runs[1] / "evaluation" / "walker_walk")
    report = write_report(runs, tmp_path / "report").parent
    publish(report, runs, tmp_path / "published", ("report.png",))
    return tmp_path / "published", runs, report


@pytest.fixture
def published(row, tmp_path):
    """A copy of what is published."""
    return Path(shutil.copytree(row[0], tmp_path / "published"))


def test_every_published_number_is_recomputed_from_what_is_shipped(published):
    assert {file.name for file in published.iterdir()} == {"index.html", "summary.json", "report.png", RUNS_FILE}
    numbers, changed = verify(published)
    assert numbers > 100 and not changed
    assert describe(numbers, changed) == f"{numbers:,} published numbers, all the same"


def test_a_number_that_does_not_follow_from_the_tables_is_found(published):
    summary = json.loads((published / "summary.json").read_text())
    agent = next(iter(summary["tasks"]["walker_run"]["agents"].values()))
    agent["last"]["value"] += 1.0
    (published / "summary.json").write_text(json.dumps(summary))
    (difference,) = verify(published)[1]
    assert difference.where.endswith(".last.value") and difference.published == difference.found + 1.0
    assert not difference.outside


def test_the_same_runs_give_the_same_file_and_checkpoints_are_not_in_it(row, tmp_path):
    out, runs, _ = row
    (runs[0] / "checkpoints" / "9").mkdir(parents=True)
    (runs[0] / "checkpoints" / "9" / "part").write_text("large")
    pack(runs, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (out / RUNS_FILE).read_bytes()
    names = zipfile.ZipFile(out / RUNS_FILE).namelist()
    assert {"a-seed0/config.yaml", "a-seed1/evaluation/walker_walk/returns.csv"} <= set(names)


def test_where_the_runs_were_made_is_not_in_it(tmp_path):
    run = write_run(tmp_path / "a-seed0", trials=2, episodes=4, points=3)
    record = json.dumps({"source": f"{Path.cwd()}/agents/td3.py"}).encode()
    (run / "run.json").write_bytes(record)
    (run / MANIFEST).write_text(f"{hashlib.sha256(record).hexdigest()}  run.json\n")
    pack([run], tmp_path / "runs.zip")
    with zipfile.ZipFile(tmp_path / "runs.zip") as archive:
        packed, manifest = (archive.read(f"a-seed0/{name}") for name in ("run.json", MANIFEST))
    assert json.loads(packed) == {"source": "agents/td3.py"}
    assert manifest.decode().split() == [hashlib.sha256(packed).hexdigest(), "run.json"]


def test_a_rerun_is_compared_and_published_only_on_demand(row, published, tmp_path):
    other = [write_run(tmp_path / f"b-seed{seed}", seed=seed, trials=2, first=900.0, episodes=4) for seed in (0, 1)]
    text = describe(*compare(published, summarise_runs(other)))
    assert "published numbers differ; estimates outside their interval: " in text
    assert "walker_run.agents.Agentic Transformer.first.value: published " in text
    with pytest.raises(UserError, match="has no a.png, .*; nothing is published"):
        publish(row[2], other, published, ("a.png",))
    assert not verify(published)[1]
    with pytest.raises(UserError, match="there is nothing to compare with; give --publish"):
        compare(tmp_path, {})


def test_published_runs_are_restored_beside_those_that_are_there(row, tmp_path):
    out, runs, _ = row
    there = tmp_path / "elsewhere"
    (there / "a-seed0").mkdir(parents=True)
    assert restore(out / RUNS_FILE, there) == [there / "a-seed0", there / "a-seed1"]
    assert not any((there / "a-seed0").iterdir())
    assert (there / "a-seed1/config.yaml").read_text() == (runs[1] / "config.yaml").read_text()
    with pytest.raises(UserError, match="was published by an earlier ringrl, without its runs"):
        restore(tmp_path / "nothing.zip", there)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in results.OUT.glob(f"*/{RUNS_FILE}")))
def test_the_numbers_of_docs_results_follow_from_their_runs(name):
    numbers, changed = verify(results.OUT / name)
    assert numbers > 0 and not [each for each in changed if not close(each.published, each.found)]


def close(one, other):
    """Another processor may add in another order."""
    return isinstance(one, int | float) and other == pytest.approx(one, rel=1e-6, abs=1e-9)
