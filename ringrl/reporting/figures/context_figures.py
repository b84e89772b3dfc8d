"""The figures of what the context is worth: over its trajectories, over its demonstrations, and under ablations."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ringrl.reporting.figures.drawn_values import record_estimates, record_level
from ringrl.reporting.figures.style import MARGIN, MARKERS, Look, name_axes, name_panel, thousands
from ringrl.reporting.figures.trial_figures import Levels, level_lines
from ringrl.reporting.statistics.bootstrap import Estimate
from ringrl.reporting.statistics.context_effects import MEASURES, AblationEffect, TrajectoryCurve
from ringrl.reporting.statistics.demonstration_effects import TRIALS, DemonstrationCurve
from ringrl.reporting.statistics.task_statistics import References

# Each ablation keeps its colour over all panels, in which the intact evaluation is drawn in ink.
_ABLATION_COLOURS = {"truncated": 1, "shuffled": 0, "foreign": 2, "blind": 3, "unpaid": 4, "paid": 5}


def returns_by_trajectories(look: Look, curves: Sequence[TrajectoryCurve], levels: References) -> Figure:
    """Returns over the number of trajectories in the context, on an axis of powers of two. A panel a measure."""
    fewest = min(curve.trials for curve in curves)
    lines = {measure: level_lines(levels, fewest if measure == "max_of_n" else None) for measure in MEASURES}
    counts = [(curve.label, curve.trajectories, curve.points) for curve in curves]
    return _returns_by_number(look, counts, MEASURES, lines, "Trajectories in the context, log scale")


def returns_by_demonstrations(look: Look, curves: Sequence[DemonstrationCurve], levels: References) -> Figure:
    """Returns over the number of demonstrations, none included, on an axis of powers of two.

    A panel for the first trial and one for the last, or one for both where each curve has a single trial.
    """
    counts = [(curve.label, curve.numbers, curve.points) for curve in curves]
    panels = TRIALS if any(curve.trials > 1 for curve in curves) else curves[0].shown
    lines = dict.fromkeys(panels, level_lines(levels))
    return _returns_by_number(look, counts, panels, lines, "Demonstrations in the context, log scale from 1 on")


def _returns_by_number(
    look: Look,
    curves: Sequence[tuple[str, Sequence[int], Mapping[str, Sequence[Estimate]]]],
    panels: Mapping[str, str],
    levels: Mapping[str, Levels],
    axis: str,
) -> Figure:
    """A panel for each of `panels` (key and words), in it a curve (label, numbers, points by key), and levels."""
    rows, columns = (len(panels), 1) if look.narrow else (1, len(panels))
    figure, axes = look.figure(3.5 * rows, rows, columns, sharey=True)
    ticks = sorted({number for _, numbers, _ in curves for number in numbers})
    for panel, (key, words) in zip(axes.flat, panels.items(), strict=True):
        for label, numbers, points in curves:
            _line(panel, look.colour(label), look.marker(label), label, np.asarray(numbers, np.float64), points[key])
        for value, text, dashes in levels[key]:
            panel.axhline(value, color=look.palette.muted, linewidth=1.1, linestyle=dashes, label=text)
            record_level(panel, text, look.palette.muted, value)
        _number_axis(panel, ticks)
        _return_axis(panel)
        name_axes(panel, look, axis, f"Return: {words}")
    return _finish(figure, axes, look)


def returns_under_ablations(look: Look, ablations: dict[str, tuple[AblationEffect, ...]]) -> Figure:
    """Return at each trial, intact and under each ablation. A panel an agent, by its label."""
    columns = 1 if look.narrow or len(ablations) == 1 else 2
    rows = -(-len(ablations) // columns)
    figure, axes = look.figure(3.5 * rows, rows, columns)
    colours = _ablation_colours(ablations)
    for panel, (label, results) in zip(axes.flat, ablations.items(), strict=False):
        longest = max(results, key=lambda result: len(result.intact)).intact
        for result in results:
            index = colours[result.name]
            colour = look.palette.series[index % len(look.palette.series)]
            x, aside = np.arange(1, len(result.ablated) + 1), 0.07 * (1 + results.index(result))  # bars side by side
            marker = MARKERS[(index + 1) % len(MARKERS)]
            _line(panel, colour, marker, result.name.capitalize(), x, result.ablated, aside)
        x = np.arange(1, len(longest) + 1, dtype=np.float64)
        _line(panel, look.palette.ink, "o", "Intact", x, longest)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        panel.margins(y=0.12)
        _return_axis(panel)
        name_axes(panel, look, "Trial in context", "Return")
        name_panel(panel, label)
    for panel in axes.flat[len(ablations) :]:
        panel.set_visible(False)
    return _finish(figure, axes, look, title=0.22)


def returns_under_ablations_by_number(look: Look, ablations: dict[str, tuple[AblationEffect, ...]]) -> Figure:
    """Return of the last trial over the number of demonstrations, intact and under each ablation. A panel an agent."""
    rows = len(ablations)
    figure, axes = look.figure(3.8 * rows, rows, 1)
    colours = _ablation_colours(ablations)
    for panel, (label, effects) in zip(axes.flat, ablations.items(), strict=True):
        for name in dict.fromkeys(effect.name for effect in effects):
            mine = [effect for effect in effects if effect.name == name]
            colour = look.palette.series[colours[name] % len(look.palette.series)]
            x = np.asarray([effect.demonstrations for effect in mine], np.float64)
            points = [effect.ablated[-1] for effect in mine]
            _line(panel, colour, MARKERS[(colours[name] + 1) % len(MARKERS)], name.capitalize(), x, points)
        intact = {effect.demonstrations: effect.intact[-1] for effect in effects}
        numbers = sorted(intact)
        x = np.asarray(numbers, np.float64)
        _line(panel, look.palette.ink, "o", "Intact", x, [intact[number] for number in numbers])
        _number_axis(panel, numbers)
        _return_axis(panel)
        name_axes(panel, look, "Demonstrations in the context, log scale from 1 on", "Return")
        if rows > 1:
            name_panel(panel, label)
    return _finish(figure, axes, look, title=0.22 if rows > 1 else 0.0)


def _ablation_colours(ablations: dict[str, tuple[AblationEffect, ...]]) -> dict[str, int]:
    """The known ablations' colours, and others for further ones."""
    names = dict.fromkeys(each.name for effects in ablations.values() for each in effects)
    extra = [name for name in names if name not in _ABLATION_COLOURS]
    return _ABLATION_COLOURS | {name: len(_ABLATION_COLOURS) + index for index, name in enumerate(extra)}


def _number_axis(axes: Axes, ticks: Sequence[int]) -> None:
    """Powers of two as equal steps; none as one more step before 1."""
    if ticks[0] == 0:
        axes.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
        axes.set_xlim(-0.25, max(ticks[-1], 1) * 1.25)
    else:
        axes.set_xscale("log", base=2)
        axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(y=0.12)


def _line(
    axes: Axes, colour: str, marker: str, label: str, x: np.ndarray, points: Sequence[Estimate], aside: float = 0.0
) -> None:
    """A curve whose points, drawn `aside` of their `x`, have bars, or where they are many, a band."""
    record_estimates(axes, label, colour, x, points, aside)
    x = x + aside
    value, low, high = (np.asarray([getattr(each, key) for each in points]) for key in ("value", "low", "high"))
    if len(points) > 24:
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    else:
        axes.vlines(x, low, high, color=colour, linewidth=2, alpha=0.5)
    dots = {"marker": marker, "markersize": 6, "markeredgewidth": 0} if len(points) <= 24 else {}
    axes.plot(x, value, color=colour, linewidth=1.6, label=label, **dots)


def _return_axis(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_formatter(thousands())
    axes.tick_params(labelleft=True)


def _finish(figure: Figure, axes: np.ndarray, look: Look, title: float = 0.0) -> Figure:
    """One legend above all panels; `title` inches above each panel for its name."""
    handles = {text: h for panel in axes.flat for h, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    if "Intact" in handles:
        handles = {"Intact": handles.pop("Intact")} | handles
    width, height = figure.get_size_inches()
    a_row = 1 if look.narrow else 3
    legend = 0.23 * -(-len(handles) // a_row) + 0.1
    height += legend
    figure.set_figheight(height)
    figure.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(0, 0.995), ncols=a_row)
    figure.subplots_adjust(left=MARGIN / width, right=0.985, top=1 - (0.36 + title + legend) / height,
                           bottom=0.6 / height, hspace=0.5, wspace=0.16)  # fmt: skip
    return figure
