"""What the page says about the context: its numbers of trajectories and demonstrations, target returns, ablations."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ringrl.reporting.figures.context_figures import (
    returns_by_demonstrations,
    returns_by_trajectories,
    returns_under_ablations,
    returns_under_ablations_by_number,
)
from ringrl.reporting.figures.drawing import Drawing
from ringrl.reporting.figures.trial_figures import SHOWN, target_against_achieved
from ringrl.reporting.page.task_content import cell, interval_words, level_words, unbroken
from ringrl.reporting.statistics.context_effects import MEASURES, AblationEffect, finding
from ringrl.reporting.statistics.demonstration_effects import TRIALS, DemonstrationCurve
from ringrl.reporting.statistics.series import Series
from ringrl.reporting.statistics.task_statistics import Analysis, SweepPoint


def trajectories(analysis: Analysis, suffix: str) -> dict[str, Any] | None:
    """The figure of returns over trajectories in the context, and its findings; None where there is no curve."""
    curves, task = analysis.curves, analysis.section.task
    if not curves:
        return None
    sentences = [finding(curve, measure) for curve in curves for measure in MEASURES]
    counts = {curve.trials for curve in curves}
    n = str(counts.pop()) if len(counts) == 1 else "the fewest trials that any point of a curve has"
    differ = [f" {curve.label}: the runs also differ in {', '.join(curve.differ)}." for curve in curves if curve.differ]
    series = [each for curve in curves for each in curve.series]
    return {
        "drawing": Drawing(
            f"trajectories{suffix}",
            "Return against trajectories in the context",
            "Each point is an agent of its own, trained with that many trajectories in one context. Left: mean return "
            f"of the last trial. Right: mean of the largest return among n = {n}, and the reference "
            "policies’ own largest. "
            f"{interval_words(series, 'Bars')} The comparisons below are not corrected for their number."
            f"{level_words(analysis)}{''.join(differ)}",
            f"{task}: return against the number of trajectories in the context. {' '.join(sentences)}",
            partial(returns_by_trajectories, curves=curves, levels=analysis.levels),
        ),
        "sentences": [unbroken(sentence) for sentence in sentences],
    }


def demonstrations(analysis: Analysis, suffix: str) -> dict[str, Any] | None:
    """The figure of returns over the number of demonstrations, its findings, and the table of neighbouring numbers.

    None where there is no curve.
    """
    curves, task = analysis.demonstrations, analysis.section.task
    if not curves:
        return None
    sentences = [curve.finding(trial) for curve in curves for trial in curve.shown]
    labels = {curve.label for curve in curves}
    series = [each for each in analysis.section.series if each.label in labels]
    several = any(curve.trials > 1 for curve in curves)
    panels = "Left: mean return of the first trial of its own. Right: of the last. " if several else ""
    return {
        "drawing": Drawing(
            f"demonstrations{suffix}",
            "Return against demonstrations in the context",
            "Each point is the same agent, whose context began with that many trajectories of a store, relabelled to "
            f"the task. {panels}{interval_words(series, 'Bars')} Differences are paired within each environment of a "
            f"seed. The comparisons below are not corrected for their number.{level_words(analysis)}",
            f"{task}: return against the number of demonstrations. {' '.join(sentences)}",
            partial(returns_by_demonstrations, curves=curves, levels=analysis.levels),
        ),
        "sentences": [unbroken(sentence) for sentence in sentences],
        "rows": [_step_row(curve, index, several) for curve in curves for index in range(len(curve.numbers) - 1)],
        "rows_about": "Each number against the one before it",
        "rows_of": "Demonstrations",
    }


def _step_row(curve: DemonstrationCurve, index: int, several: bool) -> dict[str, Any]:
    """What a number is worth against the one before it; `several`: some curve has a last trial beside the first."""
    cells = [
        cell(words.capitalize(), curve.steps[trial][index].difference if trial in curve.shown else None, signed=True)
        for trial, words in (TRIALS if several else curve.shown).items()
    ]
    numbers = curve.numbers
    return {"label": curve.label, "step": f"{numbers[index + 1]} minus {numbers[index]}", "cells": cells}


def ablations(analysis: Analysis, suffix: str) -> dict[str, Any] | None:
    """The figure of the context ablations, and a sentence for each; None where there are none."""
    results, task = analysis.own_ablations, analysis.section.task
    if not results:
        return None
    sentences = _sentences(results)
    ablated = [series for series in analysis.section.series if series.label in results]
    return {
        "drawing": Drawing(
            f"ablations{suffix}",
            "What the earlier trials are worth",
            "Mean return at each trial, intact and with the earlier trials in the context ablated. Truncated: "
            f"{_KINDS} {interval_words(ablated, 'Bars and bands')} Differences are paired within each environment "
            "of a seed.",
            f"{task}: return at each trial under context ablations. {' '.join(sentences)}",
            partial(returns_under_ablations, ablations=results),
        ),
        "sentences": [unbroken(sentence) for sentence in sentences],
    }


def demonstrated_ablations(analysis: Analysis, suffix: str) -> dict[str, Any] | None:
    """The figure of context ablations over the number of demonstrations, a sentence for each, and the table.

    None where there are none.
    """
    results, task = analysis.demonstrated_ablations, analysis.section.task
    if not results:
        return None
    ablated = [series for series in analysis.section.series if series.label in results]
    sentences = _sentences(results)
    last = "the last trial" if any(len(each.intact) > 1 for mine in results.values() for each in mine) else "the trial"
    return {
        "drawing": Drawing(
            f"demonstrated_ablations{suffix}",
            "What the demonstrations are worth",
            f"Mean return of {last} after each number of demonstrations, intact and with them ablated. Truncated: "
            f"{_KINDS} {interval_words(ablated, 'Bars')} Differences are paired within each environment of a seed.",
            f"{task}: return under context ablations, by number of demonstrations. {' '.join(sentences)}",
            partial(returns_under_ablations_by_number, ablations=results),
        ),
        "sentences": [unbroken(sentence) for sentence in sentences],
        "rows": [_effect_row(label, each) for label, mine in results.items() for each in mine],
        "rows_about": "Each ablation in numbers",
        "rows_of": "Ablation",
    }


_KINDS = (
    "removed; trials are counted on, as the agent never saw in training. Shuffled: in another order. Foreign: another "
    "environment’s. Blind: no reward anywhere, the present trial included; the return-to-go stays the target. Unpaid, "
    "paid: those alone that earned nothing, or something."
)


def _sentences(results: dict[str, tuple[AblationEffect, ...]]) -> list[str]:
    prefix = len(results) > 1
    return [(f"{label}: " if prefix else "") + each.sentence for label, mine in results.items() for each in mine]


def _effect_row(label: str, effect: AblationEffect) -> dict[str, Any]:
    cells = [cell("Intact", effect.intact[-1]), cell("Ablated", effect.ablated[-1])]
    cells.append(cell("Intact minus ablated", effect.cost, signed=True))
    return {"label": label, "step": f"{effect.name}, {effect.demonstrations} demonstrations", "cells": cells}


def target(analysis: Analysis, suffix: str) -> dict[str, Any] | None:
    """The figure of targets against returns, and the table of the sweeps; None where no agent is conditioned on one."""
    section = analysis.section
    asked = [series for series in section.series if series.sweep or np.isfinite(series.target).any()]
    if not asked:
        return None
    labels = ", ".join(series.label for series in asked)
    return {
        "drawing": Drawing(
            f"target_return{suffix}",
            "Target return and achieved return",
            f"Each small mark is one trial of one environment (at most {SHOWN} an agent); each large mark is the mean "
            "over all trials with its 95 % interval. Around a target (dotted) the agents are side by side, and an "
            "agent’s trials from the first, left, to the last, right. On the dashed line an agent achieves its "
            f"target. {interval_words(asked, 'Bars')}",
            f"{section.task}: achieved against target return of {labels}.",
            partial(target_against_achieved, conditioned=[_with_sweep(series) for series in asked]),
            beside=True,
        ),
        "rows": [_sweep_row(label, point) for label, points in analysis.sweeps.items() for point in points],
    }


def _sweep_row(label: str, point: SweepPoint) -> dict[str, Any]:
    headings = {"first": "First trial", "last": "Last trial", "mean": "Mean of all", "max_of_n": "Best of n"}
    return {
        "label": label,
        "target": f"{point.target:,.4g}".replace("-", "\u2212"),
        "cells": [cell(heading, getattr(point, key)) for key, heading in headings.items()],
    }


def _with_sweep(series: Series) -> Series:
    """A swept series as if its targets had been given in as many sets of environments."""
    if series.sweep is None:
        return series
    targets, seeds, envs, trials = series.sweep.returns.shape
    returns = series.sweep.returns.transpose(1, 0, 2, 3).reshape(seeds, targets * envs, trials)
    asked = np.repeat(np.asarray(series.sweep.targets, np.float64), envs)
    return replace(series, returns=returns, target=np.broadcast_to(asked[None, :, None], returns.shape))
