"""The page begins with a question, the answer that the intervals allow, and films that are at hand."""

import hashlib
import json

import pytest

from ringrl.reporting import write_report
from ringrl.reporting.page.across_opening import _answer as _answer_across
from ringrl.reporting.page.across_opening import title_of
from ringrl.reporting.page.opening import Compared, _answer
from ringrl.reporting.statistics.bootstrap import Estimate
from ringrl.returns import read_returns
from tests.builders import write_run


def test_who_earns_more_and_who_is_not_shown_to():
    shown = [("AD", True, "+48 [+37, +59]"), ("BC", None, "+9 [-3, +21]"), ("AT", True, "+34 [+22, +45]")]
    assert _answer(shown, [], "from trial 1 to trial 8") == (
        "Yes, from trial 1 to trial 8: AD by +48 [+37, +59] and AT by +34 [+22, +45]. Not shown for BC (+9 [-3, +21])."
    )


def test_who_earns_less_and_whose_context_ends_with_a_trial():
    shown, others = [("AD", False, "-5 [-7, -3]")], [("BC", True, "+4 [+1, +7]")]
    assert _answer(shown, others, "from trial 1 to trial 2") == (
        "Less, from trial 1 to trial 2: AD by -5 [-7, -3]. "
        "Different, but with no earlier trial in the context: BC (+4 [+1, +7])."
    )


def test_over_several_tasks_agents_are_said_to_earn_more_on_those_where_it_is_shown():
    def found(*states, reads=True):
        gain = Estimate(1.0)
        return [(f"t{n}", Compared("", "", state, gain, reads)) for n, state in enumerate(states)]

    by_label = {
        "AD": found(True, True, True),
        "AT": found(True, None, False),
        "DT": found(None, None, None),
        "BC": found(None, True, reads=False),
        "TD3": found(None, reads=False),
    }
    assert _answer_across(by_label) == (
        "Yes: AD on all 3 tasks and AT on 1 of 3 tasks (t0). Less: AT on 1 of 3 tasks (t2). "
        "Different, but with no earlier trial in the context: BC more on 1 of 2 tasks (t1). "
        "Not shown on any task for DT and TD3."
    )


@pytest.mark.parametrize(
    "tasks, title",
    [
        (["walker_run", "walker_walk"], "2 tasks of walker"),
        (["cheetah_run", "walker_run", "walker_walk"], "3 tasks of cheetah and walker"),
        (["hidden_point_mass_goal_30mm", "hidden_point_mass_goal_60mm"], "2 tasks of hidden_point_mass_goal"),
        (["cheetah_run", "walker_run", "visible_cheetah_speed"], "3 tasks of cheetah and walker"),
        (["hidden_point_mass_goal", "hidden_reacher_target"], "2 tasks of point_mass and reacher"),
        (["my_module:Rig-v0", "Pendulum-v1"], "2 tasks"),
        (list("abcdef"), "6 tasks"),
    ],
)
def test_a_page_of_several_tasks_is_named_by_what_they_share(tasks, title):
    assert title_of(tasks) == title


def test_a_page_of_several_tasks_begins_with_what_was_asked(tmp_path):
    runs = [
        write_run(tmp_path / f"{agent}-{task}-{seed}", agent=agent, task=task, seed=seed, envs=6, trials=2, gain=gain,
                  points=0, data=False, expert=900.0)
        for agent, gain in (("agentic_transformer", 200.0), ("decision_transformer", 0.0))
        for task in ("walker_run", "walker_walk")
        for seed in (0, 1)
    ]  # fmt: skip
    page = write_report(runs, tmp_path / "report")
    text = page.read_text()
    asked, best = json.loads((page.parent / "summary.json").read_text())["across_tasks"]["openings"]
    assert asked["question"] == "Do agents earn more from trial to trial of a task, with no weight update?"
    assert "Yes: Agentic Transformer on both tasks." in asked["answer"]
    assert "average over the tasks" in best["question"] and best["answer"].startswith("Agentic Transformer, with a ")
    assert "shown to be higher than Decision Transformer" in best["answer"]
    assert text.count(f">{asked['question']}<") == 1  # once, and not again by each task
    assert text.index(asked["answer"]) < text.index('id="walker_run"') and best["answer"] in text


def write_film(run, content, changes):
    (run / "evaluation" / "film.mp4").write_bytes(content)
    hashes = {"sha256": hashlib.sha256(content).hexdigest()}
    hashes["of"] = hashlib.sha256((run / "evaluation" / "returns.csv").read_bytes()).hexdigest()
    about = {"film": "film.mp4", "trials": [1, 4], "env": 7, "run": "ad"} | hashes | changes
    (run / "evaluation" / "film.json").write_text(json.dumps(about))


CAPTION = "Trials 1 and 4 side by side, of environment 7 of ad, whose gain is the median."


@pytest.mark.parametrize("more, said", [(0.0, "as in the table"), (1.0, "in the table {} and {}")])
def test_a_film_says_what_its_trials_earned(more, said, tmp_path):
    run = write_run(tmp_path / "run")
    rows = read_returns(run / "evaluation" / "returns.csv")
    agent = rows[0].agent
    table = [row.return_ for row in rows if row.agent == agent and row.env == 1 and row.trial in (0, 3)]
    write_film(run, bytes(1000), {"env": 1, "returns": [value + more for value in table]})
    first, last = (f"{value + more:.0f}" for value in table)
    said = said.format(*(f"{value:.0f}" for value in table))
    text = write_report(run, tmp_path / "report").read_text()
    assert f"Rolled out once more for the film, with returns of {first} and {last}, {said}." in text


@pytest.mark.parametrize(
    "size, changes, embedded",
    [
        pytest.param(1000, {}, True, id="small"),
        pytest.param(2**21 + 1, {}, False, id="large"),
        pytest.param(1000, {"of": "0" * 64}, False, id="of another evaluation"),
        pytest.param(1000, {"sha256": "0" * 64}, False, id="another film"),
        pytest.param(1000, {"film": "../../secret.mp4"}, False, id="outside the folder"),
    ],
)
def test_a_film_of_the_present_evaluation_is_in_the_page(size, changes, embedded, tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "secret.mp4").write_bytes(bytes(size))
    write_film(run, bytes(size), changes)
    page = write_report(run, tmp_path / "report")
    text = page.read_text()
    assert ("data:video/mp4;base64,AAAA" in text) == embedded and (CAPTION in text) == embedded
    opening = next(iter(json.loads((page.parent / "summary.json").read_text())["tasks"].values()))["opening"]
    assert opening["question"] in text and opening["answer"] in text
