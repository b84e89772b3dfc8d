"""The tables of returns of a run's evaluations, and the JSON beside each: named, written and read here."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ringrl.files import alone_in
from ringrl.manifest import MANIFEST, finish, is_there, replace_together, require, require_replaceable
from ringrl.readers import read_json
from ringrl.returns import Swept, TrialReturn, format_returns, read_returns
from ringrl.run_records import EvaluationRecord

RETURNS, TARGETS, DEMONSTRATIONS, EXPLORE, ABLATION = "returns", "targets", "demonstrations", "explore", "ablation-"
"""Tables of evaluation/, without their ending; an ablation's name follows the last."""

FILM = "film.json"
"""What a film in evaluation/ shows, and of which table it is (`ringrl.run_records.FilmRecord`)."""


def swept_in(name: str) -> Swept | None:
    """The column over which a table of that name repeats every trial; None: it repeats nothing."""
    swept: dict[str, Swept | None] = {TARGETS: "target_return", DEMONSTRATIONS: "demonstrations", EXPLORE: "explored"}
    return swept.get(name, "demonstrations" if name.startswith((ABLATION, "probe-")) else None)


class RunTables:
    """The files of one folder of tables.

    Attributes:
        evaluation: the folder; it need not exist.
        own: whether nobody else writes files there.
    """

    def __init__(self, evaluation: Path, own: bool = True):
        self.evaluation, self.own = evaluation, own

    def table(self, name: str = RETURNS) -> Path:
        """The file of a table of returns."""
        return self.evaluation / f"{name}.csv"

    def table_settings_file(self, name: str = RETURNS) -> Path:
        """The JSON beside a table."""
        return self.evaluation / ("evaluation.json" if name == RETURNS else f"{name}.json")

    @contextmanager
    def writing_tables(self, names: Sequence[str]) -> Iterator[None]:
        """Keep other processes from making the same tables. UserError where one does, or they cannot be written."""
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(alone_in(self.evaluation, f".{name}.lock", of=self.table(name)))
            finish(self.evaluation)
            files = [path.name for name in names for path in (self.table(name), self.table_settings_file(name))]
            require_replaceable(self.evaluation, files, own=self.own)
            yield

    def write_table(self, name: str, rows: Sequence[TrialReturn], settings: Mapping[str, Any]) -> Path:
        """Write a table of evaluation/ and the JSON beside it, both or neither; returns the table's path."""
        about = f"{json.dumps(dict(settings), indent=1)}\n".encode()
        files = {self.table_settings_file(name).name: about, self.table(name).name: format_returns(rows)}
        replace_together(self.evaluation, files)
        return self.table(name)

    @property
    def version(self) -> bytes:
        """Another one after each `write_table`: what was read between two equal ones belongs together."""
        path = self.evaluation / MANIFEST
        return path.read_bytes() if path.is_file() else b""

    def read_table(self, name: str = RETURNS) -> tuple[TrialReturn, ...]:
        """The rows of a table. Raises UserError where it is malformed (`ringrl.returns.read_returns`)."""
        require(self.evaluation, promised=False)
        return read_returns(self.table(name), swept_in(name))

    def table_settings(self, name: str = RETURNS) -> dict[str, Any]:
        """The JSON beside a table; empty where there is none."""
        path = self.table_settings_file(name)
        found = read_json(path, EvaluationRecord, "evaluate the run again") if is_there(path) else {}
        return dict(found)

    def ablation_tables(self) -> dict[str, str]:
        """The tables of context ablations, by the ablation's name, in alphabetical order."""
        files = [path.stem for prefix in ("probe-", ABLATION) for path in self.evaluation.glob(f"{prefix}*.csv")]
        return dict(sorted({stem.partition("-")[2]: stem for stem in files}.items()))

    def ablation_table(self, name: str) -> Path:
        """The file of a context ablation's table."""
        return self.table(self.ablation_tables().get(name, f"{ABLATION}{name}"))
