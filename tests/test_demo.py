"""The whole walk at a fiftieth of its size: every stage runs, is timed, and is not done twice."""

import csv
import json

import pytest

from ringrl.config import load_config
from ringrl.errors import UserError


def test_a_store_of_an_earlier_ringrl_is_refused_with_both_ways_on(tmp_path):
    from ringrl.cli.demo import DemoSize, demo

    store = tmp_path / "datasets" / "demo" / "targets.store"
    store.mkdir(parents=True)
    (store / "store.json").write_text(json.dumps({"format": "ringrl episode store", "version": 2}))
    with pytest.raises(UserError, match="convert_store .*; or start over with --fresh$"):
        demo(tmp_path, DemoSize())


def test_the_sizes_of_a_demo(tmp_path):
    from ringrl.cli.demo import AGENTS, QUICK, DemoSize

    for shipped in AGENTS.values():
        full = DemoSize().config(shipped, tmp_path)
        tenth, quick = DemoSize().scaled(0.1).config(shipped, tmp_path), QUICK.config(shipped, tmp_path)
        assert full == load_config(shipped, (f"data.store={tmp_path}",))
        assert tenth.training.steps == full.training.steps // 10 and tenth.evaluation == full.evaluation
        assert quick.label == f"{full.agent.name}, {quick.training.steps} steps"  # the page says how short they are
        assert quick.training.steps <= 40 and quick.evaluation.envs == 8
        assert (quick.model, quick.evaluation.trials) == (full.model, full.evaluation.trials)


def test_a_quick_demo_goes_through_the_same_stages_elsewhere_and_says_what_it_is(tmp_path, monkeypatch, ringrl):
    import ringrl.cli.demo as module

    stages = []
    monkeypatch.setattr(module._Stages, "run", lambda self, name, result, stage: stages.append((name, result)))
    answer = {"tasks": {module.TASK: {"opening": {"question": "Q?", "answer": "A."}}}}
    monkeypatch.setattr(module, "read_json", lambda *_: answer)
    monkeypatch.setattr("ringrl.cli.keep_freed_memory", lambda: None)  # it would stay so
    said = {}
    for option in ("--quick", "--scale=1"):
        said[option] = ringrl("demo", option, "--out", tmp_path)
    quick, full = stages[: len(stages) // 2], stages[len(stages) // 2 :]
    assert len(quick) == 3 + 2 * len(module.AGENTS)
    named = [[name.partition(": 8 trials")[0] for name, _ in each] for each in (quick, full)]
    assert named[0] == named[1]
    parts = [{path.relative_to(tmp_path).parts[1] for _, path in each} for each in (quick, full)]
    assert parts == [{"demo-quick"}, {"demo"}]
    assert said["--quick"][1].count("too short") == 2 and "too short" not in said["--scale=1"][1]


def test_a_quick_demo_has_no_scale(ringrl):
    assert ringrl("demo", "--quick", "--scale", "0.5") == (
        2, "", "ringrl: --quick: has a size of its own; leave out --scale\n"
    )  # fmt: skip


@pytest.mark.slow
def test_the_demo_walks_from_physics_to_a_report(tmp_path):
    from ringrl.cli.demo import AGENTS, DemoSize, demo

    size = DemoSize().scaled(0.02)
    page = demo(tmp_path, size)
    assert "Do agents earn more from trial to trial" in page.read_text()
    runs = tmp_path / "runs" / "demo"
    seconds = json.loads((runs / "demo.json").read_text())
    assert {f"train {name}" for name in AGENTS} < set(seconds)
    for name in AGENTS:
        rows = list(csv.DictReader((runs / name / "evaluation" / "returns.csv").read_text().splitlines()))
        assert sum(row["agent"] not in ("random", "expert") for row in rows) == 128 * 8
    checkpoints = {path: path.stat().st_mtime_ns for path in runs.glob("*/checkpoints/*")}
    demo(tmp_path, size)
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/checkpoints/*")} == checkpoints
