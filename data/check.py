"""Episode files -> how far they agree with our environments, row by row.

    ringrl data check walker/rnd

Sets each row's physics state, with its action as the control, and compares the observation and the recorded reward that
follow with the stored ones; and the widths, the lengths and the dummy row with what the domain's should be. Ends with
status 1 if something disagrees.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.formats.description import describe_folder
from ringrl.formats.exorl import DummyRow, EpisodeFile, read_folder, read_with_dummy_row
from ringrl.progress import tracked
from ringrl.quality.column_difference import ATOL, RTOL
from ringrl.quality.consistency import check_episodes
from ringrl.quality.consistency_report import ColumnComparison, ConsistencyReport


@dataclass(frozen=True)
class Args:
    """Compare files in ExoRL's format with our environments."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder of episode files, the one above that contains buffer/, or a .zip of it."""
    domain: str | None = None
    """The domain, where neither collect.json nor the path DOMAIN/ALGORITHM/buffer tells it."""
    task: tuple[str, ...] = ()
    """Task ids of the recorded reward columns, in order. Default: those that the folder tells, else any that fits."""
    episodes: int = 10
    """How many to check, spread evenly over the folder; 0 for all."""
    skip_bad: bool = False
    """Leave bad and foreign files out, say how many, and go on, instead of stopping at the first."""
    clip: bool = False
    """Clip actions to [-1, 1], however far they are beyond, as the environment does too."""
    json: bool = False
    """Print one JSON object instead of the table."""


def main(args: Args) -> None:
    """Check the files.

    Raises:
        UserError: in one line, if the folder cannot be read or there is no such domain or task.
        SystemExit: with status 1, if something disagrees; the last line says what.
    """
    if args.episodes < 0:
        raise UserError(f"--episodes is {args.episodes}: give how many to check, or 0 for all")
    description = describe_folder(args.folder, args.domain)
    reader = read_folder(args.folder, skip_bad=args.skip_bad, move=False, clip=args.clip)
    count = min(args.episodes or len(reader), len(reader))
    chosen = [reader.files[index] for index in np.linspace(0, len(reader) - 1, count).astype(int)]
    episodes = _read(reader, tracked(chosen, f"checking {args.folder}", len(chosen)), args)
    report = check_episodes(episodes, description.domain, reader.dims, args.task or description.tasks)
    problems = report.problems()
    if args.json:
        found = {"agrees": not problems, "problems": problems, "skipped": reader.skipped, "rtol": RTOL, "atol": ATOL}
        print(json.dumps(found | asdict(report)))
    else:
        _print_table(args.folder, report)
        if reader.skipped:
            print(f"{reader.skipped} bad files skipped; the first: {reader.reasons[0]}")
    if problems:
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise SystemExit(f"ringrl: {args.folder} disagrees with our {description.domain}: {problems[0]}{more}")


def _read(reader: read_folder, files: Iterator[EpisodeFile], args: Args) -> Iterator[tuple[Episode, DummyRow]]:
    for path in files:
        try:
            found = read_with_dummy_row(path, dims=reader.dims, clip=args.clip)
        except UserError as error:
            if not args.skip_bad:
                raise
            reader.skip(path, str(error))
        else:
            yield found


def _print_table(folder: Path, report: ConsistencyReport) -> None:
    table = Table(title=f"{folder}: {report.episodes} episodes, {report.rows} rows of {report.domain}")
    for name in ("what", "columns", "largest difference", "rows that agree", ""):
        table.add_column(name)
    for fact in report.facts:
        table.add_row(fact.name, "", "", "", f"{fact.found}{_verdict(fact.agrees)}")
    for part in report.observation:
        table.add_row(f"observation: {part.name}", *_cells(part))
    for column in sorted({each.columns[0] for each in report.rewards}):
        for each in report.of_column(column):
            table.add_row(f"reward: {each.name} {each.mode}".rstrip(), *_cells(each))
    Console(width=None if Console().is_terminal else 160).print(table)
    print(f"Numbers agree if they differ by at most {ATOL:g} + {RTOL:g} times their size.")


def _cells(each: ColumnComparison) -> tuple[str, str, str, str]:
    columns = f"{each.columns[0]}:{each.columns[1]}"
    if each.share is None or each.largest_difference is None:
        return columns, "", "", each.note
    return columns, f"{each.largest_difference:.2g}", f"{each.share:.2%}", f"{each.note}{_verdict(each.agrees)}"


def _verdict(agrees: bool) -> str:
    return "" if agrees else " [red]disagrees[/red]"


if __name__ == "__main__":
    main(tyro.cli(Args))
