"""`summary.json`: every number of the page, for programs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ringrl import __version__
from ringrl.reporting.page.across_opening import openings_across
from ringrl.reporting.page.opening import opening
from ringrl.reporting.page.training_content import describe_training, training_numbers
from ringrl.reporting.statistics.across_tasks import Across, AgentComparison
from ringrl.reporting.statistics.bootstrap import CONFIDENCE, RESAMPLES, Estimate
from ringrl.reporting.statistics.context_effects import AblationEffect, TrajectoryCurve, finding
from ringrl.reporting.statistics.demonstration_effects import DemonstrationCurve
from ringrl.reporting.statistics.evaluated_run import DataSet, EvaluatedRun, TrainingCurves
from ringrl.reporting.statistics.exploration_effects import ExplorationCurve
from ringrl.reporting.statistics.series import Series
from ringrl.reporting.statistics.task_statistics import (
    AgentStatistics,
    Analysis,
    References,
    SweepPoint,
    normalised,
    trends,
    verdict,
)

FORMAT = 3  # raised when a key changes its meaning


def summarise(
    analyses: Sequence[Analysis], across: Across | None, runs: Sequence[EvaluatedRun], created: str
) -> dict[str, Any]:
    """The document: plain JSON values; what is not known or not finite is null.

    {format, ringrl, created, confidence, resamples, tasks: {task: {opening: {question, answer}, references, agents:
    {label: {agent, seeds, envs, trials, runs, returns_by_trial, first, last, gain, mean, max_of_n, iqm, normalised,
    target, improves, verdict, training}}, by_trajectories, targets, demonstrations, explorations, ablations,
    demonstrated_ablations, datasets, notes}}, across_tasks}; an estimate is {value, low, high}. `opening` is null where
    nothing is compared. `across_tasks` is null with a single task, else {openings: [{question, answer}], n, measures:
    {measure: {returns: {task: {label}}, normalised, average: {label}, iqm, differences: [{one, other, tasks,
    difference, verdict}]}}, notes}.
    `trainings` has every run, evaluated or not: [{run, label, task, seed, evaluated, steps, step, loss,
    validation_loss, lowest_validation_loss, lowest_at}].
    """
    return {
        "format": FORMAT,
        "ringrl": __version__,
        "created": created,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "tasks": {analysis.section.task: _task(analysis) for analysis in analyses},
        "across_tasks": _across(analyses, across) if across else None,
        "trainings": [describe_training(run) for run in {run.path: run for run in runs}.values()],
    }


def _task(analysis: Analysis) -> dict[str, Any]:
    section, statistics, levels = analysis.section, analysis.statistics, analysis.levels
    random, expert = levels.largest(analysis.trials)
    return {
        "opening": opening(analysis),
        "references": {
            "random": _estimate(levels.random) if levels.random else None,
            "expert": _estimate(levels.expert) if levels.expert else None,
            "n": min(analysis.trials, levels.trials),
            "random_max_of_n": _estimate(random) if random else None,
            "expert_max_of_n": _estimate(expert) if expert else None,
            "dataset_top_decile": levels.top_decile,
            "dataset_best": levels.best,
            "zero": "random policy" if levels.scale else None,
            "hundred": levels.hundred_words if levels.scale else None,
        },
        "agents": {series.label: _agent(series, statistics[series.label], levels) for series in section.series},
        "by_trajectories": {curve.label: _curve(curve) for curve in analysis.curves},
        "targets": {label: [_sweep_point(point) for point in points] for label, points in analysis.sweeps.items()},
        "demonstrations": {curve.label: _demonstrations(curve) for curve in analysis.demonstrations},
        "explorations": {curve.label: _exploration(curve) for curve in analysis.explorations},
        "ablations": {
            label: {each.name: _ablation(each) for each in effects} for label, effects in analysis.own_ablations.items()
        },
        "demonstrated_ablations": {
            label: [{"name": each.name, "demonstrations": each.demonstrations} | _ablation(each) for each in effects]
            for label, effects in analysis.demonstrated_ablations.items()
        },
        "datasets": [_dataset(data) for data in section.datasets],
        "notes": list(section.notes),
    }


def _curve(curve: TrajectoryCurve) -> dict[str, Any]:
    return {
        "agent": curve.agent.stem,
        "series": [series.label for series in curve.series],
        "trajectories": list(curve.trajectories),
        "n": curve.trials,
        "differ": list(curve.differ),
    } | {
        measure: {
            "points": [_estimate(point) for point in points],
            "gain": _estimate(curve.gain[measure].difference),
            "rises": curve.gain[measure].above,
            "steps": [
                {"from": pair.fewer, "to": pair.more, "difference": _estimate(pair.difference), "verdict": pair.verdict}
                for pair in curve.neighbours[measure]
            ],
            "finding": finding(curve, measure),
        }
        for measure, points in curve.points.items()
    }


def _sweep_point(point: SweepPoint) -> dict[str, Any]:
    measures = ("first", "last", "mean", "max_of_n")
    return {"target": point.target} | {measure: _estimate(getattr(point, measure)) for measure in measures}


def _demonstrations(curve: DemonstrationCurve) -> dict[str, Any]:
    about = {"numbers": list(curve.numbers), "seeds": curve.seeds, "envs": curve.envs, "trials": curve.trials}
    return about | {
        trial: {
            "points": [_estimate(point) for point in points],
            "gain": _estimate(curve.gain[trial]),
            "rises": curve.above(trial),
            "steps": [
                {"from": pair.fewer, "to": pair.more, "difference": _estimate(pair.difference), "rises": pair.above}
                for pair in curve.steps[trial]
            ],
            "finding": curve.finding(trial),
        }
        for trial, points in curve.points.items()
    }


def _exploration(curve: ExplorationCurve) -> dict[str, Any]:
    about = {"seeds": curve.seeds, "envs": curve.envs, "trials": curve.trials, "last": curve.last}
    return about | {
        "finding": curve.finding,
        "explored": [
            {"number": each.number, "returns_by_trial": [_estimate(number) for number in each.by_trial]}
            | {name: _estimate(number) for name, number in each.measures.items()}
            | {"gain": _estimate(each.gain["last"]), "above": curve.above(each)}
            for each in curve.explored
        ],
    }


def _ablation(effect: AblationEffect) -> dict[str, Any]:
    return {
        "seeds": effect.seeds,
        "envs": effect.envs,
        "intact_by_trial": [_estimate(number) for number in effect.intact],
        "returns_by_trial": [_estimate(number) for number in effect.ablated],
        "cost": _estimate(effect.cost),
        "matters": effect.matters,
        "finding": effect.sentence,
    }


def _across(analyses: Sequence[Analysis], across: Across) -> dict[str, Any]:
    return {
        "openings": openings_across(analyses, across),
        "n": across.trials,
        "measures": {measure: _comparison(comparison) for measure, comparison in across.comparisons.items()},
        "notes": list(across.notes),
    }


def _comparison(comparison: AgentComparison) -> dict[str, Any]:
    def by_label(numbers: dict[str, Estimate]) -> dict[str, Any]:
        return {label: _estimate(number) for label, number in numbers.items()}

    return {
        "returns": {task: by_label(numbers) for task, numbers in comparison.returns.items()},
        "normalised": {task: by_label(numbers) for task, numbers in comparison.scores.items()},
        "average": by_label(comparison.average),
        "iqm": by_label(comparison.iqm),
        "differences": [
            {"one": pair.one, "other": pair.other, "tasks": list(pair.tasks)}
            | {"difference": _estimate(pair.difference), "verdict": pair.verdict}
            for pair in comparison.pairs
        ],
    }


def _agent(series: Series, statistics: AgentStatistics, levels: References) -> dict[str, Any]:
    seeds, envs, trials = series.returns.shape
    targets = np.unique(series.target[np.isfinite(series.target)])
    scores = normalised(series, statistics, levels)
    return {
        "agent": series.agent.stem,
        "runs": [str(run.path) for run in series.distinct_runs],
        "seeds": list(series.seeds),
        "envs": envs,
        "trials": trials,
        "returns_by_trial": [_estimate(number) for number in statistics.by_trial],
        "first": _estimate(statistics.first),
        "last": _estimate(statistics.last),
        "gain": _estimate(statistics.gain),
        "mean": _estimate(statistics.mean),
        "max_of_n": _estimate(statistics.max_of_n),
        "iqm": _estimate(statistics.iqm),
        "normalised": scores and {name: _estimate(score) if score else None for name, score in scores.items()},
        "target": [float(targets[0]), float(targets[-1])] if len(targets) else None,
        "improves": statistics.improves,
        "verdict": verdict(series, statistics),
        "training": [_training(run.metrics) | {"run": str(run.path)} for run in series.distinct_runs],
    }


def _training(metrics: TrainingCurves) -> dict[str, Any]:
    def median(values: np.ndarray) -> float | None:
        known = values[np.isfinite(values)]
        return float(np.median(known)) if len(known) else None

    return training_numbers(metrics) | {
        "tokens": _finite(float(metrics.tokens[-1])) if len(metrics.tokens) else None,
        "tokens_per_s": median(metrics.tokens_per_s),
        "mfu": median(metrics.mfu),
    }


def _dataset(data: DataSet) -> dict[str, Any]:
    return {
        "task": data.task,
        "domain": data.domain,
        "store": data.store,
        "relabel": data.relabel or None,
        "episodes": len(data.returns),
        "steps": data.steps,
        "returns": {
            name: float(np.quantile(data.returns, share))
            for name, share in (("min", 0), ("q25", 0.25), ("median", 0.5), ("q75", 0.75), ("max", 1))
        },
        "sources": [
            {"name": name, "collector": collector, "episodes": episodes, "trend": _finite(value)}
            for name, collector, episodes, value in trends(data)
        ],
    }


def _estimate(number: Estimate) -> dict[str, float | None]:
    return {"value": _finite(number.value), "low": _finite(number.low), "high": _finite(number.high)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
