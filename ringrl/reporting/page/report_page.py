"""Runs in, one self-contained page out."""

import json
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ringrl.errors import UserError
from ringrl.files import alone_in, check_room, user_path
from ringrl.manifest import replace_together, require_replaceable
from ringrl.reporting.figures.drawing import Drawing, Rendered, render
from ringrl.reporting.figures.style import assign_colours
from ringrl.reporting.figures.trial_figures import returns_by_trial
from ringrl.reporting.page import context_content, exploration_content, task_content
from ringrl.reporting.page.across_content import across_tables
from ringrl.reporting.page.across_opening import openings_across, title_of
from ringrl.reporting.page.html import on_page, render_page, versions
from ringrl.reporting.page.opening import films, opening
from ringrl.reporting.page.provenance import provenance
from ringrl.reporting.page.summary import summarise
from ringrl.reporting.page.training_content import training_labels, trainings
from ringrl.reporting.statistics.across_tasks import Across, compare_across
from ringrl.reporting.statistics.evaluated_run import EvaluatedRun, read_runs
from ringrl.reporting.statistics.series import arrange
from ringrl.reporting.statistics.task_statistics import Analysis, analyse
from ringrl.run import RunDirectory


def write_report(runs: Sequence[Path | str] | Path | str, out: Path | str | None = None) -> Path:
    """Write the report on `runs` and return the path of its `index.html`.

    Runs of one label on one task are pooled as seeds; each task becomes a section, also those other than a run's own in
    which it was evaluated. Beside the page are
    `summary.json`, a PNG of each figure, and `report.png`, the lead figure. `out` is by default the run's own
    `report/`, or `runs/report` for several runs. All files replace older ones together.

    Args:
      runs: one run directory or several. Of those that are not evaluated, the losses are shown.
      out: the folder of the page.

    Raises:
      UserError: a run that does not exist, has logged nothing or has a malformed file; or `out` cannot be written.

    Example:
      >>> import ringrl
      >>> page = ringrl.report("runs/cartpole", "reports/cartpole")
      >>> sorted(path.name for path in page.parent.iterdir())[:3]
      ['SHA256SUMS', 'data_history.png', 'data_returns.png']
    """
    paths = _distinct(runs)
    out = user_path(out) if out is not None else None
    if out is None:
        out = RunDirectory(paths[0]).report if len(paths) == 1 else Path("runs") / "report"
    read = [run for path in paths for run in read_runs(path)]
    with alone_in(out):
        check_room(out)
        require_replaceable(out, ("index.html", "summary.json", "report.png"), own=False)
        return _write_page(read, out)


def summarise_runs(runs: Sequence[Path | str] | Path | str) -> dict[str, Any]:
    """The numbers of a report on `runs`, as in its summary.json, without drawing or writing anything.

    Raises:
      UserError: a run that does not exist or has a malformed file.
    """
    read = [run for path in _distinct(runs) for run in read_runs(path)]
    analyses, across = _analyse(read)
    return summarise(analyses, across, read, datetime.now(UTC).isoformat(timespec="seconds"))


def _distinct(runs: Sequence[Path | str] | Path | str) -> list[Path]:
    runs = [runs] if isinstance(runs, Path | str) else runs
    paths = list({path.resolve(): path for path in map(user_path, runs)}.values())
    if not paths:
        raise UserError("nothing to report on: give at least one run directory")
    return paths


def _analyse(runs: Sequence[EvaluatedRun]) -> tuple[list[Analysis], Across | None]:
    analyses = [analyse(section) for section in arrange([run for run in runs if run.returns])]
    return analyses, compare_across(analyses) if len(analyses) > 1 else None


def _write_page(runs: Sequence[EvaluatedRun], out: Path) -> Path:
    """`write_report`, by the process that has the lock."""
    analyses, across = _analyse(runs)
    now = datetime.now(UTC)
    unevaluated = [run for run in runs if not run.returns]
    about = trainings(unevaluated)
    colours = _colours(analyses, list(training_labels(unevaluated)))
    figures, sections = _render_sections(analyses, colours)
    if about and about["drawing"]:
        figure = render(about["drawing"], colours)
        figures.append(figure)
        about |= {"figure": on_page(figure)}
    if not figures:
        raise UserError(f"{runs[0].path}: is not evaluated, and has not logged a training step yet; wait for one")
    documents = {f"{figure.drawing.name}.png": figure.png for figure in figures}
    documents["report.png"] = _lead_png(analyses, figures, colours)
    summary = summarise(analyses, across, runs, now.isoformat(timespec="seconds"))
    documents["summary.json"] = (json.dumps(summary, separators=(",", ":"), allow_nan=False) + "\n").encode()
    documents["index.html"] = _page(analyses, across, sections, about, colours, now).encode()
    try:
        replace_together(out, documents)
    except OSError as error:
        raise UserError(
            f"cannot write the report to {out}: {error.strerror}; choose another place with --out"
        ) from None
    return out / "index.html"


def _render_sections(
    analyses: Sequence[Analysis], colours: dict[str, int]
) -> tuple[list[Rendered], list[dict[str, Any]]]:
    """All figures in the page's order, and what the template needs of each section."""
    rendered: list[Rendered] = []

    def draw(drawing: Drawing) -> dict[str, Any]:
        figure = render(drawing, colours)
        rendered.append(figure)
        return on_page(figure)

    def draw_in(part: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if part is None else part | {"figure": draw(part["drawing"])}

    sections = []
    for entry in analyses:
        suffix = "" if len(analyses) == 1 else f"-{_slug(entry.section.task)}"
        figures = task_content.drawings(entry, suffix)
        # Drawn first where there is a curve: the first figure is the lead figure.
        demonstrations = draw_in(context_content.demonstrations(entry, suffix))
        sections.append(
            {
                "task": entry.section.task,
                "slug": _slug(entry.section.task),
                "opening": opening(entry),
                "films": films(entry),
                "notes": entry.section.notes,
                "findings": task_content.findings(entry),
                "table": task_content.table(entry),
                "per_trial": task_content.per_trial(entry),
                "lead": draw(figures["lead"]) if figures["lead"] else None,
                "trajectories": draw_in(context_content.trajectories(entry, suffix)),
                "demonstrations": demonstrations,
                "ablations": draw_in(context_content.ablations(entry, suffix)),
                "explorations": draw_in(exploration_content.explorations(entry, suffix)),
                "demonstrated_ablations": draw_in(context_content.demonstrated_ablations(entry, suffix)),
                "target": draw_in(context_content.target(entry, suffix)),
                "data": [
                    {"store": data["store"], "figures": [draw(data["histogram"]), draw(data["history"])]}
                    for data in figures["data"]
                ],
                "loss": draw(figures["loss"]) if figures["loss"] else None,
                "provenance": provenance(entry.section),
            }
        )
    return rendered, sections


def _colours(analyses: Sequence[Analysis], unevaluated: list[str]) -> dict[str, int]:
    """One colour a label over all tasks; labels of one task, and curves of one figure, have different ones."""
    series = [list(analysis.statistics) for analysis in analyses]
    curves = [[curve.label for curve in analysis.curves] for analysis in analyses]
    return assign_colours([*series, *curves, unevaluated])


def _lead_png(analyses: Sequence[Analysis], figures: Sequence[Rendered], colours: dict[str, int]) -> bytes:
    if len(analyses) <= 1:
        return figures[0].png
    drawing = Drawing("report", "", "", "", partial(returns_by_trial, sections=analyses, named=True))
    return render(drawing, colours).png


def _page(
    analyses: Sequence[Analysis],
    across: Across | None,
    sections: list[dict[str, Any]],
    about: dict[str, Any] | None,
    colours: dict[str, int],
    now: datetime,
) -> str:
    agents = across.labels if across else list(analyses[0].statistics) if analyses else list(colours)
    tasks = [section["task"] for section in sections]
    openings = openings_across(analyses, across) if across else []
    return render_page(
        "report.html",
        now,
        colours=colours,
        title=title_of(tasks) if len(tasks) > 1 else tasks[0] if tasks else "Trainings",
        across=across_tables(across, openings) if across else None,
        slugs={section["task"]: section["slug"] for section in sections},
        byline=" · ".join(agents),
        numbers="summary.json",
        sections=sections,
        trainings=about,
        versions=[*versions(), ("Python", platform.python_version())],
    )


def _slug(task: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]+", "-", task)
