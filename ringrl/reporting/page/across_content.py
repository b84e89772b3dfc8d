"""Tables over several tasks: what the template is given."""

from collections.abc import Sequence
from typing import Any

from ringrl.reporting.page.task_content import cell
from ringrl.reporting.statistics.across_tasks import MEASURES, Across, AgentComparison, Pair
from ringrl.reporting.statistics.bootstrap import RESAMPLES


def across_tables(across: Across, openings: Sequence[dict[str, str]] = ()) -> dict[str, Any]:
    """`openings` (`ringrl.reporting.page.across_opening`); the largest return among n trials, in returns and as scores;
    the other measures as scores; pairs compared."""
    n = f"the largest return among n = {across.trials} trial{'s' * (across.trials != 1)}"
    largest = across.comparisons["max_of_n"]
    scored = bool(largest.scores)
    others = [key for key in MEASURES if key != "max_of_n"]
    return {
        "openings": openings,
        "labels": across.labels,
        "returns": _rows(across, largest, False),
        "returns_caption": f"Mean over environments and seeds of {n}; the same n for all agents. Brackets: 95 % "
        "bootstrap intervals, computed task by task.",
        "scores": _rows(across, largest, True) if scored else [],
        "scores_caption": f"The same on each task’s own scale, on which 0 is the random policy and 100 is named below "
        "that task’s table; both are taken as exact. Where there is an expert, 0 is here random’s own largest among "
        "the same n, and 100 the expert’s. Average: over tasks. IQM: interquartile "
        f"mean over the runs of all tasks. Their intervals: stratified bootstrap ({RESAMPLES:,} resamples, "
        "percentile), in which each task’s seeds and environments are resampled (Agarwal et al. 2021). A task with a "
        "single seed adds nothing about training again.",
        "more": [
            {"name": MEASURES[key], "file": key, "rows": _rows(across, across.comparisons[key], scored)}
            for key in others
        ],
        "pairs": [_pair_row(across, index) for index in range(len(largest.pairs))],
        "notes": across.notes,
    }


def _rows(across: Across, comparison: AgentComparison, scores: bool) -> list[dict[str, Any]]:
    """A row a task; under scores also the average and the IQM."""
    by_task = comparison.scores if scores else comparison.returns
    lines = [(task, True, by_task[task]) for task in across.tasks if task in by_task]
    if scores and comparison.average:
        lines += [("Average", False, comparison.average), ("IQM", False, comparison.iqm)]
    return [
        {"name": name, "task": is_task, "cells": [_blank(label, known.get(label)) for label in across.labels]}
        for name, is_task, known in lines
    ]


def _blank(label: str, number: Any) -> dict[str, str]:
    return cell(label, number) if number is not None else {"name": label, "value": "", "interval": ""}


def _pair_row(across: Across, index: int) -> dict[str, Any]:
    largest, last = (across.comparisons[key].pairs[index] for key in ("max_of_n", "last"))
    whole = len(largest.tasks) == len(across.comparisons["max_of_n"].scores)
    return {
        "name": f"{largest.one} \u2212 {largest.other}" + ("" if whole else f" ({', '.join(largest.tasks)})"),
        "largest": cell("Largest among n", largest.difference, signed=True),
        "largest_verdict": _verdict(largest),
        "last": cell("Last trial", last.difference, signed=True),
        "last_verdict": _verdict(last),
    }


def _verdict(pair: Pair) -> str:
    """The verdict on the agent named first."""
    return {True: "higher", False: "lower", None: pair.verdict}[pair.above]
