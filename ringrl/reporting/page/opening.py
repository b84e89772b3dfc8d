"""What a task's part of the page begins with: the question, the answer that the intervals allow, and films."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ringrl.readers import read_json
from ringrl.reporting.page.task_content import unbroken
from ringrl.reporting.statistics.bootstrap import Estimate, show, show_number
from ringrl.reporting.statistics.evaluated_run import EvaluatedRun
from ringrl.reporting.statistics.task_statistics import Analysis
from ringrl.run_records import FilmRecord
from ringrl.run_tables import FILM

_LONGEST_FILM = 2**21
"""Bytes of a film that is put into the page."""

_FORMATS = {".mp4": "video/mp4", ".webm": "video/webm"}

Shown = list[tuple[str, bool | None, str]]
"""Of each agent its name, whether it is shown to earn more (True) or less (False), and by how much."""


@dataclass(frozen=True)
class Compared:
    """What a question is answered by: of one agent, what it is compared over, and the difference.

    Attributes:
        label: the agent's.
        between: from what to what.
        state: shown to earn more (True), less (False), or neither (None).
        gain: the paired difference.
        reads: whether its context has what it is compared over.
    """

    label: str
    between: str
    state: bool | None
    gain: Estimate
    reads: bool


def compared(analysis: Analysis) -> tuple[str, list[Compared]]:
    """The question of a task's lead figure, and what answers it: an entry an agent that has a comparison.

    An agent is said to earn more or less only where the paired interval of its difference excludes zero.
    """
    if analysis.demonstrations:
        return "Do more trajectories in the context earn more, with no weight update?", [
            Compared(
                each.label,
                f"from {each.numbers[0]} to {each.numbers[-1]} trajectories",
                each.above("first"),
                each.gain["first"],
                True,
            )
            for each in analysis.demonstrations
        ]
    several = [(each, analysis.statistics[each.label]) for each in analysis.section.series if each.returns.shape[2] > 1]
    return "Do agents earn more from trial to trial of a task, with no weight update?", [
        Compared(
            series.label,
            f"from trial 1 to trial {series.returns.shape[2]}",
            statistics.improves,
            statistics.gain,
            series.agent.across_trials,
        )
        for series, statistics in several
    ]


def opening(analysis: Analysis) -> dict[str, str] | None:
    """The question that the lead figure answers, and the answer in one sentence; None where there is no comparison."""
    question, entries = compared(analysis)
    if not entries:
        return None
    common = entries[0].between if len({each.between for each in entries}) == 1 else ""
    readers, others = [], []
    for each in entries:
        gain = show(each.gain, signed=True)
        shown = (each.label, each.state, gain if common else f"{gain} {each.between}")
        (readers if each.reads or each.state is None else others).append(shown)
    return {"question": question, "answer": unbroken(_answer(readers, others, common))}


def _answer(readers: Shown, others: Shown, between: str) -> str:
    """`others`: agents whose context ends with a trial; where they differ, it is no learning in context."""
    where = f", {between}" if between else ""
    sentences = {
        True: ("{} by {}", f"Yes{where}: {{}}."),
        False: ("{} by {}", f"Less{where}: {{}}."),
        None: ("{} ({})", "Not shown for {}."),
    }
    parts = []
    for state, (each, sentence) in sentences.items():
        if found := [each.format(label, gain) for label, shown, gain in readers if shown is state]:
            parts.append(sentence.format(listed(found)))
    if others:
        differ = listed([f"{label} ({gain})" for label, _, gain in others])
        parts.append(f"Different, but with no earlier trial in the context: {differ}.")
    return " ".join(parts)


def listed(items: Sequence[str]) -> str:
    """One, two and three."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def films(analysis: Analysis) -> list[dict[str, str]]:
    """Films of evaluations that are small enough to be in the page: label, address and what they show."""
    found = []
    for series in analysis.section.series:
        film = next((film for run in series.distinct_runs if (film := _film(run))), None)
        if film is not None:
            found.append({"label": series.label} | film)
    return found


def _film(run: EvaluatedRun) -> dict[str, str] | None:
    """The film beside a run's tables, if it is of the present ones."""
    folder = run.directory.evaluation
    if not (folder / FILM).is_file():
        return None
    about = read_json(folder / FILM, FilmRecord, "film again with --video, or delete the file")
    path = folder / Path(about["film"]).name  # nothing outside the folder
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None or path.is_symlink() or not path.is_file() or path.stat().st_size > _LONGEST_FILM:
        return None
    film = path.read_bytes()
    hashes = [hashlib.sha256(content).hexdigest() for content in (film, run.directory.table().read_bytes())]
    if hashes != [about["sha256"], about["of"]]:
        return None
    trials, where = about["trials"], f"environment {about['env']} of {about['run']}"
    if len(set(trials)) > 1:
        what = f"Trials {listed(list(map(str, trials)))} side by side, of {where}, whose gain is the median."
    else:
        what = f"Trial {trials[0]} of {where}." if trials else f"All trials of {where}, one after the other."
    address = f"data:{kind};base64,{base64.b64encode(film).decode('ascii')}"
    return {"address": address, "caption": f"{what} Rolled out once more for the film{_earned(run, about)}."}


def _earned(run: EvaluatedRun, about: FilmRecord) -> str:
    """What the trials of a film earned in it, and in the table where that is not the same."""
    if not (returns := about.get("returns")):
        return ""
    table = {row.trial + 1: row.return_ for row in run.returns if (row.env, row.agent) == (about["env"], run.label)}
    numbers = about["trials"] or range(1, len(returns) + 1)
    filmed, evaluated = (
        listed([show_number(value) for value in values])
        for values in (returns, [table[trial] for trial in numbers if trial in table] or returns)
    )
    same = "as in the table" if filmed == evaluated else f"in the table {evaluated}"
    return f", with returns of {filmed}, {same}"
