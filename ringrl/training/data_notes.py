"""What a run's settings and its data disagree about, where it can be known: a line each, in the log and in the run."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from ringrl.agent import Agent, TrainingData
from ringrl.config import RunConfig
from ringrl.model.tokens import TokenLayout
from ringrl.training.processes import is_first
from ringrl.training.training_data import ContextData

_FAR = 0.5  # of the range of the data's returns: how far outside a target is far
_log = logging.getLogger(__name__)


def noted(notes: Iterable[str]) -> list[str]:
    """The notes, after a line in the log of process 0 for each."""
    found = list(notes)
    for note in found if is_first() else ():
        _log.warning("%s", note)
    return found


def training_notes(config: RunConfig, agent: Agent, data: TrainingData) -> list[str]:
    """What training would else be silent about; of data that are no episodes, nothing.

    Time steps or trials beyond the model's tables; an action repeat that is not the data's; and a target return far
    outside the data's.
    """
    card, c, found = data.card, config.data, []
    if "lengths" not in card:
        return []
    if agent.decoder is not None and isinstance(agent.decoder.tokens, TokenLayout):
        longest = -(-card["lengths"][1] // c.action_repeat)
        found += _beyond(
            "steps", config.model.max_steps, longest, f"the longest episode of {c.store} has", "agent steps"
        )
        if config.model.trial_encoding == "table" and isinstance(data, ContextData):
            most = data.most_trajectories()
            found += _beyond("trials", config.model.max_trials, most, "a context has", "trajectories")
    others = [each for each in card["collected"]["action_repeat"] if each != c.action_repeat]
    if others:
        found.append(
            f"data.action_repeat is {c.action_repeat}, and actions of {c.store} were taken every "
            f"{' or '.join(map(str, others))} environment steps, so the agent's are not those that were taken"
        )
    spec = agent.policy.rollout_spec(config.training.row_steps, np.asarray(card["returns"])) if agent.policy else None
    if spec is not None and spec.target is not None and config.evaluation.target is not None:
        found += target_notes([config.evaluation.target], np.asarray(card["returns"]))
    return found


def evaluation_notes(config: RunConfig, agent: Agent, dataset: Mapping[str, Any], trial_steps: int) -> list[str]:
    """What a rollout in `config.data.task`, whose trials have at most so many agent steps, would else be silent about.

    Of a run of an earlier ringrl, whose `dataset` does not say how long episodes are, nothing is known.
    """
    if "lengths" not in dataset:
        return []
    task, found = config.data.task, []
    shortest, longest = (-(-each // config.data.action_repeat) for each in dataset["lengths"])
    # Episodes of many lengths end by themselves, and the longest need not be as long as it could have been.
    if longest > trial_steps or shortest == longest != trial_steps:
        found.append(
            f"a trial of {task} has {trial_steps} agent steps, and the longest episode of the data {longest}: they "
            "are of an environment with another time limit"
        )
    elif agent.decoder is not None and isinstance(agent.decoder.tokens, TokenLayout):
        found += _beyond("steps", config.model.max_steps, trial_steps, f"a trial of {task} has", "agent steps")
    for source, changed in dataset["collected"]["changed_settings"].items():
        said = ", ".join(f"{name} {value}" for name, value in changed.items())
        found.append(f"{source} was collected with {said}, and {task} here is without that")
    return found


def target_notes(targets: Iterable[float], returns: Float64[np.ndarray, " episodes"]) -> list[str]:
    """A note where targets are far outside the data's returns: further than half of their range."""
    low, high = (float(each) for each in (returns.min(), returns.max())) if len(returns) else (-np.inf, np.inf)
    reach = _FAR * ((high - low) or abs(high) or 1.0)
    far = [each for each in targets if not low - reach <= each <= high + reach]
    if not far:
        return []
    return [
        f"target return {', '.join(f'{each:g}' for each in far)}: far outside the data's, {low:g} to {high:g}; nothing "
        "like it was seen in training"
    ]


def _beyond(table: str, rows: int, needed: int, what: str, unit: str) -> list[str]:
    if needed <= rows:
        return []
    return [
        f"model.max_{table} is {rows}, and {what} {needed} {unit}: those after the first {rows} all look like the last "
        f"of these to the model; set model.max_{table}={needed}"
    ]
