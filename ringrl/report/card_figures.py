"""The figures of a data-set card. A group of sources keeps its colour and marker over all of them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ringrl.report.card_sample import Sample
from ringrl.report.style import MARGIN, Look, name_axes, thousands

_POINTS = 320  # a panel at most, so that the page stays small
_OCCUPIED = 40  # cells a side, of the shape that everything sampled has


@dataclass(frozen=True)
class TaskReturns:
    """The episodes' returns under one task, in file order.

    Attributes:
        returns: float64 [episodes].
        group: int64 [episodes], index into `labels`.
        source: int64 [episodes].
        labels: of the groups.
    """

    returns: Float64[np.ndarray, " episodes"]
    group: Int64[np.ndarray, " episodes"]
    source: Int64[np.ndarray, " episodes"]
    labels: tuple[str, ...]

    @property
    def present(self) -> list[int]:
        """The groups that have episodes."""
        return np.unique(self.group).tolist()


def return_distribution(look: Look, data: TaskReturns) -> Figure:
    """A histogram of returns for each group, one under the other on a common axis; a line at the median, a bar from
    the 10% to the 90% quantile."""
    present = data.present
    figure, axes = look.figure(0.75 + 0.78 * len(present), len(present), 1, sharex=True)
    low, high = float(data.returns.min()), float(data.returns.max())
    bins = int(np.clip(2 * np.sqrt(len(data.returns) / len(present)), 8, 32 if look.narrow else 60))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for panel, group in zip(axes.flat, present, strict=True):
        values, colour = data.returns[data.group == group], look.colour(data.labels[group])
        counts, _ = np.histogram(values, edges)
        panel.stairs(counts / max(counts.max(), 1), edges, fill=True, color=colour, alpha=0.42)
        first, middle, last = np.quantile(values, (0.1, 0.5, 0.9))
        panel.plot([first, last], [-0.1, -0.1], color=colour, linewidth=3, solid_capstyle="butt")
        panel.plot([middle] * 2, [-0.1, 1], color=colour, linewidth=1.8)
        panel.set_ylim(-0.2, 1.55)
        panel.set_yticks([])
        panel.annotate(data.labels[group], (0, 0.97), xycoords="axes fraction", va="top", fontweight="bold")
        panel.annotate(f"{len(values):,} episodes, median {_round(middle)}", (1, 0.97), ha="right", va="top",
                       xycoords="axes fraction", color=look.palette.muted)  # fmt: skip
        panel.tick_params(bottom=panel is axes.flat[-1])
    axes.flat[-1].xaxis.set_major_formatter(thousands())
    axes.flat[-1].xaxis.set_major_locator(MaxNLocator(nbins=5 if look.narrow else 10))
    axes.flat[-1].set_xlabel("Return of an episode", labelpad=6)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.0, right=1.0, top=1 - 0.06 / height, bottom=0.62 / height, hspace=0.12)
    return figure


def return_history(look: Look, data: TaskReturns) -> Figure:
    """Return over file order, source after source: each episode while they are few, else the median of stretches in a
    band from their 10% to their 90% quantile."""
    figure, axes = look.figure(3.4)
    panel = axes[0, 0]
    order = np.arange(1, len(data.returns) + 1)
    stretch = max(1, -(-len(order) // (120 if look.narrow else 240)))
    sources = np.unique(data.source).tolist()
    for source in sources:
        place = np.flatnonzero(data.source == source)
        label = data.labels[data.group[place[0]]]
        _history(panel, look.colour(label), order[place].astype(np.float64), data.returns[place], stretch)
        if place[0]:
            panel.axvline(float(order[place[0]]) - 0.5, color=look.palette.line, linewidth=1)
        # Names where they fit; in file order each source follows the one before it.
        if 1 < len(sources) <= (3 if look.narrow else 9) and 20 * len(place) >= len(order):
            panel.annotate(label, (float(order[place[0]]), 1), (4, -3), va="top", fontsize=8.5,
                           xycoords=("data", "axes fraction"), textcoords="offset points",
                           color=look.palette.muted)  # fmt: skip
    panel.margins(x=0.01, y=0.16)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5 if look.narrow else 10, integer=True))
    panel.yaxis.set_major_locator(MaxNLocator(nbins=5))
    panel.xaxis.set_major_formatter(thousands())
    panel.yaxis.set_major_formatter(thousands())
    name_axes(panel, look, "Episode, in file order", "Return")
    height = figure.get_figheight()
    figure.subplots_adjust(left=MARGIN / figure.get_figwidth(), right=0.985, top=1 - 0.36 / height, bottom=0.6 / height)
    return figure


def _history(
    axes: Axes, colour: str, order: Float64[np.ndarray, " mine"], values: Float64[np.ndarray, " mine"], stretch: int
) -> None:
    if stretch <= 2:
        axes.plot(
            order, values, linestyle="none", marker="o", markersize=3.2, markeredgewidth=0, color=colour, alpha=0.35
        )
    length = max(stretch, len(order) // 16, 1)
    pieces = [slice(start, start + length) for start in range(0, len(order), length)]
    centre = [float(order[piece].mean()) for piece in pieces]
    low, middle, high = np.asarray([np.quantile(values[piece], (0.1, 0.5, 0.9)) for piece in pieces]).T
    if stretch > 2:
        axes.fill_between(centre, low, high, color=colour, alpha=0.2, linewidth=0)
    dots = {"marker": "o", "markersize": 4, "markeredgewidth": 0} if len(pieces) == 1 else {}
    axes.plot(centre, middle, color=colour, linewidth=1.8, **dots)


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
    height = figure.get_figheight()
    figure.subplots_adjust(left=MARGIN / figure.get_figwidth(), right=0.985, top=1 - 0.36 / height, bottom=0.6 / height)
    return figure


def _round(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
