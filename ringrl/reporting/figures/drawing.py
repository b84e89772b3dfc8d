"""A figure before and after it is drawn: page, phone and PNG share one drawing."""

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from ringrl.reporting.figures.style import PAPER, Look, page_look, to_png
from ringrl.reporting.figures.svg import to_svg


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
    """A figure for the page: the same facts drawn wide, narrow, and as PNG."""

    drawing: Drawing
    wide: str
    narrow: str
    png: bytes


def render(drawing: Drawing, colours: dict[str, int]) -> Rendered:
    """Draws all three."""
    wide, narrow, paper = page_look(False, colours), page_look(True, colours), Look(PAPER, colours=colours)

    def draw(look: Look) -> Figure:
        with matplotlib.rc_context(look.rc()):
            return drawing.draw(look)

    return Rendered(
        drawing,
        wide=to_svg(draw(wide), wide, f"{drawing.name}-w"),
        narrow=to_svg(draw(narrow), narrow, f"{drawing.name}-n"),
        png=to_png(draw(paper), paper),
    )
