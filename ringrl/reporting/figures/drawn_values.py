"""The numbers that a figure draws, kept with it: the page shows them where it is pointed at, and gives them as CSV.

Whoever draws a series records its values. What leaves this module is JSON: the values, which do not depend on the
figure's size, and where its panels are in the SVG, from which the page finds the place of a value.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ringrl.reporting.statistics.bootstrap import Estimate

_DIGITS = 6  # of a recorded number


@dataclass
class Panel:
    """What one panel shows: its title, its axes' names, what a value is, and its series as the page reads them."""

    title: str = ""
    x: str = ""
    y: str = ""
    measure: str = "mean"
    series: list[dict[str, Any]] = field(default_factory=list)


class RecordedFigure(Figure):
    """A figure that knows the values of its panels."""

    def __init__(self, *arguments: Any, **settings: Any):
        """As matplotlib's own."""
        super().__init__(*arguments, **settings)
        self.panels: dict[Axes, Panel] = {}


def panel_of(axes: Axes) -> Panel:
    """What is recorded of `axes`, which are those of a `RecordedFigure`."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, RecordedFigure)
    return figure.panels.setdefault(axes, Panel())


def record_estimates(
    axes: Axes, label: str, colour: str, x: np.ndarray, points: Sequence[Estimate], aside: float = 0.0
) -> None:
    """Record means with their intervals at `x`; they are drawn `aside` to the right of it."""
    value, low, high = (np.asarray([getattr(each, key) for each in points]) for key in ("value", "low", "high"))
    record(axes, label, colour, x, value, low, high, (x + aside, value) if aside else None)


def record(
    axes: Axes,
    label: str,
    colour: str,
    x: np.ndarray,
    value: np.ndarray,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
    at: tuple[np.ndarray, np.ndarray] | None = None,
    cloud: bool = False,
) -> None:
    """Record a series.

    Args:
        axes: where it is drawn.
        label: its name.
        colour: what it is drawn in.
        x: [points].
        value: [points].
        low: [points], the lower ends of their intervals, NaN or None where there are none.
        high: [points], the upper ends.
        at: [points] each, the x and y where the points are drawn, if not at `x` and `value`.
        cloud: whether the points are read one at a time, and not beside those of other series.
    """
    numbers = {"x": x, "value": value}
    if low is not None and high is not None and np.isfinite(low).any():
        numbers |= {"low": low, "high": high}
    if at is not None:
        numbers |= {"atX": at[0], "atY": at[1]}
    entry: dict[str, Any] = {"name": label, "colour": colour} | {key: _numbers(each) for key, each in numbers.items()}
    panel_of(axes).series.append(entry | ({"cloud": True} if cloud else {}))


def record_level(axes: Axes, label: str, colour: str, value: float) -> None:
    """Record a level line."""
    panel_of(axes).series.append({"name": label, "colour": colour, "level": _number(value)})


def values_json(figure: Figure) -> str:
    """The values of a figure's panels; empty where nothing is recorded.

    {numbers: [[...]], panels: [{title, x, y, measure, series: [{name, colour, cloud, x, value, low, high, atX, atY}]}]}
    in which x to atY are indices into `numbers`: curves share their x, and panels curves. Series without intervals have
    no `low` and `high`, those that are drawn at their values no `atX` and `atY`, and level lines a `level` alone.
    """
    pool: dict[tuple[float | int | None, ...], int] = {}

    def shared(entry: dict[str, Any]) -> dict[str, Any]:
        return {
            key: pool.setdefault(tuple(each), len(pool)) if isinstance(each, list) else each
            for key, each in entry.items()
        }

    panels = [vars(panel) | {"series": [*map(shared, panel.series)]} for _, panel in _recorded(figure)]
    content = {"numbers": [*pool], "panels": panels}
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False) if panels else ""


def panels_json(figure: Figure) -> str:
    """Where the same panels are: [[left, top, right, bottom, [x's scale, limits], [y's]]], in units of the SVG.

    For a figure that is drawn already: drawing moves panels of equal axes. A scale is `linear`, `log`, or `symlog`
    followed by its base, threshold and linear share.
    """
    width, height = figure.get_size_inches() * 72
    found = []
    for axes, _ in _recorded(figure):
        box = axes.get_position()
        corners = (box.x0 * width, (1 - box.y1) * height, box.x1 * width, (1 - box.y0) * height)
        scales = [[*_scale(axis), *map(_number, axis.get_view_interval())] for axis in (axes.xaxis, axes.yaxis)]
        found.append([*(round(float(each), 1) for each in corners), *scales])
    return json.dumps(found, separators=(",", ":")) if found else ""


def _recorded(figure: Figure) -> list[tuple[Axes, Panel]]:
    panels = figure.panels.items() if isinstance(figure, RecordedFigure) else ()
    return [(axes, panel) for axes, panel in panels if panel.series]


def _scale(axis: Any) -> list[Any]:
    transform = axis.get_transform()
    if axis.get_scale() == "symlog":
        return ["symlog", transform.base, transform.linthresh, transform.linscale]
    return [axis.get_scale()]


def _numbers(values: np.ndarray) -> list[float | int | None]:
    return [_number(value) for value in values.tolist()]


def _number(value: Any) -> float | int | None:
    """A number rounded, without a point where it is whole; None for what is not finite."""
    number = float(value)
    if not math.isfinite(number):
        return None
    rounded = number if number.is_integer() else float(f"{number:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded
