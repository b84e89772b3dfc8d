"""What a reader does with the page in a real browser: points, sorts, takes numbers and pictures along, prints."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from ringrl.reporting import write_report
from ringrl.reporting.statistics.bootstrap import Estimate, show
from tests.builders import write_run
from tests.reporting.browser import needs_browser, printed_pages, use

pytestmark = needs_browser

LEAD = 'document.querySelector("figure[data-file^=returns_by_trial]")'
POINT = """
const plot = %s.querySelector(".plot.wide"), svg = plot.querySelector("svg")
const place = placement(JSON.parse(svg.dataset.panels)[0]), box = svg.getBoundingClientRect()
const unit = box.width / svg.viewBox.baseVal.width
const at = { clientX: box.left + (place.x(%s) + 5) * unit, clientY: box.top + place.top * unit + 9, bubbles: true }
plot.dispatchEvent(new PointerEvent("pointermove", at))
const read = () => [...document.querySelectorAll(".tip p, .tip tr")].map((each) => each.innerText.replace("\\t", " "))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Two agents on two tasks, one of which only one agent has."""
    base = tmp_path_factory.mktemp("used")
    small = {"envs": 6, "trials": 3, "points": 4, "expert": 900.0}
    runs = [
        write_run(base / "at", **small),
        write_run(base / "dt", agent="decision_transformer", gain=1.0, data=False, **small),
        write_run(base / "at2", task="walker_walk", data=False, **small),
    ]
    return write_report(runs, base / "report")


@pytest.fixture(scope="module")
def agents(report) -> dict[str, dict]:
    """Of summary.json, the agents on the first task."""
    return json.loads((report.parent / "summary.json").read_text())["tasks"]["walker_run"]["agents"]


def shown(number: dict[str, float]) -> str:
    return show(Estimate(number["value"], number["low"], number["high"]))


def test_a_figure_says_its_values_where_it_is_pointed_at(report, agents, tmp_path):
    script = POINT % (LEAD, 2) + """
    const pointed = read(), marks = svg.querySelectorAll(".guide circle").length
    plot.dispatchEvent(new PointerEvent("pointerleave", { pointerType: "mouse" }))
    const left = document.querySelector(".tip").hidden
    const press = (key) => plot.dispatchEvent(new KeyboardEvent("keydown", { key }))
    plot.focus(); press("ArrowRight"); press("ArrowRight"); press("ArrowRight")
    const byKeys = read(); press("Escape")
    return { pointed, marks, left, byKeys, hidden: document.querySelector(".tip").hidden }
    """  # fmt: skip
    found = use(report, tmp_path, script)
    assert found["marks"] == 2 and found["left"] and found["hidden"]
    for words, trial in ((found["pointed"], 2), (found["byKeys"], 3)):
        assert words[0] == f"Trial in context {trial}"
        for name, agent in agents.items():
            assert f"{name} {shown(agent['returns_by_trial'][trial - 1])}" in words
        assert any(re.fullmatch(r"Expert \d+", line) for line in words)


def test_tables_sort_by_a_column_and_back(report, agents, tmp_path):
    script = """
    const table = document.querySelector("table[data-file^=agents]")
    const names = () => [...table.tBodies[0].rows].map((row) => mainText(row.cells[0]))
    const head = [...table.tHead.rows[0].cells].find((each) => each.innerText === "Last trial")
    const turns = [[names(), head.getAttribute("aria-sort")]]
    for (let turn = 0; turn < 3; turn++) {
      head.querySelector("button").click()
      turns.push([names(), head.getAttribute("aria-sort")])
    }
    const scores = document.querySelector("table[data-file=largest_score]")
    scores.querySelector("button").click()
    return { turns, scores: [...scores.tBodies[0].rows].map((row) => mainText(row.cells[0])) }
    """
    found = use(report, tmp_path, script)
    (first, _), (falling, descending), (rising, ascending), again = found["turns"]
    by_value = sorted(agents, key=lambda name: -agents[name]["last"]["value"])
    known = [name for name in falling if name in agents]
    assert known == by_value and [name for name in rising if name in agents] == by_value[::-1]
    assert (descending, ascending) == ("descending", "ascending") and again == [first, None]
    assert set(falling[-2:]) == set(rising[-2:]) == {"Expert", "Random policy"}  # they have no last trial
    assert found["scores"] == ["walker_run", "walker_walk", "Average", "IQM"]


def test_figures_and_tables_are_saved_as_what_they_show(report, agents, tmp_path):
    script = (
        f"const figure = {LEAD}"
        + """
    const press = async (frame, name) => {
      [...frame.querySelectorAll(".downloads button")].find((each) => each.innerText === name).click()
      return await saved()
    }
    const table = document.querySelector("table[data-file^=agents]").closest(".block")
    const files = []
    for (const name of ["CSV", "SVG", "PNG"]) files.push(await press(figure, name))
    files.push(await press(table, "CSV"))
    const asked = performance.getEntriesByType("resource").filter((each) => !each.name.startsWith("data:"))
    return [...files, asked.length]
    """
    )
    values, drawing, picture, numbers, requests = use(report, tmp_path, script)
    assert requests == 0
    assert [each["name"] for each in (values, drawing, picture, numbers)] == [
        "returns_by_trial-walker_run.csv", "returns_by_trial-walker_run.svg", "returns_by_trial-walker_run.png",
        "agents-walker_run.csv",
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(values["text"])))
    assert list(rows[0]) == ["series", "Trial in context", "mean", "low", "high"]
    for name, agent in agents.items():
        mine = [row for row in rows if row["series"] == name]
        assert [int(row["Trial in context"]) for row in mine] == [1, 2, 3]
        for row, number in zip(mine, agent["returns_by_trial"], strict=True):
            assert [float(row[key]) for key in ("mean", "low", "high")] == pytest.approx(
                list(number.values()), rel=1e-5
            )
    assert [row["Trial in context"] for row in rows if row["series"] == "Random policy"] == [""]

    root = ElementTree.fromstring(drawing["text"])
    assert "var(" not in drawing["text"] and root[0].text == "Return at each trial" and "data-panels" not in root.attrib
    assert picture["size"] == [int(3 * float(root.get(side, 0))) for side in ("width", "height")]

    table = {row["Agent"]: row for row in csv.DictReader(io.StringIO(numbers["text"]))}
    for name, agent in agents.items():
        last = [float(table[name][f"Last trial{part}"]) for part in ("", ", low", ", high")]
        assert last == [round(number) for number in agent["last"].values()]
        assert table[name]["Size"] == "1 seed · 6 envs · 3 trials"
    assert table["Expert"]["Last trial"] == "" and float(table["Expert"]["Mean of all"]) == 900


def test_every_figure_has_its_values_as_csv(report, tmp_path):
    script = """return [...document.querySelectorAll("figure")].map((figure) => [figure.dataset.file,
      csv(valuesAsRows(panelsOf(figure.querySelector(".plot.wide").dataset.values)))])"""
    texts = dict(use(report, tmp_path, script))
    heads = {name.partition("-")[0]: text.splitlines()[0] for name, text in texts.items()}
    assert heads == {
        "returns_by_trial": "series,Trial in context,mean,low,high",
        "target_return": "series,Target return,return,low,high",
        "data_returns": 'panel,series,"Return of an episode, middle of its bin",episodes,low,high',
        "data_history": 'series,"Episode, in file order",median,low,high',
        "loss": "panel,series,x,loss,low,high",
    }
    episodes = [row.split(",") for row in texts["data_returns-walker_run"].splitlines()[1:]]
    assert sum(int(row[3]) for row in episodes) == 120  # two collectors of 60


def test_a_printed_page_leaves_out_what_is_folded_and_its_buttons(report, tmp_path):
    assert 2 <= printed_pages(report, tmp_path) <= 8
