"""The page in a real browser: nothing on the console, nothing wider than the screen, not blank, light and dark."""

from pathlib import Path

import pytest

from ringrl.reporting import write_report
from tests.builders import write_run
from tests.reporting.browser import check_drawing, check_width, each_scheme, each_width, needs_browser

pytestmark = needs_browser


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("browser")
    runs = [
        write_run(base / "at", envs=6),
        write_run(base / "dt", agent="decision_transformer", envs=6, gain=1.0),
    ]
    return write_report(runs, base / "report")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory) -> Path:
    """Two tasks, many labels, all that a page can have; small, for figures take their time."""
    base = tmp_path_factory.mktemp("crowded")
    small = {"envs": 2, "trials": 2, "points": 0, "data": False, "expert": 900.0}
    runs = [
        write_run(base / f"{n}", label=f"AT, {n} trajectories in the context", trajectories=n, seed=n, **small,
                  task="hidden_point_mass_goal", targets=(200.0, 800.0) if n == 128 else (),
                  ablations={"truncated": 60.0} if n == 128 else {})
        for n in (1, 2, 4, 8, 16, 128)
    ]  # fmt: skip
    runs += [write_run(base / agent, agent=agent, seed=200, task="hidden_reacher_target", **small)
             for agent in ("agentic_transformer", "behavior_cloning")]  # fmt: skip
    return write_report(runs, base / "report")


@each_scheme
def test_the_page_shows_itself_without_complaint(report, tmp_path, dark):
    drawn = check_drawing(report, tmp_path, dark)
    assert drawn[:400].any() and drawn[600:1000].any() and drawn[1200:].any()  # heading, lead figure, table


@each_width
@pytest.mark.parametrize("page", ["report", "crowded"])
def test_nothing_is_wider_than_the_screen(request, tmp_path, page, width, narrow):
    check_width(request.getfixturevalue(page), tmp_path, width, narrow)
