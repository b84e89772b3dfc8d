"""Tables of returns, as evaluations write them and reports read them: a row for each trial of each environment."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringrl.errors import UserError
from ringrl.files import write_text

COLUMNS = ("agent", "task", "seed", "env", "trial", "return", "length", "target_return")
"""The header of a table: the fields of `TrialReturn`, in this order."""

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


def write_returns(path: Path, rows: Iterable[TrialReturn]) -> None:
    """Write a table, complete or not at all; a target that is NaN becomes an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        target = "" if math.isnan(row.target_return) else repr(row.target_return)
        writer.writerow([row.agent, row.task, row.seed, row.env, row.trial, repr(row.return_), row.length, target])
    write_text(path, text.getvalue())


def read_returns(path: Path, several_targets: bool = False) -> tuple[TrialReturn, ...]:
    """The rows of a table, in file order.

    Args:
        path: a `returns.csv`, or a table of those columns.
        several_targets: whether it repeats each trial for several target returns, as `targets.csv` does.

    Raises:
        UserError: a wrong header, a cell that is not a number, or a (seed, env, trial) that occurs twice (with
            `several_targets`, twice for one target); names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file (byte {error.start}): evaluate the run again") from None
    lines = csv.reader(text.splitlines())
    header = next(lines, [])
    if tuple(header) != COLUMNS:
        raise UserError(f"{path} line 1: the columns are {','.join(header)!r} but must be {','.join(COLUMNS)!r}")
    rows: list[TrialReturn] = []
    seen: dict[tuple[str, str, int, int, int, float], int] = {}
    for cells in lines:
        if not cells:
            continue
        row = _parse_row(cells, f"{path} line {lines.line_num}")
        if several_targets and not math.isfinite(row.target_return):
            raise UserError(f"{path} line {lines.line_num}: a sweep over targets needs a target_return in every row")
        key = (row.agent, row.task, row.seed, row.env, row.trial, row.target_return if several_targets else 0.0)
        if key in seen:
            raise UserError(
                f"{path} line {lines.line_num}: {row.agent}, seed {row.seed}, env {row.env}, trial {row.trial} "
                f"is already on line {seen[key]}: evaluate the run again"
            )
        seen[key] = lines.line_num
        rows.append(row)
    if not rows:
        raise UserError(f"{path} has no rows: run `ringrl evaluate {path.parent.parent}` again")
    return tuple(rows)


def _parse_row(cells: list[str], where: str) -> TrialReturn:
    if len(cells) != len(COLUMNS):
        raise UserError(f"{where}: {len(cells)} cells where {len(COLUMNS)} are needed ({','.join(COLUMNS)})")
    cell: dict[str, str] = dict(zip(COLUMNS, cells, strict=True))

    def number(column: str, kind: type[int] | type[float], default: str = "") -> Any:
        try:
            return kind(cell[column] or default)
        except ValueError:
            raise UserError(f"{where}: {column} is {cell[column]!r}, which is not {_KIND[kind]}") from None

    row = TrialReturn(
        agent=cell["agent"],
        task=cell["task"],
        seed=number("seed", int),
        env=number("env", int),
        trial=number("trial", int),
        return_=number("return", float),
        length=number("length", int),
        target_return=number("target_return", float, "nan"),
    )
    if not row.agent or not row.task:
        raise UserError(f"{where}: the agent and the task must have names")
    if not math.isfinite(row.return_):
        raise UserError(f"{where}: return is {cell['return']!r}, which is not finite")
    return row
