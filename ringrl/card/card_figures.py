"""The figures of a data-set card that returns are not in. A group of sources keeps its colour over all of them."""

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ringrl.card.card_sample import Sample
from ringrl.reporting.figures.drawn_values import panel_of, record
from ringrl.reporting.figures.style import MARGIN, Look, name_axes, thousands

_POINTS = 320  # a panel at most, so that the page stays small
_OCCUPIED = 40  # cells a side, of the shape that everything sampled has


def coverage(look: Look, sample: Sample, labels: tuple[str, ...]) -> Figure:
    """Where each group's steps lie in the plane of the first two principal components, a panel a group; behind them
    the shape of all groups' steps together."""
    present = np.unique(sample.group).tolist()
    most = 2 if look.narrow else len(present) if len(present) < 5 else -(-len(present) // 2)
    columns = min(most, len(present))
    rows = -(-len(present) // columns)
    side = (4.6 if look.narrow else 9.6) / max(columns, 2 if look.narrow else 3)
    figure, axes = look.figure((side + 0.42) * rows + 0.3, rows, columns, sharex=True, sharey=True)
    low, high = sample.projection.min(axis=0), sample.projection.max(axis=0)
    pad = 0.07 * np.where(high > low, high - low, 1)
    counts, x, y = np.histogram2d(
        *sample.projection.T, bins=_OCCUPIED, range=list(zip(low - pad, high + pad, strict=True))
    )
    for panel, group in zip(axes.flat, present, strict=False):
        panel.contourf((x[:-1] + x[1:]) / 2, (y[:-1] + y[1:]) / 2, (_spread(counts) > 0).astype(np.float64).T,
                       levels=[0.5, 2], colors=[look.palette.line], alpha=0.45)  # fmt: skip
        points = sample.projection[sample.group == group]
        shown = np.linspace(0, len(points) - 1, min(len(points), _POINTS)).astype(np.int64)
        panel.plot(*points[shown].T, linestyle="none", marker="o", markersize=2.6, markeredgewidth=0,
                   color=look.colour(labels[group]), alpha=0.75)  # fmt: skip
        panel.set_title(labels[group], fontweight="bold", pad=5)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.grid(False)
        panel.spines["bottom"].set_visible(False)
    for panel in axes.flat[len(present) :]:
        panel.set_visible(False)
    height = figure.get_figheight()
    used = columns * side / (4.6 if look.narrow else 9.6)
    figure.subplots_adjust(left=0, right=used, top=1 - 0.3 / height, bottom=0.05 / height, hspace=0.22, wspace=0.06)
    return figure


def _spread(counts: Float64[np.ndarray, "x y"]) -> Float64[np.ndarray, "x y"]:
    """Each cell and its neighbours, so that the shape has no holes that more steps would fill."""
    padded = np.pad(counts, 1)
    size_x, size_y = counts.shape
    return sum((padded[i : i + size_x, j : j + size_y] for i in range(3) for j in range(3)), np.zeros_like(counts))


def ranges(look: Look, sample: Sample) -> Figure:
    """Every observation dimension's range: thin from least to greatest, thick from 5% to 95%, a dot at the median."""
    figure, axes = look.figure(3.2)
    panel = axes[0, 0]
    low, first, middle, last, high = sample.ranges
    dimension = np.arange(len(middle))
    panel.vlines(dimension, low, high, color=look.palette.muted, linewidth=0.9, alpha=0.7)
    thick = float(np.clip((3.4 if look.narrow else 7.8) * 72 / (2.4 * len(middle)), 1.4, 5))
    panel.vlines(dimension, first, last, color=look.palette.ink, linewidth=thick, alpha=0.75)
    panel.plot(dimension, middle, linestyle="none", marker="o", markersize=min(3.5, thick + 0.6), markeredgewidth=0.6,
               color=look.palette.paper, markeredgecolor=look.palette.ink)  # fmt: skip
    panel.set_yscale("symlog", linthresh=1.0, linscale=1.0)
    panel.yaxis.set_major_formatter(thousands())
    panel.set_xlim(-0.8, len(middle) - 0.2)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8 if look.narrow else 16, integer=True, min_n_ticks=1))
    name_axes(panel, look, "Dimension of the observation", "Value, logarithmic beyond \u00b11")
    panel_of(panel).measure = "median"
    for name, least, greatest in (("5% to 95%", first, last), ("Least to greatest", low, high)):
        record(panel, name, look.palette.ink, dimension, middle, least, greatest)
    height = figure.get_figheight()
    figure.subplots_adjust(left=MARGIN / figure.get_figwidth(), right=0.985, top=1 - 0.36 / height, bottom=0.6 / height)
    return figure
