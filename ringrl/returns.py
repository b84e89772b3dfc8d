"""Tables of returns, as evaluations write them and reports read them: a row for each trial of each environment."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ringrl.errors import UserError
from ringrl.readers import WHOLE, read_csv

_BEGINNINGS = ("demonstrations", "explored")
COLUMNS = ("agent", "task", "seed", "env", "trial", "return", "length", "target_return", *_BEGINNINGS)
"""The header of a table: the fields of `TrialReturn`, in this order. Older tables lack the last, or the last two."""

Swept = Literal["target_return", "demonstrations", "explored"]
"""What a table repeats every trial for."""

_KIND = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class TrialReturn:
    """One row: what one environment returned in one trial."""

    agent: str
    task: str
    seed: int
    env: int
    trial: int
    return_: float  # undiscounted sum of rewards; the column is named `return`
    length: int  # environment steps, action repeats counted
    target_return: float  # that the agent was conditioned on; NaN for agents without return conditioning
    demonstrations: int = 0  # trajectories with which the context began (`ringrl.rollout.demonstrations`)
    explored: int = 0  # trials at the rollout's beginning that acted at random (`ringrl.rollout.exploration`)


def format_returns(rows: Iterable[TrialReturn]) -> bytes:
    """The file of a table; a target that is NaN becomes an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        target = "" if math.isnan(row.target_return) else repr(row.target_return)
        named = [row.agent, row.task, row.seed, row.env, row.trial]
        writer.writerow([*named, repr(row.return_), row.length, target, row.demonstrations, row.explored])
    return text.getvalue().encode()


def read_returns(path: Path, swept: Swept | None = None) -> tuple[TrialReturn, ...]:
    """The rows of a table, in file order.

    Args:
        path: a `returns.csv`, or a table of those columns. What it lacks of the last is 0.
        swept: the column over which it repeats each trial, as `targets.csv` does over the target return.

    Raises:
        UserError: a wrong header, a cell that is not a number, or a (seed, env, trial) that occurs twice (for one value
            of `swept`); names the line.
    """
    lines = read_csv(path, "evaluate the run again")
    _, header = next(lines, (1, []))
    if tuple(header) not in (COLUMNS, COLUMNS[:-1], COLUMNS[:-2]):
        raise UserError(f"{path} line 1: the columns are {','.join(header)!r} but must be {','.join(COLUMNS)!r}")
    rows: list[TrialReturn] = []
    seen: dict[tuple[str, str, int, int, int, float | None], int] = {}
    for line, cells in lines:
        row = _parse_row(cells, header, f"{path} line {line}")
        if swept == "target_return" and not math.isfinite(row.target_return):
            raise UserError(f"{path} line {line}: a sweep over targets needs a target_return in every row")
        key = (row.agent, row.task, row.seed, row.env, row.trial, getattr(row, swept) if swept else None)
        if key in seen:
            raise UserError(
                f"{path} line {line}: {row.agent}, seed {row.seed}, env {row.env}, trial {row.trial} "
                f"is already on line {seen[key]}: evaluate the run again"
            )
        seen[key] = line
        rows.append(row)
    if not rows:
        raise UserError(f"{path} has no rows: run `ringrl evaluate {path.parent.parent}` again")
    return tuple(rows)


def _parse_row(cells: list[str], header: list[str], where: str) -> TrialReturn:
    if len(cells) != len(header):
        raise UserError(f"{where}: {len(cells)} cells where {len(header)} are needed ({','.join(header)})")
    cell: dict[str, str] = dict.fromkeys(_BEGINNINGS, "0") | dict(zip(header, cells, strict=True))

    number = partial(_number, cell, where)
    row = TrialReturn(
        agent=cell["agent"],
        task=cell["task"],
        seed=number("seed", int),
        env=number("env", int),
        trial=number("trial", int),
        return_=number("return", float),
        length=number("length", int),
        target_return=number("target_return", float, "nan"),
        demonstrations=number("demonstrations", int),
        explored=number("explored", int),
    )
    if not row.agent or not row.task:
        raise UserError(f"{where}: the agent and the task must have names")
    if not math.isfinite(row.return_):
        raise UserError(f"{where}: return is {cell['return']!r}, which is not finite")
    if math.isinf(row.target_return):
        raise UserError(f"{where}: target_return is {cell['target_return']!r}, which is not finite")
    return row


def _number(cell: Mapping[str, str], where: str, column: str, kind: type[int] | type[float], default: str = "") -> Any:
    try:
        found = kind(cell[column] or default)
    except ValueError:  # also of a number of thousands of digits
        raise UserError(f"{where}: {column} is {_shown(cell[column])}, which is not {_KIND[kind]}") from None
    if kind is int and not 0 <= found < WHOLE:
        raise UserError(f"{where}: {column} is {_shown(cell[column])}, which is below 0 or too large")
    return found


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else f"{cell[:40]}...")
