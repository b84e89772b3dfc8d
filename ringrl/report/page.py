"""Runs in, one self-contained page out."""

import json
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ringrl.errors import UserError
from ringrl.files import write_bytes
from ringrl.report import content, provenance
from ringrl.report.figures import Drawing, Rendered, render, returns_by_trial
from ringrl.report.html import render_page
from ringrl.report.returns import read_run
from ringrl.report.series import Section, arrange
from ringrl.report.statistics import agent_statistics, references
from ringrl.report.style import assign_colours
from ringrl.report.summary import Analysed, summarise


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report on `runs` and return the path of its `index.html`.

    Runs of one agent on one task are pooled as seeds; each task becomes a section. Beside the page stand
    `summary.json`, a PNG of each figure, and `report.png`, the lead figure. `out` is by default the run's own
    `report/`, or `runs/report` for several runs. Every file replaces an older one in one step, the page last.

    Raises:
      UserError: a run that does not exist, is not evaluated or holds a malformed file; or `out` cannot be written.
    """
    paths = list({Path(path).resolve(): Path(path) for path in runs}.values())
    if not paths:
        raise UserError("nothing to report on: give at least one run directory")
    if out is None:
        out = paths[0] / "report" if len(paths) == 1 else Path("runs") / "report"
    analysed = [_analyse(section) for section in arrange([read_run(path) for path in paths])]
    now = datetime.now(UTC)
    figures, sections = _render_sections(analysed)
    documents = {f"{figure.drawing.name}.png": figure.png for figure in figures}
    documents["report.png"] = _lead_png(analysed, figures)
    summary = summarise(analysed, now.isoformat(timespec="seconds"))
    documents["summary.json"] = (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode()
    documents["index.html"] = _page(analysed, sections, now).encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, body in documents.items():
            write_bytes(out / name, body)
    except OSError as error:
        raise UserError(
            f"cannot write the report to {out}: {error.strerror}; choose another place with --out"
        ) from None
    return out / "index.html"


def _analyse(section: Section) -> Analysed:
    statistics = {series.label: agent_statistics(series.returns) for series in section.series}
    return section, statistics, references(section)


def _render_sections(analysed: Sequence[Analysed]) -> tuple[list[Rendered], list[dict[str, Any]]]:
    """All figures in the page's order, and what the template needs of each section."""
    colours = _colours(analysed)
    rendered: list[Rendered] = []

    def draw(drawing: Drawing) -> dict[str, Any]:
        figure = render(drawing, colours)
        rendered.append(figure)
        return {"drawing": drawing, "wide": Markup(figure.wide), "narrow": Markup(figure.narrow)}

    sections = []
    for entry in analysed:
        suffix = "" if len(analysed) == 1 else f"-{_slug(entry[0].task)}"
        figures = content.drawings(entry, suffix)
        sections.append(
            {
                "task": entry[0].task,
                "slug": _slug(entry[0].task),
                "notes": entry[0].notes,
                "findings": content.findings(entry),
                "table": content.table(entry),
                "per_trial": content.per_trial(entry),
                "lead": draw(figures["lead"]),
                "target": draw(figures["target"]) if figures["target"] else None,
                "data": [
                    {"store": data["store"], "figures": [draw(data["histogram"]), draw(data["history"])]}
                    for data in figures["data"]
                ],
                "loss": draw(figures["loss"]) if figures["loss"] else None,
                "provenance": provenance.provenance(entry[0]),
            }
        )
    return rendered, sections


def _colours(analysed: Sequence[Analysed]) -> dict[str, int]:
    return assign_colours([(series.label, series.agent) for section, _, _ in analysed for series in section.series])


def _lead_png(analysed: Sequence[Analysed], figures: Sequence[Rendered]) -> bytes:
    if len(analysed) == 1:
        return figures[0].png
    drawing = Drawing("report", "", "", "", partial(returns_by_trial, sections=analysed, named=True))
    return render(drawing, _colours(analysed)).png


def _page(analysed: Sequence[Analysed], sections: list[dict[str, Any]], now: datetime) -> str:
    agents = dict.fromkeys(series.label for section, _, _ in analysed for series in section.series)
    return render_page(
        "report.html",
        now,
        colours=_colours(analysed),
        title=sections[0]["task"] if len(sections) == 1 else f"{len(sections)} tasks",
        overview=content.overview(analysed),
        slugs={section["task"]: section["slug"] for section in sections},
        byline=", ".join(agents),
        numbers="summary.json",
        sections=sections,
        versions=[*provenance.versions(), ("Python", platform.python_version())],
    )


def _slug(task: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]+", "-", task)
