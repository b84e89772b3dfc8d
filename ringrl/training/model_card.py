"""The model card of an export: `README.md` as the Hugging Face Hub shows it (Mitchell et al. 2019, "Model cards")."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ringrl.config import RunConfig
from ringrl.returns import TrialReturn

CARD = "README.md"
_SOURCES = 5  # of the data, that are named


def model_card(
    config: RunConfig, name: str, step: int, dataset: Mapping[str, Any], returns: Sequence[TrialReturn], parameters: int
) -> str:
    """The page, in Markdown, after a head that the Hub reads.

    Args:
        config: of the run.
        name: what pages call the agent.
        step: gradient steps done.
        dataset: dataset.json.
        returns: the run's evaluation; may be empty.
        parameters: numbers in the model.
    """
    tags = ["reinforcement-learning", "in-context-learning", config.data.task]
    head = {"library_name": "ringrl", "pipeline_tag": "reinforcement-learning", "tags": tags}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines += [f"# {name} on {config.data.task}", ""]
    lines += [f"A transformer of {parameters:,} parameters, after {step:,} gradient steps. Made by ringrl.", ""]
    lines += ["## Use", "", "```python", *_USE, "```", ""]
    lines += ["Without ringrl: ringrl's docs/export.md has the forward pass in NumPy.", ""]
    lines += ["## Data", "", *_data(config, dataset), "", "## Evaluation", "", *_evaluation(config, returns), ""]
    return "\n".join(lines)


_USE = (
    "import ringrl",
    "",
    'agent = ringrl.load_agent("FOLDER")  # asks before it runs agent.py, which is a program',
    "session = agent.start()",
    "session.new_trial()",
    "action = session.act(observation)  # float32 in [-1, 1]",
    "session.observe(reward, done)",
)


def _data(config: RunConfig, dataset: Mapping[str, Any]) -> list[str]:
    sizes, returns = dataset.get("sizes", {}), np.asarray(dataset.get("returns", []), np.float64)
    widths = f"Observations of {sizes.get('observation')} numbers, actions of {sizes.get('action')} in [-1, 1]"
    lines = [f"- {widths}, {config.data.action_repeat} environment step(s) an action."]
    if dataset.get("action_bounds"):
        low, high = dataset["action_bounds"]
        lines.append(f"- Actions of -1 and 1 are {low} and {high} to the actuators.")
    if returns.size:
        low, middle, high = np.percentile(returns, (0, 50, 100))
        lines.append(f"- {returns.size:,} episodes, of returns from {low:,.1f} to {high:,.1f}, median {middle:,.1f}.")
    for source in dataset.get("sources", [])[:_SOURCES]:
        lines.append(f"- {source['name']}: {source['episodes']:,} episodes, collected by {source['collector']}.")
    if (more := len(dataset.get("sources", [])) - _SOURCES) > 0:
        lines.append(f"- and {more:,} sources more.")
    return lines


def _evaluation(config: RunConfig, returns: Sequence[TrialReturn]) -> list[str]:
    """A row an agent: mean returns of its first and its last trial."""
    if not returns:
        return ["Not evaluated."]
    rows = ["| | first trial | last trial | environments |", "|---|---|---|---|"]
    last = max(row.trial for row in returns)
    for agent in dict.fromkeys(row.agent for row in returns):
        mine = [row for row in returns if row.agent == agent]
        ends = [np.mean([row.return_ for row in mine if row.trial == trial]) for trial in (0, last)]
        rows.append(f"| {agent} | {ends[0]:,.1f} | {ends[1]:,.1f} | {len({row.env for row in mine})} |")
    which = f"of trials 1 and {last + 1} in one context, with no weight update"
    return [f"Mean returns in {config.data.task}, {which}:", "", *rows]
