"""A store in, its data-set card out: card.json and one self-contained page."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ringrl.card import card_figures as draw
from ringrl.card.card_facts import Groups, facts, group_sources, notes
from ringrl.card.card_sample import Sample, draw_sample
from ringrl.errors import unwritable
from ringrl.files import alone_in, check_room
from ringrl.manifest import replace_together, require_replaceable
from ringrl.reporting.figures.data_figures import TaskReturns, return_distribution, return_history
from ringrl.reporting.figures.drawing import Drawing, render
from ringrl.reporting.figures.style import SERIES_LIGHT
from ringrl.reporting.page.html import on_page, render_page, versions
from ringrl.store.episode_store import Store, open_store

_SHOWN_ROWS = 40  # of the table of sources; card.json has them all


def write_card(store: Path | str, out: Path | None = None, *, seed: int = 0) -> Path:
    """Write the card of a store and return the path of its `index.html`.

    Counts and returns are of every episode; coverage is of a sample, so that any store takes seconds.

    Args:
        store: its folder or URL.
        out: where to write `card.json` and `index.html`, which replace older ones; default `STORE.card` beside the
            store, or, for a URL, in the working folder.
        seed: of the sample.

    Raises:
        UserError: if the store cannot be read or `out` cannot be written.
    """
    opened = open_store(store, memory_limit=0)
    if out is None:
        out = Path(f"{opened.path}.card") if isinstance(opened.path, Path) else Path(f"{Path(opened.path).name}.card")
    with alone_in(out):
        check_room(out)
        require_replaceable(out, ("index.html", "card.json"), own=False)
        now = datetime.now(UTC)
        card, groups, sample = describe(opened, seed)
        card["written"] = now.isoformat(timespec="seconds")
        page = _page(opened, groups, sample, card, now)
        about = f"{json.dumps(card, indent=1, allow_nan=False)}\n"
        try:
            replace_together(out, {"card.json": about.encode(), "index.html": page.encode()})
        except OSError as error:
            raise unwritable(out, error) from error
    return out / "index.html"


def describe(store: Store, seed: int = 0) -> tuple[dict[str, Any], Groups, Sample]:
    """All that card.json says but for when; how the page groups the sources; and the sample behind the coverage.

    Raises:
        UserError: if the store cannot be read.
    """
    groups = group_sources(store)
    sample = draw_sample(store, groups.of_episode, len(groups.labels), np.random.default_rng(seed))
    card = facts(store, groups, sample)
    return card | {"notes": notes(store, card, sample)}, groups, sample


def _page(store: Store, groups: Groups, sample: Sample, card: dict[str, Any], now: datetime) -> str:
    colours = {label: index % len(SERIES_LIGHT) for index, label in enumerate(groups.labels)}
    return render_page(
        "card.html",
        now,
        colours=colours,
        title=card["store"],
        byline=f"{card['domain']}: data for in-context reinforcement learning",
        counts=_counts(card),
        notes=card["notes"],
        shares=_shares(store, groups),
        sources=_sources(card),
        returns=_returns(card),
        tasks=[_task(store, groups, task, card["tasks"][task], colours) for task in store.tasks],
        coverage=[_rendered(drawing, colours) for drawing in _coverage(sample, groups, card)],
        provenance=[(name.replace("_", " "), str(value)) for name, value in card["provenance"].items()],
        collected=[
            (source["name"], json.dumps(source["collected"], indent=2))
            for source in card["sources"][:_SHOWN_ROWS]
            if source["collected"]
        ],
        versions=versions(),
        numbers="card.json",
    )


def _counts(card: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, number, unit) of the numbers on top."""
    widths, length = card["widths"], card["episode_length"]
    same = length["min"] == length["max"]
    steps = f"{length['median']:g} each" if same else f"{length['min']:g} to {length['max']:g} each"
    counts = [
        ("Episodes", f"{card['episodes']:,}", _ends(card)),
        ("Steps", _amount(card["steps"]), steps),
        ("Observation", f"{widths['observation']}", f"+ {widths['action']} action"),
        ("Physics state", f"{widths['physics']}", "wide" if widths["physics"] else "none kept"),
    ]
    if card["bytes"] is not None:
        counts.append(("On disk", _bytes(card["bytes"]), f"{card['bytes_per_step']:.0f} B a step"))
    return counts


def _ends(card: dict[str, Any]) -> str:
    """How many episodes really end, of those that were looked at."""
    ending, drawn = card["coverage"]["ending_episodes"], card["coverage"]["sampled_episodes"]
    if ending in (0, drawn):
        return "none really ends" if not ending else "all really end"
    return f"{ending:,} of {drawn:,}{' drawn' if drawn < card['episodes'] else ''} really end"


def _shares(store: Store, groups: Groups) -> list[tuple[str, float]]:
    steps = np.bincount(groups.of_episode, weights=store.lengths, minlength=len(groups.labels))
    return [
        (label, round(100 * float(mine / steps.sum()), 2)) for label, mine in zip(groups.labels, steps, strict=True)
    ]


def _sources(card: dict[str, Any]) -> dict[str, Any]:
    shown = card["sources"][:_SHOWN_ROWS]
    columns = {
        "Collector": [source["collector"] or "unknown" for source in shown],
        "Rewarded for": [source["task"] or "\u2013" for source in shown],
        "Episodes": [f"{source['episodes']:,}" for source in shown],
        "Steps": [f"{source['steps']:,}" for source in shown],
        "Share": [f"{source['share']:.1%}" for source in shown],
        "Coverage": [f"{card['coverage']['cells'][source['group']]:.0%}" for source in shown],
    }
    if not any(source["task"] for source in shown):
        del columns["Rewarded for"]
    names = [source["name"].removeprefix(f"{card['domain']}/") for source in shown]
    cells = zip(*columns.values(), strict=True)
    rows = [
        {"name": name, "group": source["group"], "anchor": None, "cells": each}
        for name, source, each in zip(names, shown, cells, strict=True)
    ]
    more = len(card["sources"]) - len(rows)
    return {
        "headings": ["Source", *columns],
        "rows": rows,
        "caption": (f"{more} more sources are in card.json. " if more else "")
        + "Coverage: of all cells of the plane below that equally many steps of every source reach together, the share "
        "that this one reaches.",
    }


def _returns(card: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for name, task in card["tasks"].items():
        rises = [source["monotonicity"] for source in task["sources"]]
        persists = [source["persistence"] for source in task["sources"]]
        best, clone = task["best_tenth"]["return"], task["best_tenth"]["expected"]
        cells = [*map(_number, task["quantiles"].values()), _span(rises), _span(persists)]
        cells += [_number(best), "\u2013" if clone is None else _number(clone)]
        rows.append({"name": name, "group": None, "anchor": name, "cells": cells})
    return {
        "headings": ["Task", "Least", "10%", "Median", "90%", "Greatest", "Rise", "Persistence", "Best tenth",
                     "Its clone"],
        "rows": rows,
        "caption": "Rise: Spearman\u2019s rank correlation of return with place in the source\u2019s history; 1 rises "
        "always, 0 is no order, \u22121 falls always. Histories that rise are what Algorithm Distillation learns from. "
        "Persistence: that of return with the return of the episode before; near 0, returns are luck more than policy. "
        "Its clone: what BC-10 % may expect to earn, the mean and the persistent share of the best tenth\u2019s lead; "
        "not given for short histories.",
    }  # fmt: skip


def _span(values: list[float]) -> str:
    return _signed(values[0]) if len(values) == 1 else f"{_signed(min(values))} to {_signed(max(values))}"


def _task(store: Store, groups: Groups, task: str, card: dict[str, Any], colours: dict[str, int]) -> dict[str, Any]:
    data = TaskReturns(store.returns(task), groups.of_episode, store.source.astype(np.int64), groups.labels)
    middle = _number(card["quantiles"]["0.5"])
    span = f"from {_number(card['quantiles']['0'])} to {_number(card['quantiles']['1'])}"
    drawings = [
        Drawing(
            f"{task}-returns",
            "Returns by source",
            "Each histogram is scaled to its own peak. The line is the median, the bar below reaches from the 10% to "
            "the 90% quantile.",
            f"Histograms of the episodes' returns under {task} for each source: {span}, median {middle}.",
            partial(return_distribution, data=data),
        ),
        Drawing(
            f"{task}-history",
            "Returns in file order",
            "Source after source. Where episodes are many: the median of each stretch, in a band from its 10% to its "
            "90% quantile.",
            f"Return under {task} over the episodes in file order, source after source.",
            partial(return_history, data=data),
        ),
    ]
    rows = [
        {
            "name": store.sources[each["source"]].name.removeprefix(f"{store.domain}/"),
            "group": groups.labels[groups.of_source[each["source"]]],
            "anchor": None,
            "cells": [f"{each['episodes']:,}", *map(_number, [each["mean"], each["std"], *each["quantiles"].values()]),
                      _signed(each["monotonicity"]), _signed(each["persistence"])],
        }
        for each in card["sources"][:_SHOWN_ROWS]
    ]  # fmt: skip
    headings = ["Source", "Episodes", "Mean", "SD", "Least", "10%", "Median", "90%", "Greatest", "Rise", "Persistence"]
    return {
        "name": task,
        "figures": [_rendered(drawing, colours) for drawing in drawings],
        "table": {"headings": headings, "rows": rows},
    }


def _coverage(sample: Sample, groups: Groups, card: dict[str, Any]) -> Sequence[Drawing]:
    first, second = sample.explained
    seen = f"{len(sample.observation):,} steps of {sample.episodes:,} episodes"
    return [
        Drawing(
            "coverage",
            "Observations, two principal components",
            f"A sample of {seen}; every dimension scaled to variance 1. The components hold {first:.0%} and "
            f"{second:.0%} of the variance. Grey: where any source has been.",
            f"Scatter plots of sampled observations on two principal components, one for each of {len(groups.labels)} "
            "sources.",
            partial(draw.coverage, sample=sample, labels=groups.labels),
        ),
        Drawing(
            "ranges",
            "Observations, dimension by dimension",
            "Thin line: from the smallest to the largest value in the sample. Thick line: from the 5% to the 95% "
            "quantile. Dot: median.",
            f"Ranges of the {card['widths']['observation']} dimensions of the observation.",
            partial(draw.ranges, sample=sample),
        ),
    ]


def _rendered(drawing: Drawing, colours: dict[str, int]) -> dict[str, Any]:
    return on_page(render(drawing, colours))


def _amount(count: int) -> str:
    for size, unit in ((1e9, " B"), (1e6, " M")):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return f"{count:,}"


def _bytes(count: int) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _number(value: float) -> str:
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "\u2212")


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "\u2212")
