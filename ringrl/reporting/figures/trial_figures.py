"""The figures of returns: at each trial, and against the target return."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ringrl.reporting.figures.drawn_values import panel_of, record, record_estimates, record_level
from ringrl.reporting.figures.style import MARGIN, Look, name_axes, name_panel, thousands
from ringrl.reporting.statistics.bootstrap import Estimate, estimate
from ringrl.reporting.statistics.series import Series
from ringrl.reporting.statistics.task_statistics import Analysis, References

SHOWN = 200  # marks an agent at most, so that the page stays small
_LONGEST = 30  # letters of a label that still fit beside a wide figure


def returns_by_trial(look: Look, sections: Sequence[Analysis], named: bool = False) -> Figure:
    """Mean return at each trial with its band; reference policies and data as level lines. A panel a section."""
    columns = 1 if look.narrow else min(2, len(sections))
    rows = -(-len(sections) // columns)
    figure, axes = look.figure((3.9 if look.narrow else 4.3) * rows if columns == 1 else 3.4 * rows, rows, columns)
    short = all(len(label) <= _LONGEST for analysis in sections for label in analysis.statistics)
    roomy = columns == 1 and not look.narrow and short
    for panel, content in zip(axes.flat, sections, strict=False):
        _curves(panel, look, content, labels_outside=roomy)
        if named:
            name_panel(panel, content.section.task, above=27)
    for panel in axes.flat[len(sections) :]:
        panel.set_visible(False)
    if not roomy:
        handles = {text: h for panel in axes.flat for h, text in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(0, 0.99),
                      ncols=2 if not look.narrow else 1)  # fmt: skip
    legend = 0.0 if roomy else (0.23 * (len(handles) if look.narrow else -(-len(handles) // 2)) + 0.1)
    top = legend + (0.62 if named else 0.36)
    height = figure.get_figheight() + legend
    figure.set_figheight(height)
    figure.subplots_adjust(
        left=MARGIN / figure.get_figwidth(),
        right=0.77 if roomy else 0.985,
        top=1 - top / height,
        bottom=0.6 / height,
        hspace=0.62,
        wspace=0.2,
    )
    return figure


def _curves(axes: Axes, look: Look, analysis: Analysis, labels_outside: bool) -> None:
    ends: list[tuple[float, str, str]] = []
    most = max(series.returns.shape[2] for series in analysis.section.series)
    for series in analysis.section.series:
        colour, line = look.colour(series.label), analysis.statistics[series.label].by_trial
        x = np.arange(1, len(line) + 1)
        value, low, high = (np.asarray([getattr(e, key) for e in line]) for key in ("value", "low", "high"))
        if np.isfinite(low).all() and len(line) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        elif np.isfinite(low).all():
            axes.vlines(x, low, high, color=colour, linewidth=2, alpha=0.5)
        dots = {"marker": look.marker(series.label), "markersize": 5} if len(line) <= 24 else {}
        axes.plot(x, value, color=colour, label=series.label, markeredgewidth=0, **dots)
        record_estimates(axes, series.label, colour, x, line)
        ends.append((float(value[-1]), series.label, colour))
    for value, text, dashes in level_lines(analysis.levels):
        axes.axhline(value, color=look.palette.muted, linewidth=1.1, linestyle=dashes,
                     label=None if labels_outside else text)  # fmt: skip
        record_level(axes, text, look.palette.muted, value)
        ends.append((value, text, look.palette.muted))
    axes.set_xlim(0.6 if most <= 24 else 1, most + (0.4 if most <= 24 else 0))
    low, high = axes.get_ylim()
    if low < 0.6 * high or most == 1:
        axes.set_ylim(min(low, 0), high)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10 if labels_outside else 6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_formatter(thousands())
    name_axes(axes, look, "Trial in context", "Return")
    if labels_outside:
        _label_ends(axes, ends)


Levels = list[tuple[float, str, tuple[int, tuple[int, ...]]]]
"""(return, name, dashes) of the levels that curves are seen against."""


def level_lines(levels: References, n: int | None = None) -> Levels:
    """The levels of the reference policies and of the data; with `n`, the policies' largest among n."""
    lines: Levels = []
    random, expert = (levels.random, levels.expert) if n is None else levels.largest(n)
    if expert is not None:
        lines.append((expert.value, "Expert", (0, (7, 2, 1, 2))))
    if levels.top_decile is not None:
        lines.append((levels.top_decile, "Data, best tenth", (0, (1, 2))))
    if random is not None:
        lines.append((random.value, "Random policy", (0, (5, 3))))
    return lines


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Writes each line's name beside its end, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.058  # a line of type, as a share of this figure's axis
    placed: list[float] = []
    order = sorted(range(len(ends)), key=lambda index: ends[index][0])
    for index in order:
        wanted = (ends[index][0] - low) / (high - low)
        placed.append(max(wanted, placed[-1] + gap) if placed else max(wanted, 0.0))
    for position in range(len(placed) - 1, -1, -1):
        ceiling = 1.0 if position == len(placed) - 1 else placed[position + 1] - gap
        placed[position] = min(placed[position], ceiling)
    for fraction, index in zip(placed, order, strict=True):
        _, text, colour = ends[index]
        axes.annotate(
            text, (1.015, fraction), xycoords="axes fraction", color=colour, va="center", annotation_clip=False
        )


def target_against_achieved(look: Look, conditioned: Sequence[Series]) -> Figure:
    """Every trial's achieved return over its target return, means with intervals, and the line of equality.

    `conditioned` are agents with targets.
    """
    figure, axes = look.figure(4.5 if look.narrow else 5.1, width=5.4)
    panel = axes[0, 0]
    everything = np.concatenate([np.concatenate([s.target.ravel(), s.returns.ravel()]) for s in conditioned])
    low, high = min(0.0, float(np.nanmin(everything))), float(np.nanmax(everything))
    high += 0.09 * (high - low)
    panel.plot([low, high], [low, high], color=look.palette.muted, linewidth=1.1, linestyle=(0, (5, 3)))
    targets = _levels_of(*(series.target for series in conditioned))
    for level in targets:
        panel.axvline(level, color=look.palette.muted, linewidth=0.9, linestyle=(0, (1, 2)))
    panel.annotate("achieved = target", (low + 0.06 * (high - low),) * 2, (-1, 6), textcoords="offset points",
                   color=look.palette.muted, rotation=45, rotation_mode="anchor", transform_rotates_text=True,
                   fontsize=8.5)  # fmt: skip
    # Agents of one target would hide each other, and so would an agent's trials: spread them around the target.
    closest = float(np.diff(targets).min()) if len(targets) > 1 else high - low
    width = min(0.055 * (high - low), 0.8 * closest / len(conditioned))
    for index, series in enumerate(conditioned):
        _achieved(panel, look, series, width, index - (len(conditioned) - 1) / 2)
    panel.set_xlim(low, high)
    panel.set_ylim(low, high)
    panel.set_aspect("equal", adjustable="box", anchor="SW")
    panel.grid(True, axis="both")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))
        axis.set_major_formatter(thousands())
    name_axes(panel, look, "Target return", "Achieved return")
    panel_of(panel).measure = "return"
    width, height = figure.get_figwidth(), figure.get_figheight() + 0.23 * len(conditioned)
    figure.set_figheight(height)
    figure.legend(loc="upper left", bbox_to_anchor=(0, 0.99), handletextpad=0.3)
    top = 0.42 + 0.23 * len(conditioned)
    figure.subplots_adjust(left=MARGIN / width, right=0.985, bottom=0.6 / height, top=1 - top / height)
    return figure


def _achieved(axes: Axes, look: Look, series: Series, width: float, offset: float) -> None:
    """One agent's marks, fanned out by trial over 0.8 of `width` and moved aside by `offset` times `width`."""
    colour, marker = look.colour(series.label), look.marker(series.label)
    trials = series.target.shape[2]
    means = _mean_by_target(series.target, series.returns)
    fan = np.linspace(-0.4, 0.4, trials) * width if trials > 1 and means else np.zeros(trials)
    x = (series.target + np.broadcast_to(fan, series.target.shape) + offset * width).ravel()
    shown = np.linspace(0, x.size - 1, min(x.size, SHOWN)).astype(np.int64)
    axes.plot(x[shown], series.returns.ravel()[shown], linestyle="none", marker=marker, markersize=3.6,
              markeredgewidth=0, color=colour, alpha=0.35)  # fmt: skip
    targets, achieved = (each.ravel()[shown] for each in (series.target, series.returns))
    record(axes, f"{series.label}, one trial", colour, targets, achieved, at=(x[shown], achieved), cloud=True)
    aside = offset * width
    record_estimates(
        axes, series.label, colour, np.asarray([value for value, _ in means]), [mean for _, mean in means], aside
    )
    for value, mean in means:
        centre = value + aside
        if mean.has_interval:
            axes.vlines(centre, mean.low, mean.high, color=colour, linewidth=2.5)
        axes.plot(centre, mean.value, marker=marker, markersize=9, color=colour,
                  markeredgecolor=look.palette.paper, markeredgewidth=1.4)  # fmt: skip
    axes.plot([], [], linestyle="none", marker=marker, markersize=7, color=colour, markeredgewidth=0,
              label=series.label)  # fmt: skip


def _levels_of(*targets: Float64[np.ndarray, "_ _ _"]) -> Float64[np.ndarray, " levels"]:
    """The different targets; none where they are too many to be levels."""
    everything = np.concatenate([target.ravel() for target in targets])
    levels = np.unique(everything[np.isfinite(everything)])
    return levels if len(levels) <= 12 else levels[:0]


def _mean_by_target(
    target: Float64[np.ndarray, "seeds envs trials"], returns: Float64[np.ndarray, "seeds envs trials"]
) -> list[tuple[float, Estimate]]:
    """(target, mean return) for targets that several environments, or the only one, were given in all seeds."""
    means = []
    for level in _levels_of(target):
        chosen = np.where(target == level, returns, np.nan)
        envs = np.isfinite(chosen).any(axis=2).all(axis=0)
        if envs.all() or envs.sum() > 1:
            means.append((float(level), estimate(np.nanmean(chosen[:, envs], axis=2))))
    return means
