"""The page begins with a question, the answer that the intervals allow, and films that are at hand."""

import hashlib
import json

import pytest

from ringrl.reporting import write_report
from ringrl.reporting.page.opening import _answer
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


def write_film(run, content, changes):
    (run / "evaluation" / "film.mp4").write_bytes(content)
    hashes = {"sha256": hashlib.sha256(content).hexdigest()}
    hashes["of"] = hashlib.sha256((run / "evaluation" / "returns.csv").read_bytes()).hexdigest()
    about = {"film": "film.mp4", "trials": [1, 4], "env": 7, "run": "ad"} | hashes | changes
    (run / "evaluation" / "film.json").write_text(json.dumps(about))


CAPTION = "Trials 1 and 4 side by side, of environment 7 of ad, whose gain is the median."


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
