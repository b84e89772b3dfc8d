"""Words and tables of the page: what the template is given."""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ringrl.reporting.figures.data_figures import TaskReturns, return_distribution, return_history
from ringrl.reporting.figures.drawing import Drawing
from ringrl.reporting.figures.loss_figures import loss_curves
from ringrl.reporting.figures.trial_figures import returns_by_trial
from ringrl.reporting.page.training_content import loss_words
from ringrl.reporting.statistics.bootstrap import PAIRS_FOR_VERDICT, RESAMPLES, Estimate, show, show_number
from ringrl.reporting.statistics.demonstration_effects import DemonstrationCurve
from ringrl.reporting.statistics.evaluated_run import MANY_HISTORIES, DataSet, TrainingCurves
from ringrl.reporting.statistics.series import Series, TaskSection
from ringrl.reporting.statistics.task_statistics import Analysis, References, normalised, trends, verdict

Cell = dict[str, str]
TABLE = (
    ("first", "First trial"),
    ("last", "Last trial"),
    ("gain", "Gain, last \u2212 first"),
    ("mean", "Mean of all"),
    ("max_of_n", "Best of n"),
    ("iqm", "IQM, last"),
)


def drawings(analysis: Analysis, suffix: str) -> dict[str, Any]:
    """The figures of one task by their place on the page; `suffix` keeps file names of several tasks apart."""
    section = analysis.section
    curves = [
        (series.label, run.metrics)
        for series in section.series
        for run in series.distinct_runs
        if len(run.metrics.step)
    ]
    data = [_data_figures(data, f"{suffix}-{n + 1}" if n else suffix) for n, data in enumerate(section.datasets)]
    return {
        "lead": _lead_figure(analysis, suffix),
        "data": data,
        "loss": _loss_figure(section, curves, suffix) if curves else None,
    }


def _lead_figure(analysis: Analysis, suffix: str) -> Drawing | None:
    """Returns over trials; None where all agents had a single one and the curve over demonstrations says more."""
    section, statistics = analysis.section, analysis.statistics
    if analysis.demonstrations and all(series.returns.shape[2] == 1 for series in section.series):
        return None
    return Drawing(
        f"returns_by_trial{suffix}",
        "Return at each trial",
        "Mean return of an episode at each trial of one context; no weight changes between trials. "
        f"{interval_words(section.series, 'Bands')}{level_words(analysis)}",
        f"{section.task}: return at each trial. "
        + " ".join(verdict(series, statistics[series.label]) for series in section.series),
        partial(returns_by_trial, sections=[analysis]),
    )


def _loss_figure(section: TaskSection, curves: Sequence[tuple[str, TrainingCurves]], suffix: str) -> Drawing:
    return Drawing(
        f"loss{suffix}",
        "Training loss",
        "One line a training. Faint: as logged; strong: running mean over a fortieth of the logged points. "
        f"{loss_words(curves)}",
        f"{section.task}: training losses over steps and tokens.",
        partial(loss_curves, curves=curves),
    )


def _data_figures(data: DataSet, suffix: str) -> dict[str, Any]:
    mode = (
        "rewards as recorded"
        if data.relabel == "recorded"
        else f"rewards relabelled in mode “{data.relabel}”"
        if data.relabel
        else "how rewards were relabelled is not recorded"
    )
    total = f"{len(data.returns):,} episodes, {data.steps:,} environment steps; {mode}"
    many = len(data.sources) > MANY_HISTORIES
    known = [(collector, value) for _, collector, _, value in trends(data) if math.isfinite(value)]
    rising = "; ".join(f"{name}{' (median)' if many else ''} {show_number(value)}" for name, value in known)
    order = (
        f"Episode returns of {len(data.sources):,} histories laid on top of each other: median and middle 80 %. "
        if many
        else "Episode returns in file order, source after source: the line is the median of consecutive episodes, "
        "around it the single episodes or, where they are many, the band that holds the middle 80 %. "
    )
    collectors = tuple(dict.fromkeys(source.collector for source in data.sources))
    owner = np.asarray([collectors.index(source.collector) for source in data.sources], np.int64)
    returns = TaskReturns(data.returns, owner[data.source], data.source, collectors, coloured=False)
    return {
        "store": data.store,
        "histogram": Drawing(
            f"data_returns{suffix}",
            "Returns in the data",
            f"Distribution of episode returns by collector in {data.store}: {total}. Each row is scaled to its own "
            "highest bar; the vertical line is the median, the bar below reaches from the 10 % to the 90 % quantile.",
            f"Histogram of the data set's episode returns by collector; {total}.",
            partial(return_distribution, data=returns),
        ),
        "history": Drawing(
            f"data_history{suffix}",
            "Learning history",
            order + (f"Rank correlation of return with order (1: the history only rises): {rising}." if rising else ""),
            "Episode returns of the data set in file order.",
            partial(return_history, data=returns),
        ),
    }


def interval_words(series: Sequence[Series], what: str) -> str:
    """How the intervals were computed, and what they do not cover."""
    shapes = {(len(s.seeds), s.returns.shape[1]) for s in series}
    if shapes == {(1, 1)}:
        return "One environment and one seed allow no interval."
    one, many = (any(test) for test in zip(*((seeds == 1, seeds > 1) for seeds, _ in shapes), strict=True))
    size = _size(*min(shapes)) if len(shapes) == 1 else "each agent’s seeds and environments are counted in the table"
    words = f"{what}: 95 % bootstrap intervals ({RESAMPLES:,} resamples; {size}). "
    if not many:
        words += "Environments are resampled (BCa); one training seed says nothing about training again."
    elif one:
        words += "Seeds and environments are resampled together (percentile); where there is a single seed, "
        words += "environments only (BCa), and the interval says nothing about training again."
    else:
        words += "Seeds and environments are resampled together (percentile)."
    if any(1 < seeds < 5 for seeds, _ in shapes):
        words += " With so few seeds the interval understates how trainings differ."
    if any(seeds * envs < PAIRS_FOR_VERDICT for seeds, envs in shapes):
        words += f" Intervals from fewer than {PAIRS_FOR_VERDICT} units are too narrow to be trusted."
    return words


def _size(seeds: int, envs: int) -> str:
    return f"{seeds} training seed{'s' * (seeds != 1)} × {envs} environment{'s' * (envs != 1)}"


def level_words(analysis: Analysis) -> str:
    """What the level lines are."""
    words, section, levels = "", analysis.section, analysis.levels
    if levels.expert is not None:
        words += f" Expert, which sees what is hidden: {show(levels.expert)} over {len(section.expert)} environments."
    if levels.random is not None:
        words += f" Random policy: {show(levels.random)} over {len(section.random)} environments."
    if levels.top_decile is not None and levels.best is not None:
        words += f" Data, best tenth of episodes: mean {show_number(levels.top_decile)}, "
        words += f"best single episode {show_number(levels.best)}."
    return words


def table(analysis: Analysis) -> dict[str, Any]:
    """The statistics table: headings, and a row of cells {name, value, interval} an agent and a reference policy."""
    section, levels = analysis.section, analysis.levels
    rows = []
    for series in section.series:
        numbers = analysis.statistics[series.label]
        cells = [cell(heading, getattr(numbers, key), key == "gain") for key, heading in TABLE]
        if levels.scale is not None:
            cells.append(cell("Score, last", numbers.last.scaled(*levels.scale)))
        rows.append({"label": series.label, "series": True, "size": _row_size(series), "cells": cells})
    references = (("Expert", levels.expert, section.expert), ("Random policy", levels.random, section.random))
    largest = levels.largest(analysis.trials)[::-1]
    for (name, level, returns), best in zip(references, largest, strict=True):
        if level is not None:
            envs, trials = returns.shape
            size = f"{_count(envs, 'env')} · {_count(trials, 'trial')}"
            rows.append({"label": name, "series": False, "size": size, "cells": _level_cells(level, best, levels)})
    return {
        "headings": [heading for _, heading in TABLE] + (["Score, last"] if levels.scale else []),
        "rows": rows,
        "caption": table_caption(levels, analysis.trials),
    }


def _level_cells(level: Estimate, best: Estimate | None, levels: References) -> list[Cell]:
    """A reference policy's row: it learns nothing, so all its trials are one number, but for the best of them."""
    known = {"mean": level, "max_of_n": best}
    cells = [cell(heading, known.get(key)) for key, heading in TABLE]
    if levels.scale is not None:
        cells.append(cell("Score, last", Estimate(level.scaled(*levels.scale).value)))
    return cells


def table_caption(levels: References, n: int) -> str:
    """What the table's columns mean; `n` is the fewest trials that an agent has."""
    words = (
        "Means over environments and seeds. Gain: paired within each environment. Best of n: the best of an "
        "environment’s n trials; it grows with n even where nothing is learnt. IQM: interquartile mean of the last "
        "trial. Brackets: 95 % intervals, computed like the bands above."
    )
    if levels.trials:
        words += f" Best of n of the reference policies: n = {min(n, levels.trials)}."
    if levels.scale is not None:
        zero, hundred = levels.scale
        return words + (
            f" Score: 0 is the random policy ({show_number(zero)}), 100 the {levels.hundred_words} "
            f"({show_number(hundred)}), both taken as exact. {levels.largest_words}"
        )
    if levels.random is None:
        missing = "the random policy was not evaluated"
    elif levels.hundred is None:
        missing = "neither an expert’s nor the data’s returns are known"
    else:
        missing = f"the {levels.hundred_words} is no better than random"
    return words + f" No normalised score: {missing}."


def cell(heading: str, number: Estimate | None, signed: bool = False) -> Cell:
    """A table's cell; a dash for what is not known."""
    if number is None or not math.isfinite(number.value):
        return {"name": heading, "value": "–", "interval": ""}
    interval = show(number, signed).partition(" ")[2]
    return {"name": heading, "value": show_number(number.value, number, signed), "interval": interval}


def _row_size(series: Series) -> str:
    seeds, envs, trials = series.returns.shape
    return " · ".join(_count(*part) for part in ((seeds, "seed"), (envs, "env"), (trials, "trial")))


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def per_trial(analysis: Analysis) -> dict[str, Any]:
    """The numbers behind the lead figure: a row a trial, a cell an agent."""
    section, statistics = analysis.section, analysis.statistics
    longest = max(series.returns.shape[2] for series in section.series)
    rows = []
    for trial in range(longest):
        columns = [(series.label, statistics[series.label].by_trial) for series in section.series]
        cells = [cell(name, line[trial]) if trial < len(line) else {"name": name, "value": "", "interval": ""}
                 for name, line in columns]  # fmt: skip
        rows.append({"trial": trial + 1, "cells": cells})
    return {"headings": [series.label for series in section.series], "rows": rows}


def findings(analysis: Analysis) -> list[dict[str, Any]]:
    """A card an agent: its headline return, what that is of, and the verdict.

    The return is the first trial's after the most demonstrations where the agent was shown several numbers of them, and
    else the last trial's, with its score.
    """
    shown = {curve.label: curve for curve in analysis.demonstrations}
    cards = [
        _shown_card(shown[series.label]) if series.label in shown else _trials_card(analysis, series)
        for series in analysis.section.series
    ]
    return [card | {"verdict": unbroken(card["verdict"].removeprefix(f"{card['label']}: "))} for card in cards]


def _trials_card(analysis: Analysis, series: Series) -> dict[str, Any]:
    numbers = analysis.statistics[series.label]
    score = normalised(series, numbers, analysis.levels)
    scored = f" · score {unbroken(show(score['last']))}" if score and score["last"] else ""
    state = {True: "up", False: "down", None: "flat"}[numbers.improves]
    unit, words = f"last trial{scored}", verdict(series, numbers)
    return {"label": series.label, "number": cell("", numbers.last), "unit": unit, "state": state, "verdict": words}


def _shown_card(curve: DemonstrationCurve) -> dict[str, Any]:
    state = {True: "up", False: "down", None: "flat"}[curve.above("first")]
    unit, number = f"after {curve.numbers[-1]} demonstrations", cell("", curve.points["first"][-1])
    words = curve.finding("first").removeprefix(f"{curve.label}, ")
    return {"label": curve.label, "number": number, "unit": unit, "state": state, "verdict": words}


def unbroken(text: str) -> str:
    """Keeps intervals on one line."""
    return re.sub(r"\[[^]]*\]", lambda match: match.group().replace(" ", "\u00a0"), text)
