"""What `ringrl evaluate` and `ringrl report` say on the screen: tables of returns, and answers; or JSON for scripts."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ringrl.readers import ObjectRecord, read_json
from ringrl.reporting.statistics.bootstrap import Estimate, estimate, show
from ringrl.returns import TrialReturn, read_returns
from ringrl.run_tables import swept_in

_MOST_TRIALS = 6  # columns of a table

ByTrial = dict[str, list[Estimate]]
"""Who acted, and under which setting -> the mean return of each trial over the environments, with its interval."""


def means_of(table: Path) -> ByTrial:
    """The mean return of each trial, of each agent and each value of what the table repeats, in the table's order.

    Raises:
        UserError: the table is malformed.
    """
    swept = swept_in(table.stem)
    rows, groups = read_returns(table, swept), dict[str, list[TrialReturn]]()
    several = swept is not None and len({getattr(row, swept) for row in rows}) > 1
    for row in rows:
        how = "" if swept is None or not several else f", {_NAMES[swept]} {getattr(row, swept):g}"
        groups.setdefault(f"{row.agent}{how}", []).append(row)
    return {name: _by_trial(rows) for name, rows in groups.items()}


_NAMES = {"target_return": "target", "demonstrations": "demonstrations", "explored": "exploring trials"}


def _by_trial(rows: Sequence[TrialReturn]) -> list[Estimate]:
    trials = sorted({row.trial for row in rows})
    return [estimate(np.array([[row.return_ for row in rows if row.trial == trial]])) for trial in trials]


def print_tables(tables: Sequence[Path], as_json: bool) -> None:
    """Print each table's path and mean returns with 95 % intervals over environments; with `as_json` one object."""
    found = {str(table): means_of(table) for table in tables}
    if as_json:
        print(json.dumps({"tables": {path: _plain(means) for path, means in found.items()}}))
        return
    for path, means in found.items():
        print(f"returns: {path}")
        for line in _lines(means):
            print(f"  {line}")


def _plain(means: ByTrial) -> dict[str, list[dict[str, float | None]]]:
    return {
        name: [
            {
                "value": each.value,
                "low": each.low if each.has_interval else None,
                "high": each.high if each.has_interval else None,
            }
            for each in trials
        ]
        for name, trials in means.items()
    }


def _lines(means: ByTrial) -> Iterator[str]:
    """The table in aligned columns: some trials, first and last among them, of all."""
    most = max(len(trials) for trials in means.values())
    shown = sorted({round(n) for n in np.linspace(0, most - 1, min(most, _MOST_TRIALS))})
    rows = [["mean return, 95 %", *(f"trial {trial + 1}" for trial in shown)]]
    rows += [
        [name, *(show(trials[trial]) if trial < len(trials) else "" for trial in shown)]
        for name, trials in means.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "   ".join([name.ljust(widths[0]), *padded]).rstrip()


def print_report(page: Path, as_json: bool) -> None:
    """Print a report's answers and its path; with `as_json` its summary.json, with the page's path as `report`.

    Raises:
        UserError: the summary cannot be read.
    """
    summary: Any = read_json(page.parent / "summary.json", ObjectRecord, "write the report again")
    if as_json:
        print(json.dumps({"report": str(page)} | summary))
        return
    for each in (summary["across_tasks"] or {}).get("openings", []):
        print(f"{len(summary['tasks'])} tasks: {each['question']} {each['answer']}")
    for task, about in summary["tasks"].items():
        if about["opening"] is not None:
            print(f"{task}: {about['opening']['question']} {about['opening']['answer']}")
    for about in summary["trainings"]:
        if not about["evaluated"]:
            of = f" of {about['steps']:,}" if about["steps"] else ""
            print(f"{about['run']}: not evaluated; trained for {about['step'] or 0:,}{of} steps")
    print(f"report: {page}")
