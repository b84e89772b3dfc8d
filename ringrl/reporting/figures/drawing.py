"""A figure before and after it is drawn: page, phone and PNG share one drawing."""

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from ringrl.reporting.figures.drawn_values import values_json
from ringrl.reporting.figures.style import PAPER, Look, page_look, to_png
from ringrl.reporting.figures.svg import in_css_variables, to_svg


@dataclass(frozen=True)
class Drawing:
    """A figure before it is drawn."""

    name: str  # of its PNG file, without suffix
    title: str
    caption: str
    alt: str  # text for readers who cannot see it
    draw: Callable[[Look], Figure]
    beside: bool = False  # whether the caption is beside the figure where there is room


@dataclass(frozen=True)
class Rendered:
    """A figure for the page: the same facts drawn wide, narrow, and as PNG; and as numbers, where they are recorded."""

    drawing: Drawing
    wide: str
    narrow: str
    wide_values: str  # JSON of `values_json`
    narrow_values: str  # empty where they are those of the wide figure
    png: bytes


def render(drawing: Drawing, colours: dict[str, int]) -> Rendered:
    """Draws all three."""
    wide, narrow, paper = page_look(False, colours), page_look(True, colours), Look(PAPER, colours=colours)

    def draw(look: Look) -> Figure:
        with matplotlib.rc_context(look.rc()):
            return drawing.draw(look)

    figures = draw(wide), draw(narrow)
    values, in_narrow = (in_css_variables(values_json(figure)) for figure in figures)
    return Rendered(
        drawing,
        wide=to_svg(figures[0], wide, f"{drawing.name}-w"),
        narrow=to_svg(figures[1], narrow, f"{drawing.name}-n"),
        wide_values=values,
        narrow_values="" if in_narrow == values else in_narrow,
        png=to_png(draw(paper), paper),
    )
