"""What the page says about trials that explore: the figure over trials, and what each number of them earned."""

from functools import partial
from typing import Any

from ringrl.reporting.figures.drawing import Drawing
from ringrl.reporting.figures.exploration_figures import returns_after_exploring
from ringrl.reporting.page.task_content import cell, interval_words, level_words, unbroken
from ringrl.reporting.statistics.exploration_effects import MEASURES, ExplorationCurve, Explored
from ringrl.reporting.statistics.task_statistics import Analysis


def explorations(analysis: Analysis, suffix: str) -> dict[str, Any] | None:
    """The figure, its findings, and a row for each number of exploring trials; None where there is no such sweep."""
    curves, task = analysis.explorations, analysis.section.task
    if not curves:
        return None
    sentences = [curve.finding for curve in curves]
    labels = {curve.label for curve in curves}
    series = [each for each in analysis.section.series if each.label in labels]
    return {
        "drawing": Drawing(
            f"explored{suffix}",
            "Exploring first, then acting",
            "Mean return at each trial of rollouts whose first trials acted at random, as reward-free data are made "
            f"(thin, dotted), and whose others are the agent’s own. {interval_words(series, 'Bands')} Differences are "
            f"paired within each environment of a seed, and not corrected for their number.{level_words(analysis)}",
            f"{task}: return at each trial after exploring first. {' '.join(sentences)}",
            partial(returns_after_exploring, curves=curves, levels=analysis.levels),
        ),
        "sentences": [unbroken(sentence) for sentence in sentences],
        "rows": [_row(curve, each) for curve in curves for each in curve.explored],
        "rows_about": "What each number of exploring trials earned",
        "rows_of": "Trials that explore",
    }


def _row(curve: ExplorationCurve, each: Explored) -> dict[str, Any]:
    cells = [cell(words, each.measures[name]) for name, words in MEASURES.items()]
    fewest = curve.explored[0].number
    gain = None if each.number == fewest else each.gain["last"]
    cells.append(cell(f"Last trials, minus those after {fewest}", gain, signed=True))
    return {"label": curve.label, "step": str(each.number), "cells": cells}
