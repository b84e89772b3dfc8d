"""How figures look: palettes, colours of labels, sizes, axes."""

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ringrl.reporting.figures.drawn_values import RecordedFigure, panel_of
from ringrl.reporting.statistics.series import SHOWN_FIRST

# Okabe and Ito's hues, darkened or lightened until each has a contrast of at least 3 to 1 with the page behind it.
SERIES_LIGHT = ("#1b63b0", "#c9541a", "#0b8468", "#a63d7d", "#8a6a00", "#5f54b8", "#3f7f93", "#6b6f76")
SERIES_DARK = ("#6db3ff", "#ff9a5f", "#42cda9", "#f08cc6", "#e2bc45", "#ab9fff", "#82c6d8", "#b3b8c1")
MARGIN = 0.47  # inches left of an axis: room for `1,000`
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")

# These keep their colour over all figures and all reports; other labels take the remaining ones first.
_FIXED = {name: index for index, name in enumerate(SHOWN_FIRST)}


@dataclass(frozen=True)
class Palette:
    """Colours by role."""

    ink: str
    muted: str
    line: str
    paper: str
    series: tuple[str, ...]


PAPER = Palette("#1a1d23", "#5d6470", "#d9dce1", "#ffffff", SERIES_LIGHT)
# Placeholders that no other colour equals; on a page each becomes the CSS variable of that role.
_ROLES = Palette("#010101", "#010102", "#010103", "#010104", tuple(f"#0102{i:02x}" for i in range(len(SERIES_LIGHT))))
CSS_VARIABLES = {
    _ROLES.ink: "var(--ink)",
    _ROLES.muted: "var(--muted)",
    _ROLES.line: "var(--line)",
    _ROLES.paper: "var(--paper)",
} | {colour: f"var(--series-{i})" for i, colour in enumerate(_ROLES.series)}


@dataclass(frozen=True)
class Look:
    """A palette at a size: `narrow` is drawn for phones, with larger type relative to the figure."""

    palette: Palette
    narrow: bool = False
    colours: dict[str, int] = field(default_factory=dict)  # series label -> index of colour and marker

    def colour(self, label: str) -> str:
        """The colour of a series."""
        return self.palette.series[self.colours[label] % len(self.palette.series)]

    def marker(self, label: str) -> str:
        """The marker of a series: colour is never the only cue."""
        index = self.colours[label]
        return MARKERS[(index + index // len(SERIES_LIGHT)) % len(MARKERS)]

    def figure(
        self, height: float, rows: int = 1, columns: int = 1, width: float = 9.6, **subplots: Any
    ) -> tuple[Figure, Any]:
        """A figure of `width` and `height` inches, and its axes as an array [rows, columns].

        The page's column is 9.6 inches wide; on phones every figure is 4.6.
        """
        figure = RecordedFigure(figsize=(4.6 if self.narrow else width, height), facecolor=self.palette.paper)
        return figure, figure.subplots(rows, columns, squeeze=False, **subplots)

    def rc(self) -> dict[Any, Any]:
        """matplotlib's settings for this look."""
        palette = self.palette
        return {
            "svg.fonttype": "none",
            "svg.hashsalt": "ringrl",
            "path.simplify": True,
            "text.parse_math": False,  # names come from users, who may well write a $
            "font.size": 9.5,
            "text.color": palette.ink,
            "axes.edgecolor": palette.line,
            "axes.facecolor": "none",
            "axes.labelcolor": palette.muted,
            "axes.labelsize": 9.5,
            "axes.titlesize": 9.5,
            "axes.titlecolor": palette.ink,
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "axes.spines.left": False,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "axes.unicode_minus": True,
            "grid.color": palette.line,
            "grid.linewidth": 0.7,
            "xtick.color": palette.line,
            "ytick.color": palette.line,
            "xtick.labelcolor": palette.muted,
            "ytick.labelcolor": palette.muted,
            "ytick.major.size": 0,
            "ytick.minor.size": 0,
            "xtick.minor.size": 0,
            "xtick.major.size": 3.5,
            "lines.linewidth": 2,
            "lines.solid_capstyle": "round",
            "legend.frameon": False,
            "legend.fontsize": 9.5,
            "legend.labelcolor": palette.ink,
            "legend.handlelength": 1.6,
            "legend.borderaxespad": 0,
            "legend.borderpad": 0,
        }


def assign_colours(groups: Sequence[Sequence[str]]) -> dict[str, int]:
    """Series label -> colour index, given the labels of each group that must differ.

    Agents under their own names have fixed colours. Any other label has a preference that does not depend on the rest
    of the report, and gives way only within its groups. Indices from `len(SERIES_LIGHT)` on repeat the colours, with
    other markers.
    """
    labels = dict.fromkeys(label for group in groups for label in group)
    colours = {label: _FIXED[label] for label in labels if label in _FIXED}
    for label in sorted(labels.keys() - colours.keys()):
        taken = {colours[other] for group in groups if label in group for other in group if other in colours}
        first, second = list(range(len(_FIXED), len(SERIES_LIGHT))), list(range(len(_FIXED)))
        turn = crc32(label.encode())
        preferred = [part[(turn + step) % len(part)] for part in (first, second) for step in range(len(part))]
        more = itertools.count(len(SERIES_LIGHT))
        colours[label] = next(index for index in itertools.chain(preferred, more) if index not in taken)
    return colours


def page_look(narrow: bool, colours: dict[str, int]) -> Look:
    """The look whose colours become CSS variables (`ringrl.reporting.figures.svg.to_svg`)."""
    return Look(_ROLES, narrow, colours)


def name_axes(axes: Axes, look: Look, x: str, y: str) -> None:
    """Both axes' names: y's is upright above the axis, where it is read without turning the head."""
    axes.set_xlabel(x, labelpad=6)
    axes.annotate(y, (0, 1), (-72 * MARGIN, 9), xycoords="axes fraction", textcoords="offset points",
                  color=look.palette.muted, fontsize=9.5)  # fmt: skip
    panel = panel_of(axes)
    panel.x, panel.y = x, y


def name_panel(axes: Axes, name: str, above: int = 25) -> None:
    """The name of one panel of several, `above` points over it."""
    axes.annotate(name, (0, 1), (-72 * MARGIN, above), xycoords="axes fraction", textcoords="offset points",
                  fontweight="bold")  # fmt: skip
    panel_of(axes).title = name


def _short(value: float, _: object) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e5, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}".replace("-", "\u2212")
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}").replace("-", "\u2212")


def thousands() -> FuncFormatter:
    """A tick formatter: 1,000 and 250k and 1.2M, with a true minus sign."""
    return FuncFormatter(_short)


def to_png(figure: Figure, look: Look) -> bytes:
    """The figure as PNG, 200 dots an inch, on the palette's paper."""
    stream = io.BytesIO()
    with matplotlib.rc_context(look.rc()):
        figure.savefig(
            stream, format="png", dpi=200, bbox_inches="tight", pad_inches=0.25, metadata={"Software": "ringrl"}
        )
    return stream.getvalue()
