"""The figures of a data set's returns, on its card and in reports of what was trained on it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ringrl.reporting.figures.drawn_values import panel_of, record
from ringrl.reporting.figures.style import MARGIN, Look, name_axes, thousands
from ringrl.reporting.statistics.evaluated_run import MANY_HISTORIES


@dataclass(frozen=True)
class TaskReturns:
    """The episodes' returns under one task, in file order.

    Attributes:
        returns: float64 [episodes].
        group: int64 [episodes], index into `labels`.
        source: int64 [episodes].
        labels: of the groups.
        coloured: whether a group has its label's colour; else all are drawn in ink.
    """

    returns: Float64[np.ndarray, " episodes"]
    group: Int64[np.ndarray, " episodes"]
    source: Int64[np.ndarray, " episodes"]
    labels: tuple[str, ...]
    coloured: bool = True

    @property
    def present(self) -> list[int]:
        """The groups that have episodes."""
        return np.unique(self.group).tolist()

    def colour(self, look: Look, group: int) -> str:
        """What a group is drawn in."""
        return look.colour(self.labels[group]) if self.coloured else look.palette.ink


def return_distribution(look: Look, data: TaskReturns) -> Figure:
    """A histogram of returns for each group, one under the other on a common axis; a line at the median, a bar from
    the 10% to the 90% quantile."""
    present = data.present
    figure, axes = look.figure(0.75 + 0.78 * len(present), len(present), 1, sharex=True)
    low, high = float(data.returns.min()), float(data.returns.max())
    bins = int(np.clip(2 * np.sqrt(len(data.returns) / len(present)), 8, 32 if look.narrow else 60))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for panel, group in zip(axes.flat, present, strict=True):
        values, colour = data.returns[data.group == group], data.colour(look, group)
        counts, _ = np.histogram(values, edges)
        heights, middles = counts / max(counts.max(), 1), (edges[1:] + edges[:-1]) / 2
        panel.stairs(heights, edges, fill=True, color=colour, alpha=0.42)
        record(panel, data.labels[group], colour, middles, counts, at=(middles, heights))
        about = panel_of(panel)
        about.x, about.y, about.measure = "Return of an episode, middle of its bin", data.labels[group], "episodes"
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
    band from their 10% to their 90% quantile. More than `MANY_HISTORIES` sources are laid on top of each other."""
    figure, axes = look.figure(3.4)
    panel = axes[0, 0]
    many = len(np.unique(data.source)) > MANY_HISTORIES
    (_folded if many else _in_file_order)(panel, look, data)
    panel.margins(x=0.01, y=0.16)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5 if look.narrow else 10, integer=True))
    panel.yaxis.set_major_locator(MaxNLocator(nbins=5))
    panel.xaxis.set_major_formatter(thousands())
    panel.yaxis.set_major_formatter(thousands())
    name_axes(panel, look, "Episode of a history" if many else "Episode, in file order", "Return")
    panel_of(panel).measure = "median"
    height = figure.get_figheight()
    figure.subplots_adjust(left=MARGIN / figure.get_figwidth(), right=0.985, top=1 - 0.36 / height, bottom=0.6 / height)
    return figure


def _folded(panel: Axes, look: Look, data: TaskReturns) -> None:
    """Median and middle 80% over the sources, by the position of an episode in its source."""
    counts = np.bincount(data.source)
    by_source = np.argsort(data.source, kind="stable")
    position = np.empty(len(data.source), np.int64)
    position[by_source] = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
    for group in data.present:
        mine = data.group == group
        positions = np.unique(position[mine])
        spread = [np.quantile(data.returns[mine & (position == each)], (0.1, 0.5, 0.9)) for each in positions]
        low, middle, high = np.asarray(spread).T
        colour = data.colour(look, group)
        panel.fill_between(positions + 1, low, high, color=colour, alpha=0.2, linewidth=0)
        panel.plot(positions + 1, middle, color=colour, linewidth=1.8)
        record(panel, data.labels[group], colour, positions + 1, middle, low, high)


def _in_file_order(panel: Axes, look: Look, data: TaskReturns) -> None:
    order = np.arange(1, len(data.returns) + 1)
    stretch = max(1, -(-len(order) // (120 if look.narrow else 240)))
    sources = np.unique(data.source).tolist()
    for source in sources:
        position = np.flatnonzero(data.source == source)
        group = int(data.group[position[0]])
        middles = _history(
            panel, data.colour(look, group), order[position].astype(np.float64), data.returns[position], stretch
        )
        record(panel, data.labels[group], data.colour(look, group), *middles)
        if position[0]:
            panel.axvline(float(order[position[0]]) - 0.5, color=look.palette.line, linewidth=1)
        # Names where they fit; in file order each source follows the one before it.
        if 1 < len(sources) <= (3 if look.narrow else 9) and 20 * len(position) >= len(order):
            panel.annotate(data.labels[group], (float(order[position[0]]), 1), (4, -3), va="top", fontsize=8.5,
                           xycoords=("data", "axes fraction"), textcoords="offset points",
                           color=look.palette.muted)  # fmt: skip


def _history(
    axes: Axes, colour: str, order: Float64[np.ndarray, " mine"], values: Float64[np.ndarray, " mine"], stretch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws one source's episodes; returns the stretches' middles, medians and quantiles."""
    if stretch <= 2:
        axes.plot(
            order, values, linestyle="none", marker="o", markersize=3.2, markeredgewidth=0, color=colour, alpha=0.35
        )
    length = max(stretch, len(order) // 16, 1)
    pieces = [slice(start, start + length) for start in range(0, len(order), length)]
    centre = np.asarray([order[piece].mean() for piece in pieces])
    low, middle, high = np.asarray([np.quantile(values[piece], (0.1, 0.5, 0.9)) for piece in pieces]).T
    if stretch > 2:
        axes.fill_between(centre, low, high, color=colour, alpha=0.2, linewidth=0)
    dots = {"marker": "o", "markersize": 4, "markeredgewidth": 0} if len(pieces) == 1 else {}
    axes.plot(centre, middle, color=colour, linewidth=1.8, **dots)
    return centre, middle, low, high


def _round(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
