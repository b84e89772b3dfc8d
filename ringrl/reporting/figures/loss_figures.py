"""The figure of the trainings' losses."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ringrl.reporting.figures.drawn_values import panel_of, record
from ringrl.reporting.figures.style import MARGIN, Look, name_axes, thousands
from ringrl.reporting.statistics.evaluated_run import TrainingCurves


def loss_curves(look: Look, curves: Sequence[tuple[str, TrainingCurves]]) -> Figure:
    """Loss over steps and over tokens; `curves` holds (series label, metrics) for each training.

    The loss of held-out episodes is dashed.
    """
    with_tokens = [curve for curve in curves if _counts_tokens(curve[1])]
    panels = 2 if with_tokens else 1
    rows, columns = (panels, 1) if look.narrow else (1, panels)
    figure, axes = look.figure(3.4 * rows, rows, columns, sharey=True)
    validation = [metrics.validation[np.isfinite(metrics.validation)] for _, metrics in curves]
    logarithmic = _spans_decades([*(metrics.loss for _, metrics in curves), *validation])
    for panel, over, shown in zip(axes.flat, ("Training step", "Tokens"), (curves, with_tokens), strict=False):
        for label, metrics in shown:
            x = (metrics.step if over == "Training step" else metrics.tokens).astype(np.float64)
            _loss(panel, look, label, x, metrics.loss)
            _validation(panel, look, label, x, metrics.validation)
        if logarithmic:
            panel.set_yscale("log")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5))
        panel.xaxis.set_major_formatter(thousands())
        panel.tick_params(labelleft=True)
        name_axes(panel, look, over, "Loss, log scale" if logarithmic else "Loss")
        panel_of(panel).measure = "loss"
    handles = {text: h for h, text in zip(*axes.flat[0].get_legend_handles_labels(), strict=True)}
    width, height = figure.get_size_inches()
    entries_a_row = 1 if look.narrow else 3
    legend = 0.23 * -(-len(handles) // entries_a_row) + 0.1
    figure.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(0, 0.99), ncols=entries_a_row)
    height += legend
    figure.set_figheight(height)
    figure.subplots_adjust(
        left=MARGIN / width, right=0.985, top=1 - (0.36 + legend) / height, bottom=0.6 / height, hspace=0.4, wspace=0.16
    )
    return figure


def _loss(
    axes: Axes, look: Look, label: str, x: Float64[np.ndarray, " points"], loss: Float64[np.ndarray, " points"]
) -> None:
    """The raw curve faint, thinned to what a screen can show, and a running mean over it."""
    colour = look.colour(label)
    width = max(1, len(loss) // 40)
    sums = np.cumsum(np.concatenate([np.zeros(1), loss]))
    starts = np.maximum(0, np.arange(len(loss)) + 1 - width)
    mean = (sums[1:] - sums[starts]) / (np.arange(len(loss)) + 1 - starts)
    shown = np.unique(np.linspace(0, len(loss) - 1, min(len(loss), 360)).astype(np.int64))
    if width > 1:
        axes.plot(x[shown], loss[shown], color=colour, linewidth=0.8, alpha=0.3)
    dots = {"marker": look.marker(label), "markersize": 4, "markeredgewidth": 0} if len(loss) <= 12 else {}
    axes.plot(x[shown], mean[shown], color=colour, label=label, linewidth=1.5, **dots)
    record(axes, label, colour, x[shown], mean[shown])


def _validation(
    axes: Axes, look: Look, label: str, x: Float64[np.ndarray, " points"], loss: Float64[np.ndarray, " points"]
) -> None:
    known = np.isfinite(loss)
    if known.any():
        dots = {"marker": look.marker(label), "markersize": 4, "markeredgewidth": 0}
        name = f"{label}, held-out episodes"
        axes.plot(x[known], loss[known], color=look.colour(label), label=name, linewidth=1.2, linestyle="--", **dots)
        record(axes, name, look.colour(label), x[known], loss[known])


def _counts_tokens(metrics: TrainingCurves) -> bool:
    return len(metrics.tokens) > 0 and bool(np.isfinite(metrics.tokens).all() and (np.diff(metrics.tokens) >= 0).all())


def _spans_decades(losses: Sequence[Float64[np.ndarray, " _"]]) -> bool:  # runs are logged at different lengths
    everything = np.concatenate(losses)
    return bool(everything.min() > 0 and everything.max() > 30 * everything.min())
