"""What a task's part of the page begins with: the question, the answer that the intervals allow, and films."""

import base64
import hashlib
from pathlib import Path

from ringrl.readers import read_json
from ringrl.reporting.page.task_content import unbroken
from ringrl.reporting.statistics.bootstrap import show
from ringrl.reporting.statistics.evaluated_run import EvaluatedRun
from ringrl.reporting.statistics.task_statistics import Analysis
from ringrl.run_records import FilmRecord
from ringrl.run_tables import FILM

_LONGEST_FILM = 2**21
"""Bytes of a film that is put into the page."""

_FORMATS = {".mp4": "video/mp4", ".webm": "video/webm"}

Shown = list[tuple[str, bool | None, str]]
"""Of each agent its name, whether it is shown to earn more (True) or less (False), and by how much."""


def opening(analysis: Analysis) -> dict[str, str] | None:
    """The question that the lead figure answers, and the answer in one sentence; None where there is no comparison.

    An agent is said to earn more or less only where the paired interval of its difference excludes zero.
    """
    if analysis.demonstrations:
        question = "Do more trajectories in the context earn more, with no weight update?"
        ranges = [(each.numbers[0], each.numbers[-1]) for each in analysis.demonstrations]
        between = [f"from {fewest} to {most} trajectories" for fewest, most in ranges]
        shown = [(each.label, each.above("first"), each.gain["first"]) for each in analysis.demonstrations]
        reading = [True for _ in shown]
    else:
        question = "Do agents earn more from trial to trial of a task, with no weight update?"
        several = [series for series in analysis.section.series if series.returns.shape[2] > 1]
        between = [f"from trial 1 to trial {series.returns.shape[2]}" for series in several]
        found = [(series.label, analysis.statistics[series.label]) for series in several]
        shown = [(label, each.improves, each.gain) for label, each in found]
        reading = [series.agent.across_trials for series in several]
    if not shown:
        return None
    common = between[0] if len(set(between)) == 1 else ""
    gains = [show(gain, signed=True) for _, _, gain in shown]
    words = gains if common else [f"{gain} {where}" for gain, where in zip(gains, between, strict=True)]
    readers, others = [], []
    for (label, state, _), text, reads in zip(shown, words, reading, strict=True):
        (readers if reads or state is None else others).append((label, state, text))
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
            parts.append(sentence.format(_listed(found)))
    if others:
        differ = _listed([f"{label} ({gain})" for label, _, gain in others])
        parts.append(f"Different, but with no earlier trial in the context: {differ}.")
    return " ".join(parts)


def _listed(items: list[str]) -> str:
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
        what = f"Trials {_listed(list(map(str, trials)))} side by side, of {where}, whose gain is the median."
    else:
        what = f"Trial {trials[0]} of {where}." if trials else f"All trials of {where}, one after the other."
    address = f"data:{kind};base64,{base64.b64encode(film).decode('ascii')}"
    return {"address": address, "caption": f"{what} Rolled out once more for the film."}
