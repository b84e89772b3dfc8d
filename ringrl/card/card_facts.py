"""What a data-set card says of a store, as numbers and as words."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ringrl.card.card_sample import Sample
from ringrl.quality.return_history import monotonicity, persistence, regressed
from ringrl.sampling.samplers import top_fraction
from ringrl.store.episode_store import Store

FORMAT = "ringrl data-set card"
FORMAT_VERSION = 1
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
SHOWN_GROUPS = 9  # ExoRL's collectors; the last has the first's colour, and is far from it
_BINS = 40
_PERSISTS = 0.2  # persistence below which returns are called luck, in histories of
_MANY = 100  # episodes and more: of fewer, chance alone gives correlations of that size
_RISES = 0.3  # Spearman's rank correlation above which a history may be called a learner's


@dataclass(frozen=True)
class Groups:
    """The sources as the page tells them apart: each for itself, or where they are too many, by collector.

    Attributes:
        labels: of the groups, in the order of their first source.
        of_source: int64 [sources], the group of every source.
        of_episode: int64 [episodes], the group of every episode.
    """

    labels: tuple[str, ...]
    of_source: Int64[np.ndarray, " sources"]
    of_episode: Int64[np.ndarray, " episodes"]


def group_sources(store: Store) -> Groups:
    """Groups of sources, `SHOWN_GROUPS` at most; the smallest collectors are pooled if there are more."""
    names = [source.name.removeprefix(f"{store.domain}/") for source in store.sources]
    labels = [name if names.count(name) == 1 else f"{name} #{index + 1}" for index, name in enumerate(names)]
    if len(labels) > SHOWN_GROUPS:
        labels = [source.collector or "unknown collector" for source in store.sources]
    sizes: Counter[str] = Counter()
    for label, episodes in zip(labels, np.bincount(store.source, minlength=len(labels)), strict=True):
        sizes[label] += int(episodes)
    if len(sizes) > SHOWN_GROUPS:
        kept = {label for label, _ in sizes.most_common(SHOWN_GROUPS - 1)}
        labels = [label if label in kept else "others" for label in labels]
    order = list(dict.fromkeys(labels))
    of_source = np.asarray([order.index(label) for label in labels], np.int64)
    return Groups(tuple(order), of_source, of_source[store.source])


def facts(store: Store, groups: Groups, sample: Sample) -> dict[str, Any]:
    """The whole of card.json but for `written` and `notes`; a pure function of the store and the sample."""
    steps = int(store.lengths.sum())
    size = _size_on_disk(store.path)
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "store": Path(str(store.path)).name,
        "domain": store.domain,
        "episodes": store.episodes,
        "steps": steps,
        "widths": store.dims._asdict(),
        "bytes": size,
        "bytes_per_step": None if size is None else round(size / steps, 2),
        "episode_length": _named(("min", "median", "max"), np.quantile(store.lengths, (0, 0.5, 1))),
        "sources": [_source(store, groups, index) for index in range(len(store.sources))],
        "tasks": {task: _task(store, task) for task in store.tasks},
        "coverage": _coverage(groups, sample),
        "provenance": store.provenance,
    }


def _source(store: Store, groups: Groups, index: int) -> dict[str, Any]:
    source, mine = store.sources[index], store.lengths[store.source == index]
    return {
        "name": source.name,
        "group": groups.labels[groups.of_source[index]],
        "collector": source.collector,
        "task": source.task,
        "episodes": len(mine),
        "steps": int(mine.sum()),
        "share": round(float(mine.sum() / store.lengths.sum()), 6),
        "relabelled": source.relabelled,
        "collected": source.collected,
    }


def _task(store: Store, task: str) -> dict[str, Any]:
    returns = store.returns(task)
    low, high = float(returns.min()), float(returns.max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    whole = _distribution(returns, edges) | {"histogram_edges": _numbers(edges)}
    return whole | {
        "best_tenth": _best_tenth(store, returns),
        "sources": [
            {"source": index, "monotonicity": round(monotonicity(mine), 4), "persistence": round(persistence(mine), 4)}
            | _distribution(mine, edges)
            for index in range(len(store.sources))
            if len(mine := returns[store.source == index])
        ],
    }


def _best_tenth(store: Store, returns: Float64[np.ndarray, " episodes"]) -> dict[str, Any]:
    """Mean return of the episodes that BC-10 % learns from, and what their clone may expect.

    The latter is None if one of the histories they come from is too short to tell luck.
    """
    chosen = top_fraction(store.lengths, returns)
    lasting = np.full_like(returns, np.nan)
    for index in np.unique(store.source[chosen]):
        mine = store.source == index
        if mine.sum() >= _MANY:
            lasting[mine] = regressed(returns[mine])
    expected = float(lasting[chosen].mean())
    return {
        "return": round(float(returns[chosen].mean()), 6),
        "expected": None if np.isnan(expected) else round(expected, 6),
    }


def _distribution(returns: Float64[np.ndarray, " mine"], edges: Float64[np.ndarray, " edges"]) -> dict[str, Any]:
    return {
        "episodes": len(returns),
        "mean": round(float(returns.mean()), 6),
        "std": round(float(returns.std()), 6),
        "quantiles": _named([f"{level:g}" for level in QUANTILES], np.quantile(returns, QUANTILES)),
        "histogram": np.histogram(returns, edges)[0].tolist(),
    }


def _coverage(groups: Groups, sample: Sample) -> dict[str, Any]:
    ranges = dict(zip(("min", "q05", "median", "q95", "max"), map(_numbers, sample.ranges), strict=True))
    return {
        "sampled_episodes": sample.episodes,
        "sampled_steps": len(sample.observation),
        "explained_variance": _numbers(sample.explained),
        "cells": {label: round(share, 4) for label, share in zip(groups.labels, sample.cells, strict=True)},
        "observation": ranges,
        "action_at_limit": round(float(sample.action_at_limit), 4),
        "discount_zero": round(float(sample.discount_zero), 6),
        "ending_episodes": sample.ending,
    }


def notes(store: Store, card: dict[str, Any], sample: Sample) -> list[str]:
    """What is missing or odd, in words; empty where nothing is."""
    found = [note for task in store.tasks for note in _task_notes(store, task, card["tasks"][task])]
    for index, task in enumerate(store.tasks):
        alike = [other for other in store.tasks[:index] if np.array_equal(store.returns(task), store.returns(other))]
        if alike and np.ptp(store.returns(task)):
            found.append(f"{task} pays every episode what {alike[0]} pays it.")
    empty = [source["name"] for source in card["sources"] if not source["episodes"]]
    if empty:
        found.append(f"No episode of {', '.join(empty)} is in the store: all its files were bad.")
    copies = _copies(store)
    if copies > 0.01 * store.episodes:
        found.append(f"{copies:,} episodes equal an earlier one in length and every return: copies, most likely.")
    still = np.flatnonzero(sample.ranges[0] == sample.ranges[-1])
    if len(still):
        found.append(f"Observations never change in dimension {_listed(still)} of {store.dims.observation}.")
    if sample.action_at_limit > 0.5:
        found.append(f"{sample.action_at_limit:.0%} of the actions are at the limit, -1 or 1.")
    if sample.ending:
        found.append(_ends(sample.ending, sample.episodes, store.episodes))
    if not store.dims.physics:
        found.append("There are no physics states, so rewards of other tasks cannot be computed from this store.")
    modes = {source.relabelled for source in store.sources} | {store.provenance.get("relabel")}
    if "exorl" in modes:
        found.append("Rewards are ExoRL's own number, which leaves out the action (relabel mode exorl).")
    return found


def _ends(ending: int, drawn: int, episodes: int) -> str:
    """How many episodes really end, of those that were looked at."""
    looked = "" if drawn == episodes else f" that were looked at, of {episodes:,} in all,"
    if ending == drawn:
        return f"All {drawn:,} episodes{looked} really end (discount 0)."
    return f"{ending:,} of {drawn:,} episodes{looked} really end (discount 0); the others stop at a time limit."


def _copies(store: Store) -> int:
    """Episodes with the length and all the returns of an earlier one. Whole numbers do not count: sparse rewards, and
    episodes of nothing, give the same sums by themselves."""
    keys = np.column_stack([store.lengths, *(store.returns(task) for task in store.tasks)])
    telling = keys[(keys % 1 != 0).any(axis=1)]
    return len(telling) - len(np.unique(telling, axis=0))


def _task_notes(store: Store, task: str, card: dict[str, Any]) -> list[str]:
    returns = store.returns(task)
    if np.ptp(returns) == 0 and len(returns) > 1:
        return [f"{task}: every episode returns {returns[0]:g}; there is nothing to learn from."]
    found = []
    zero = float((returns == 0).mean())
    if zero >= 0.5:
        found.append(f"{task}: {zero:.0%} of the episodes return exactly 0.")
    constant = [
        store.sources[each["source"]].name for each in card["sources"] if each["std"] == 0 and each["episodes"] > 1
    ]
    if constant:
        found.append(f"{task}: all episodes of {_listed(constant)} return the same.")
    flat = [each for each in card["sources"] if each["monotonicity"] < _RISES]
    if len(flat) == len(card["sources"]):
        found.append(
            f"{task}: no history rises (rank correlation of return and order below {_RISES:g}); Algorithm Distillation "
            "needs order=sorted here."
        )
    long = [each["persistence"] for each in card["sources"] if each["episodes"] >= _MANY and each["std"] > 0]
    if long and max(long) < _PERSISTS:
        found.append(
            f"{task}: returns hardly persist from one episode to the next (rank correlation at most {max(long):.2f}): "
            "they are luck more than policy, or the policy changes fast. Choosing episodes by their return, or asking "
            "for a high one, promises little."
        )
    return found


def _listed(items: Any, most: int = 6) -> str:
    shown = ", ".join(str(item) for item in list(items)[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return dict(zip(names, _numbers(values), strict=True))


def _numbers(values: np.ndarray) -> list[float]:
    """As JSON shall show them: seven digits, which is what float32 holds."""
    return [float(f"{value:.7g}") for value in np.asarray(values, np.float64)]


def _size_on_disk(path: Path | str) -> int | None:
    """Bytes of a store's files; None for one that is not on this disk."""
    if not isinstance(path, Path):
        return None
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
