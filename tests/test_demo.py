"""The whole walk at a fiftieth of its size: every stage runs, is timed, and is not done twice."""

import csv
import json

import pytest

from ringrl.errors import UserError


def test_a_store_of_an_earlier_ringrl_is_refused_with_both_ways_on(tmp_path):
    from ringrl.cli.demo import demo

    store = tmp_path / "datasets" / "demo" / "targets.store"
    store.mkdir(parents=True)
    (store / "store.json").write_text(json.dumps({"format": "ringrl episode store", "version": 2}))
    with pytest.raises(UserError, match="convert_store .*; or start over with --fresh$"):
        demo(tmp_path, scale=0.02)


@pytest.mark.slow
def test_the_demo_walks_from_physics_to_a_report(tmp_path):
    from ringrl.cli.demo import AGENTS, demo

    page = demo(tmp_path, scale=0.02)
    assert "Do agents earn more from trial to trial" in page.read_text()
    runs = tmp_path / "runs" / "demo"
    seconds = json.loads((runs / "demo.json").read_text())
    assert {f"train {name}" for name in AGENTS} < set(seconds)
    for name in AGENTS:
        rows = list(csv.DictReader((runs / name / "evaluation" / "returns.csv").read_text().splitlines()))
        assert sum(row["agent"] not in ("random", "expert") for row in rows) == 128 * 8
    checkpoints = {path: path.stat().st_mtime_ns for path in runs.glob("*/checkpoints/*")}
    demo(tmp_path, scale=0.02)
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/checkpoints/*")} == checkpoints
