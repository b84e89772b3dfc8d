"""The figure of trials that explore."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ringrl.reporting.figures.drawn_values import record_estimates, record_level
from ringrl.reporting.figures.style import MARGIN, Look, name_axes, name_panel, thousands
from ringrl.reporting.figures.trial_figures import level_lines
from ringrl.reporting.statistics.exploration_effects import ExplorationCurve
from ringrl.reporting.statistics.task_statistics import References


def returns_after_exploring(look: Look, curves: Sequence[ExplorationCurve], levels: References) -> Figure:
    """Return at each trial, a line for each number of exploring trials, which are dotted. A panel an agent."""
    rows = len(curves)
    figure, axes = look.figure(3.9 * rows, rows, 1)
    for panel, curve in zip(axes.flat, curves, strict=True):
        for index, each in enumerate(curve.explored):
            colour = look.palette.series[index % len(look.palette.series)]
            value, low, high = (np.asarray([getattr(e, k) for e in each.by_trial]) for k in ("value", "low", "high"))
            x = np.arange(1, len(value) + 1)
            begun, own = slice(0, each.number), slice(each.number, None)
            panel.plot(x[begun], value[begun], color=colour, linewidth=1.0, linestyle=(0, (1, 2)))
            panel.fill_between(x[own], low[own], high[own], color=colour, alpha=0.14, linewidth=0)
            panel.plot(x[own], value[own], color=colour, linewidth=1.7, label=f"{each.number} explore")
            record_estimates(panel, f"{each.number} explore", colour, x, each.by_trial)
        for value, text, dashes in level_lines(levels):
            panel.axhline(value, color=look.palette.muted, linewidth=1.1, linestyle=dashes, label=text)
            record_level(panel, text, look.palette.muted, value)
        panel.set_xlim(1, curve.trials)
        panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))
        panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        panel.yaxis.set_major_locator(MaxNLocator(nbins=6))
        panel.yaxis.set_major_formatter(thousands())
        name_axes(panel, look, "Trial in context", "Return")
        if rows > 1:
            name_panel(panel, curve.label)
    handles = {text: h for panel in axes.flat for h, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    width, height = figure.get_size_inches()
    a_row = 2 if look.narrow else 4
    legend, title = 0.23 * -(-len(handles) // a_row) + 0.1, 0.22 if rows > 1 else 0.0
    height += legend
    figure.set_figheight(height)
    figure.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(0, 0.995), ncols=a_row)
    figure.subplots_adjust(left=MARGIN / width, right=0.985, top=1 - (0.36 + title + legend) / height,
                           bottom=0.6 / height, hspace=0.5)  # fmt: skip
    return figure
