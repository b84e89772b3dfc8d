"""The report as a whole: files, numbers, ids, colours and errors, from run directories made of numbers."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest

from ringrl.errors import UserError
from ringrl.reporting import write_report
from ringrl.reporting.figures.style import assign_colours
from tests.builders import write_run

VOID = {"meta", "link", "br", "wbr", "path", "use", "rect"}


class Page(HTMLParser):
    """Collects ids, references, visible text and unclosed elements."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.addresses: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self._collect(attrs)

    def handle_startendtag(self, tag, attrs):
        self._collect(attrs)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def _collect(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            self.references.update(re.findall(r"url\(#([^)]+)\)", value or ""))
            if name in ("href", "xlink:href", "src") and value.startswith("#"):
                self.references.add(value[1:])
            elif name in ("href", "xlink:href", "src"):
                self.addresses.add(value)


@pytest.fixture(scope="module")
def one_task(tmp_path_factory):
    """Three seeds of one agent, one of another, in one report: (directory, page, summary)."""
    base = tmp_path_factory.mktemp("one_task")
    runs = [write_run(base / f"at{seed}", seed=seed, envs=6) for seed in range(3)]
    runs.append(write_run(base / "bc", agent="behavior_cloning", envs=6, gain=0.0, target=None))
    out = base / "report"
    index = write_report(runs, out)
    assert index == out / "index.html"
    return out, index.read_text(), json.loads((out / "summary.json").read_text())


def test_all_files_are_there_and_nothing_is_left_over(one_task):
    out, _, _ = one_task
    names = {path.name for path in out.iterdir()}
    figures = {"returns_by_trial", "target_return", "data_returns", "data_history", "loss", "report"}
    assert names == {"SHA256SUMS", "index.html", "summary.json", *(f"{name}.png" for name in figures)}
    assert (out / "report.png").read_bytes() == (out / "returns_by_trial.png").read_bytes()
    for name in figures:
        pixels = matplotlib.image.imread(out / f"{name}.png")
        assert pixels.shape[0] > 300 and pixels.shape[1] > 800 and pixels.std() > 0.02


def test_the_page_is_well_formed_and_its_ids_are_unique(one_task):
    page = Page(one_task[1])
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)


def test_the_page_needs_no_network(one_task):
    _, text, _ = one_task
    assert Page(text).addresses == {"data:,"}
    assert "default-src 'none'" in text and "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)  # ringrl's own, which runs by its hash alone
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}';" in text
    assert text.count("<script") == 1 and not re.search(
        r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", script
    )


def test_figures_follow_light_and_dark_mode(one_task):
    for svg in re.findall(r"<svg.*?</svg>", one_task[1], re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b", svg), "a colour that no palette replaced"
        assert "<style" not in svg and "<metadata" not in svg and " width=" not in svg.split(">")[0]
    assert "prefers-color-scheme: dark" in one_task[1]


def test_the_page_says_the_numbers_of_the_summary(one_task):
    _, text, summary = one_task
    visible = " ".join(Page(text).text.split())
    agents = summary["tasks"]["walker_run"]["agents"]
    assert list(agents) == ["Agentic Transformer", "Behavior Cloning"]
    for name, agent in agents.items():
        assert name in visible
        assert agent["verdict"].removeprefix(f"{name}: ")[1:] in visible
        for key in ("first", "last", "mean", "max_of_n", "iqm"):
            number = agent[key]
            interval = f"{number['value']:,.0f} [{number['low']:,.0f}, {number['high']:,.0f}]"
            assert interval in visible, (name, key)
    for words in ("3 seeds · 6 envs · 4 trials", "mode “exact”", "best tenth", "bootstrap", "datasets/walker"):
        assert words in visible
    assert "relabel" in visible and "ringrl" in visible and "jax" in visible


def test_the_summary_keeps_its_schema(one_task):
    _, _, summary = one_task
    assert set(summary) == {
        "format",
        "ringrl",
        "created",
        "confidence",
        "resamples",
        "tasks",
        "across_tasks",
        "trainings",
    }
    assert summary["format"] == 3 and summary["confidence"] == 0.95
    task = summary["tasks"]["walker_run"]
    assert summary["across_tasks"] is None
    assert set(task) == {
        "opening", "references", "agents", "by_trajectories", "targets", "demonstrations", "explorations", "ablations",
        "demonstrated_ablations", "datasets", "notes",
    }  # fmt: skip
    assert set(task["references"]) == {
        "random", "expert", "n", "random_max_of_n", "expert_max_of_n", "dataset_top_decile", "dataset_best", "zero",
        "hundred",
    }  # fmt: skip
    assert task["references"]["n"] == 2 and task["references"]["expert_max_of_n"] is None
    assert task["references"]["random_max_of_n"]["value"] > task["references"]["random"]["value"]
    assert task["references"]["expert"] is None and "best tenth" in task["references"]["hundred"]
    agent = task["agents"]["Agentic Transformer"]
    assert set(agent) == {
        "agent", "runs", "seeds", "envs", "trials", "returns_by_trial", "first", "last", "gain", "mean", "max_of_n",
        "iqm", "normalised", "target", "improves", "verdict", "training",
    }  # fmt: skip
    assert agent["seeds"] == [0, 1, 2] and len(agent["returns_by_trial"]) == 4 and len(agent["training"]) == 3
    assert agent["improves"] is True and agent["target"] == [800, 800]
    assert set(agent["gain"]) == {"value", "low", "high"} and agent["gain"]["low"] > 0
    assert set(agent["normalised"]) == {"first", "last", "mean", "max_of_n", "iqm"}
    assert agent["training"][0]["tokens"] == 50 * 81920 and agent["training"][0]["mfu"] == 0.31
    assert task["agents"]["Behavior Cloning"]["target"] is None
    (data,) = task["datasets"]
    assert data["relabel"] == "exact" and data["episodes"] == 120
    assert [source["collector"] for source in data["sources"]] == ["rnd", "td3"]
    assert all(source["trend"] > 0.8 for source in data["sources"])


def test_a_report_is_the_same_twice_but_for_its_date(make_run):
    run = make_run(envs=3, trials=2)
    texts = []
    for _ in range(2):
        index = write_report([run])
        assert index == run / "report" / "index.html"
        texts.append(re.sub(r"Written \S+ \S+ UTC", "", index.read_text()))
    assert texts[0] == texts[1]


def test_tasks_have_sections_of_their_own_and_poor_runs_are_distinguished(make_run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    walker = make_run("a", task="walker_run", envs=2, trials=30, points=4, episodes=600, collectors=("rnd",))
    cheetah = make_run("b", task="cheetah_run", envs=1, trials=1, target=None, data=False, random=False, points=0)
    index = write_report([walker, cheetah, walker])
    assert index == Path("runs/report/index.html")
    text = index.read_text()
    page = Page(text)
    assert {"walker_run", "cheetah_run"} <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    visible = " ".join(page.text.split())
    for words in (
        "2 tasks", "One trial, ", "nothing to compare it with", "allow no interval", "too few environments (2)",
        "hold no data-set card", "hold no training metrics", "the random policy was not evaluated",
    ):  # fmt: skip
        assert words in visible, words
    names = {path.name for path in index.parent.iterdir()}
    assert {"report.png", "returns_by_trial-walker_run.png", "returns_by_trial-cheetah_run.png"} <= names
    cheetah_summary = json.loads((index.parent / "summary.json").read_text())["tasks"]["cheetah_run"]
    (agent,) = cheetah_summary["agents"].values()
    assert agent["gain"] == {"value": None, "low": None, "high": None} and agent["normalised"] is None


def test_names_from_files_cannot_inject_markup(make_run):
    run = make_run(agent="<script>alert(1)</script>", envs=1, trials=1, data=False, points=0)
    text = write_report([run]).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_errors_are_one_line_and_leave_nothing_half_written(make_run, tmp_path):
    with pytest.raises(UserError, match="at least one run"):
        write_report([])
    run = make_run()
    (run / "evaluation" / "returns.csv").unlink()
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="is not evaluated, and has not logged a training step yet"):
        write_report([run])
    assert not (run / "report").exists()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=f"{blocked}: cannot be written"):
        write_report([make_run("other", envs=1, trials=1, points=0, data=False)], blocked)


def test_an_older_report_is_replaced_and_other_files_stay(make_run, tmp_path):
    run = make_run(envs=1, trials=1, points=0, data=False)
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("somebody's")
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="index.html: was not made by this step, and is not replaced"):
        write_report([run], out)
    assert (out / "index.html").read_text() == "somebody's" and not (out / "summary.json").exists()
    (out / "index.html").unlink()
    for _ in range(2):  # its own it replaces
        write_report([run], out)
    assert "<html" in (out / "index.html").read_text() and (out / "mine.txt").read_text() == "mine"
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_agents_keep_their_colours_and_strangers_do_not_take_them():
    known = assign_colours([["Decision Transformer", "Agentic Transformer"]])
    assert known == {"Agentic Transformer": 0, "Decision Transformer": 1}
    mixed = assign_colours([["mine", "Decision Transformer", "DT 2"]])
    assert mixed["Decision Transformer"] == 1 and {mixed["mine"], mixed["DT 2"]} <= {5, 6, 7}
    assert mixed["mine"] != mixed["DT 2"]
    many = assign_colours([[str(n) for n in range(20)]])
    assert set(many.values()) == set(range(20))


def test_a_label_keeps_its_colour_beside_any_others_and_only_its_own_task_crowds_it():
    alone = assign_colours([["AD, 4 trials"]])["AD, 4 trials"]
    tasks = [["AD, 4 trials", "TD3"], [f"other {n}" for n in range(8)]]
    both = assign_colours(tasks)
    assert both["AD, 4 trials"] == alone
    assert {both[f"other {n}"] for n in range(8)} == set(range(8))
    assert assign_colours([tasks[1], tasks[0][::-1]]) == both
