"""The page in a real browser: nothing on the console, nothing wider than the screen, not blank, light and dark."""

import re
from pathlib import Path

import numpy as np
import pytest

from ringrl.reporting import write_report
from tests.builders import write_run
from tests.reporting.browser import CHROMIUM, MEASURE, browse

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


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


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_shows_itself_without_complaint(report, tmp_path, dark):
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    pixels, console = browse(report, tmp_path / "profile", 1200, *scheme)
    assert console == ""
    assert pixels.shape[:2] == (1600, 1200)
    corner = pixels[2, 2].mean()
    assert corner < 0.2 if dark else corner > 0.95
    drawn = np.abs(pixels - pixels[2, 2]).max(axis=-1) > 0.3
    assert 0.01 < drawn.mean() < 0.3  # neither blank nor a block of colour
    assert drawn[:400].any() and drawn[600:1000].any() and drawn[1200:].any()  # heading, lead figure, table


@pytest.mark.parametrize(("width", "narrow"), [(360, "block"), (1200, "none")])
@pytest.mark.parametrize("page", ["report", "crowded"])
def test_nothing_is_wider_than_the_screen(request, tmp_path, page, width, narrow):
    """Headless windows are never narrower than 500 pixels, so a phone is a frame within one."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", request.getfixturevalue(page).read_text())
    (tmp_path / "copy.html").write_text(text.replace("</body>", f"{MEASURE}</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(f'<body style="margin:0"><iframe src="copy.html" style="width:{width}px;height:1500px;border:0">')
    _, console = browse(frame, tmp_path / "profile", max(width, 600))
    words = console.split()
    assert words[:2] == ["measured", str(width)]
    assert int(words[2]) <= width
    assert words[3] == narrow and int(words[4]) > 40
