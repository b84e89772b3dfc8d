"""The trainings themselves: how far each is, and its losses; all there is of runs that are not evaluated yet."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ringrl.reporting.figures.drawing import Drawing
from ringrl.reporting.figures.loss_figures import loss_curves
from ringrl.reporting.statistics.bootstrap import show_number
from ringrl.reporting.statistics.evaluated_run import EvaluatedRun, TrainingCurves

HEADINGS = ("Step", "Last loss", "Last validation loss", "Lowest validation loss")


def training_labels(runs: Sequence[EvaluatedRun]) -> dict[str, EvaluatedRun]:
    """What the page calls each run; those of one name have their folders' names too."""
    names = [run.shown_name(run.label) for run in runs]
    several = {name for name, count in Counter(names).items() if count > 1}
    return {f"{name} · {run.name}" if name in several else name: run for name, run in zip(names, runs, strict=True)}


def trainings(runs: Sequence[EvaluatedRun]) -> dict[str, Any] | None:
    """The section about runs that are not evaluated: a row a run, and the drawing of their losses; None without any."""
    labelled = training_labels(runs)
    curves = [(label, run.metrics) for label, run in labelled.items() if len(run.metrics.step)]
    if not labelled:
        return None
    rows = []
    for label, run in labelled.items():
        about = describe_training(run)
        lowest = about["lowest_validation_loss"]
        cells = [
            f"{about['step'] or 0:,} of {about['steps']:,}" if about["steps"] else f"{about['step'] or 0:,}",
            _number(about["loss"]),
            _number(about["validation_loss"]),
            f"{_number(lowest)} at step {about['lowest_at']:,}" if lowest is not None else "–",
        ]
        rows.append({"label": label, "task": about["task"], "cells": cells, "next": f"ringrl evaluate {run.path}"})
    drawing = Drawing(
        "trainings",
        "Losses of the trainings",
        f"One line a training. {loss_words(curves)}",
        "Losses of the trainings over steps and tokens.",
        partial(loss_curves, curves=curves),
    )
    return {"headings": HEADINGS, "rows": rows, "drawing": drawing if curves else None}


def loss_words(curves: Sequence[tuple[str, TrainingCurves]]) -> str:
    """How a figure of losses is to be read."""
    validated = any(np.isfinite(metrics.validation).any() for _, metrics in curves)
    dashed = "Dashed, with points: of the held-out episodes, at each checkpoint. " if validated else ""
    several = ", and validation losses of different held-out episodes," if validated else ""
    return f"{dashed}Losses of agents with different action heads{several} are different quantities and do not compare."


def describe_training(run: EvaluatedRun) -> dict[str, Any]:
    """How far a training is: plain JSON values, null for what is not known."""
    metrics, section = run.metrics, run.config.get("training")
    steps = section.get("steps") if isinstance(section, dict) else None
    data = run.config.get("data")
    about = {
        "run": str(run.path),
        "label": run.shown_name(run.label),
        "task": data.get("task") if isinstance(data, dict) else None,
        "seed": run.config.get("seed"),
        "evaluated": bool(run.returns),
        "steps": steps if isinstance(steps, int) else None,
    }
    return about | training_numbers(metrics)


def training_numbers(metrics: TrainingCurves) -> dict[str, Any]:
    """Of a training's logged steps: the last, its loss, and the last and lowest loss of held-out episodes."""
    validated = np.flatnonzero(np.isfinite(metrics.validation))
    lowest = validated[np.argmin(metrics.validation[validated])] if len(validated) else None
    return {
        "step": int(metrics.step[-1]) if len(metrics.step) else None,
        "loss": float(metrics.loss[-1]) if len(metrics.step) else None,
        "validation_loss": float(metrics.validation[validated[-1]]) if len(validated) else None,
        "lowest_validation_loss": None if lowest is None else float(metrics.validation[lowest]),
        "lowest_at": None if lowest is None else int(metrics.step[lowest]),
    }


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else show_number(value)
