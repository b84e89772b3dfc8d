"""What settings and data disagree about is said: each disagreement in one line, and nothing where they agree."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ringrl.agent import make_agent
from ringrl.config import load_config
from ringrl.envs import make_env
from ringrl.run import RunDirectory
from ringrl.training.data_notes import evaluation_notes, noted, target_notes, training_notes
from ringrl.training.loop import run_training
from ringrl.training.training_data import ContextData
from tests.house import ROOT

FUSED = {"name": "agentic_transformer", "trajectories": 2, "fused": True}
SHIPPED = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


@dataclass
class Data:
    """Training data, as far as notes look at them."""

    card: dict[str, Any]
    sizes: dict[str, int]
    normalizer: None = None

    def prepare(self, run):
        """Nothing."""


def card(lengths=(40, 40), repeats=(), changed=None, returns=(0.0, 10.0)):
    about = {"action_repeat": list(repeats), "changed_settings": changed or {}}
    return {"lengths": list(lengths), "collected": about, "returns": list(returns)}


@pytest.fixture
def noted_of(tiny_config):
    """A function (data's card, **sections) -> the notes of a training."""

    def notes(about, agent=FUSED, **sections):
        config = tiny_config(agent, **sections)
        return training_notes(config, make_agent(config.agent), Data(about, {"observation": 5, "action": 1}))

    return notes


def test_what_agrees_is_not_mentioned(noted_of):
    assert noted_of(card(lengths=(3, 64), repeats=[4]), evaluation={"target": 12.0}) == []
    assert noted_of({"tokens": 99, "returns": []}) == []


def test_time_steps_beyond_the_table_are(noted_of):
    (note,) = noted_of(card(lengths=(3, 65)))
    assert note.startswith("model.max_steps is 16, and the longest episode of ") and "has 17 agent steps" in note
    assert note.endswith("set model.max_steps=17")
    assert noted_of(card(lengths=(3, 65)), agent={"name": "td3"}) == [], "it has no table"


def test_trajectories_beyond_the_table_are(tiny_config, tmp_path):
    def notes(**model):
        config = tiny_config(FUSED | {"trajectories": 3}, model=model)
        agent = make_agent(config.agent)
        return training_notes(config, agent, ContextData(config, agent.context_sampler))

    assert notes(max_trials=3, trial_encoding="table") == notes(max_trials=1) == []
    (note,) = notes(max_trials=2, trial_encoding="table")
    assert note.startswith("model.max_trials is 2, and a context has 3 trajectories")


@pytest.mark.parametrize("repeats, said", [([1], "1"), ([2, 4, 8], "2 or 8")])
def test_another_action_repeat_is(repeats, said, noted_of):
    (note,) = noted_of(card(repeats=repeats))
    assert note.startswith("data.action_repeat is 4, and actions of ") and f"every {said} environment steps" in note


def test_targets_far_outside_the_returns_are(noted_of):
    returns = np.array([10.0, 30.0])
    assert target_notes([40.0, 0.0, 20.0], returns) == target_notes([-1e9], np.zeros(0)) == []
    (note,) = target_notes([41.0, 20.0, -1.0], returns)
    assert note.startswith("target return 41, -1: far outside the data's, 10 to 30;")
    assert target_notes([10.0], np.full(3, 8.0)) == [] != target_notes([13.0], np.full(3, 8.0))
    assert len(noted_of(card(), evaluation={"target": 1000.0})) == 1
    bc = {"name": "behavior_cloning", "window": 4}
    assert noted_of(card(), agent=bc, evaluation={"target": 1000.0}) == [], "it has no target"


def test_another_environment_is(tiny_config):
    config = tiny_config(FUSED)
    agent = make_agent(config.agent)

    def notes(trial_steps, **about):
        return evaluation_notes(config, agent, card(**about), trial_steps)

    assert notes(10) == notes(10, lengths=(9, 40)) == notes(12, lengths=(9, 40)) == []
    assert evaluation_notes(config, agent, {"returns": [1.0]}, 999) == [], "a run of an earlier ringrl"
    for trial_steps, lengths in ((9, (40, 40)), (11, (40, 40)), (9, (5, 40))):
        (note,) = notes(trial_steps, lengths=lengths)
        assert note.startswith(f"a trial of cartpole_balance has {trial_steps} agent steps") and "data 10:" in note
    (note,) = notes(17, lengths=(9, 40))
    assert note.startswith("model.max_steps is 16, and a trial of cartpole_balance has 17 agent steps")
    (note,) = notes(10, changed={"D4RL/x": {"max_episode_steps": "300"}})
    assert note == "D4RL/x was collected with max_episode_steps 300, and cartpole_balance here is without that"


def test_training_says_it_at_the_time_and_the_run_keeps_it(tiny_config, tmp_path, caplog):
    config = tiny_config(FUSED, training={"steps": 1}, model={"max_steps": 9})
    with caplog.at_level(logging.WARNING):
        run_training(config, tmp_path / "run")
    said = [record.getMessage() for record in caplog.records if "max_steps" in record.getMessage()]
    assert said == RunDirectory(tmp_path / "run").dataset()["notes"] and len(said) == 1
    assert noted([]) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_agree_with_the_data_they_are_for(name):
    """Data as their comments make them: whole episodes of the task, actions applied for the config's repeat."""
    config = load_config(name)
    agent = make_agent(config.agent)
    if agent.policy is None:
        return
    env = make_env(config.data.task, action_repeat=config.data.action_repeat)
    steps = env.agent_steps
    about = card((env.time_limit_steps,) * 2, [config.data.action_repeat], returns=(0.0, 104.0))
    env.close()
    assert training_notes(config, agent, Data(about, {"observation": 5, "action": 1})) == []
    assert evaluation_notes(config, agent, about, steps) == []
