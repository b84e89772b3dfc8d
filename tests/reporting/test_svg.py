"""SVG for a page: small, with ids of its own, and with every reference in it kept."""

import re

from matplotlib.figure import Figure

from ringrl.reporting.figures.style import page_look
from ringrl.reporting.figures.svg import to_svg


def scatter(prefix: str) -> str:
    figure = Figure()
    figure.subplots().plot([0.123456, 1.0, 2.0], [1 / 3, 2.0, 3.0], "o", label="Points")
    return to_svg(figure, page_look(False, {}), prefix)


def test_references_are_kept_and_ids_differ_between_figures():
    one, other = scatter("one"), scatter("other")
    ids, referred = (set(re.findall(pattern, one)) for pattern in (r'id="([^"]+)"', r'(?:href="|url\()#([^")]+)'))
    assert ids == referred and len(ids) >= 2
    assert not ids & set(re.findall(r'id="([^"]+)"', other))
    assert scatter("one") == one


def test_nothing_is_written_that_the_page_does_not_show():
    svg = scatter("one")
    assert "font-family" not in svg and "xlink" not in svg and "<g>" not in svg and "<defs />" not in svg
    assert not re.search(r' (?:d|x|y)="[^"]*\.\d{3}', svg) and "rotate(-0" not in svg
    (marks,) = re.findall(r"<g[^>]*>((?:<use[^>]*>){3})</g>", svg)
    assert "style" not in marks  # it is said once, by their group
