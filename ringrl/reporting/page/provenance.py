"""Where the numbers come from: runs, configs, versions."""

from typing import Any

import numpy as np
import yaml

from ringrl.reporting.page.training_content import training_numbers
from ringrl.reporting.statistics.evaluated_run import EvaluatedRun
from ringrl.reporting.statistics.series import TaskSection


def provenance(section: TaskSection) -> dict[str, Any]:
    """A row a run: where its numbers come from; and each run's whole config."""
    rows, configs = [], []
    for series in section.series:
        for run in series.distinct_runs:
            seeds = [str(seed) for seed, owner in zip(series.seeds, series.runs, strict=True) if owner is run]
            facts = {"Run": run.name, "Seed": ", ".join(seeds)} | _training_facts(run) | _evaluation_facts(run)
            rows.append({"label": series.label, "facts": facts})
            if run.config:
                configs.append((run.name, yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)))
    headings = list(dict.fromkeys(name for row in rows for name in row["facts"]))
    return {"headings": headings, "rows": rows, "configs": configs}


def _training_facts(run: EvaluatedRun) -> dict[str, str]:
    metrics = run.metrics
    if not len(metrics.step):
        return {}
    facts = {"Steps": f"{metrics.step[-1]:,}", "Last loss": f"{metrics.loss[-1]:.3g}"}
    if (validation := training_numbers(metrics)["validation_loss"]) is not None:
        facts["Validation loss"] = f"{validation:.3g}"
    for name, values, form in (
        ("Tokens", metrics.tokens, "{:,.0f}"),
        ("Tokens/s", metrics.tokens_per_s, "{:,.0f}"),
        ("MFU", metrics.mfu, "{:.1%}"),
    ):
        known = values[np.isfinite(values)]
        if len(known):  # totals at the end, rates in the middle: the first steps compile
            facts[name] = form.format(known[-1] if name == "Tokens" else np.median(known))
    return facts


def _evaluation_facts(run: EvaluatedRun) -> dict[str, str]:
    names = {
        "checkpoint_step": "Checkpoint",
        "seed": "Evaluation seed",
        "context": "Context",
        "seconds": "Evaluated in",
    }
    found = {name: run.evaluation.get(key) for key, name in names.items()}
    facts = {name: _plain(value) for name, value in found.items() if value is not None}
    if "Evaluated in" in facts:
        facts["Evaluated in"] += " s"
    return facts


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
