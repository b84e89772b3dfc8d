"""Trials that explore: random actions of known draws, after which the agent acts as a full forward pass says."""

import csv
import json

import numpy as np
import pytest

from ringrl.cli.run_verbs import EvaluateVerb
from ringrl.errors import UserError
from ringrl.manifest import replace_together
from ringrl.policy import RolloutSetting
from ringrl.returns import read_returns
from ringrl.rollout.evaluate import evaluate
from ringrl.rollout.exploration import Exploration
from ringrl.rollout.repetitions import repeat
from ringrl.rollout.trained_agent import load_agent
from ringrl.training.loop import run_training
from tests.builders import limit_evaluation
from tests.rollout.test_demonstrated_rollouts import AGENTS, forward, own_trial, rows_of

TRIALS, STEPS = 4, 6


@pytest.fixture(scope="module", autouse=True)
def short_episodes():
    with pytest.MonkeyPatch.context() as patch:
        limit_evaluation(patch, 22)  # environment steps: 6 agent steps of up to 4
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
    """Algorithm Distillation, with contexts of 72 agent steps."""
    path = tmp_path_factory.mktemp("exploring") / "ad"
    run_training(tiny_config(AGENTS["ad"], training={"steps": 2, "row_steps": 72}), path)
    return path


def actions(correlation: float, trial: int, env: int = 0, steps: int = 5) -> np.ndarray:
    """What an environment does in a trial that explores, float32 [steps, 2]."""
    exploration = Exploration(RolloutSetting(3, steps, 9, seed=7, explore=9, explore_correlation=correlation))
    for _ in range(trial + 1):
        exploration.begin_trial(np.ones(3, bool))
    return np.stack([exploration.draw(2)[1][env] for _ in range(steps)])


def test_draws_are_uniform_and_those_of_the_environment_and_the_trial():
    drawn = np.random.default_rng((7, 13, 1, 2)).uniform(-1, 1, (5, 2)).astype(np.float32)
    np.testing.assert_array_equal(actions(0.0, trial=2, env=1), drawn)
    assert not np.array_equal(actions(0.0, trial=1, env=1), drawn)
    many = actions(0.0, 0, steps=4000)
    assert abs(many.mean()) < 0.03 and abs(many.std() - 3**-0.5) < 0.02 and np.abs(many).max() <= 1


def test_correlated_draws_last():
    many = actions(0.9, 0, steps=4000)[:, 0]
    assert np.corrcoef(many[:-1], many[1:])[0, 1] > 0.8
    assert 0.3 < (np.abs(many) == 1).mean() < 0.5  # P(|z| > 1 / 1.2) = 0.40


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_environments_explore_for_trials_of_their_own(correlation):
    """The second environment's trials are shorter: after three of them it acts itself, while the first explores."""
    setting = RolloutSetting(2, 4, 9, explore=3, explore_correlation=correlation)
    exploration, explored = Exploration(setting), []
    exploration.begin_trial(np.ones(2, bool))
    for step in range(12):
        explored.append(exploration.draw(1)[0])
        exploration.begin_trial(np.array([step % 4 == 3, step % 2 == 1]))
        if step == 5:  # in the midst of a trial
            state = {name: value.copy() for name, value in exploration.state().items()}
            resumed = Exploration(setting)
            resumed.restore(state)
            expected = exploration_of(setting, 1, state)
            for after in range(2):
                np.testing.assert_array_equal(resumed.draw(1)[1][0], expected[after])
    assert np.stack(explored)[:, 0].all()
    assert np.stack(explored)[:, 1].tolist() == [True] * 6 + [False] * 6


def exploration_of(setting: RolloutSetting, trial: int, state: dict) -> np.ndarray:
    """The actions of the first environment's trial, from where the state is."""
    whole = Exploration(setting)
    for _ in range(trial + 1):
        whole.begin_trial(np.ones(2, bool))
    return np.stack([whole.draw(1)[1][0] for _ in range(8)])[int(state["explore/taken"][0]) :]


@pytest.mark.parametrize("environments", [1, 3])
def test_it_acts_on_what_was_explored(run, environments):
    """Two trials explore, unseen by the model; the other two are those of a pass over all steps."""
    agent = load_agent(run)
    session = agent.start(environments, trials=TRIALS, trial_steps=STEPS, explore=2)
    assert session.explored == 2
    own, taken = zip(*(own_trial(session, environments, seed) for seed in range(TRIALS)), strict=True)
    for trial in range(2):
        drawn = np.random.default_rng((0, 13, 0, trial)).uniform(-1, 1, (STEPS, 1)).astype(np.float32)
        np.testing.assert_array_equal(taken[trial][:, 0], drawn)
    assert environments == 1 or not np.array_equal(taken[0][:, 0], taken[0][:, 1])
    fields = agent.form().show(list(own)).fields[0]
    acted = np.concatenate(taken[2:])[:, 0]
    np.testing.assert_allclose(acted, forward(agent, fields, 2 * STEPS), atol=2e-5)


def test_a_saved_session_explores_on(run, tmp_path):
    agent = load_agent(run)
    session = agent.start(2, trials=TRIALS, trial_steps=STEPS, explore=2, explore_correlation=0.5)
    own_trial(session, 2, 0)
    session.save(tmp_path / "session")
    resumed = agent.resume(tmp_path / "session")
    for seed in (1, 2):
        one, other = (own_trial(each, 2, seed)[1] for each in (session, resumed))
        np.testing.assert_allclose(one, other, rtol=0, atol=0 if seed == 1 else 2e-5)


def test_tables_say_how_many_trials_explored(run, capsys):
    options = {"trials": 3, "reference": False, "explore": 1}
    rows = rows_of(evaluate(run, **options))
    assert {row["explored"] for row in rows} == {"1"}
    plain = rows_of(evaluate(run, trials=3, reference=False))
    EvaluateVerb(run, trials=3, explore=(0, 1, 2)).run()
    table = run / "evaluation" / "explore.csv"
    assert str(table) in capsys.readouterr().out
    swept = rows_of(table)
    assert [row["explored"] for row in swept] == ["0"] * 6 + ["1"] * 6 + ["2"] * 6
    assert swept[:6] == plain and swept[6:12] == rows
    first, second = ([row["return"] for row in swept[at : at + 12] if row["trial"] == "0"] for at in (6, 12))
    assert first[:2] == first[2:] and first == second[:2] * 2  # what explores does not depend on for how long
    about = json.loads(table.with_suffix(".json").read_text())
    assert about["explore"] == [0, 1, 2] and about["explore_correlation"] == 0.0


def test_who_cannot_explore_is_refused(run, tmp_path, tiny_config):
    with pytest.raises(UserError, match="--explore.* is 3 of 3 trials"):
        evaluate(run, trials=3, explore=3)
    with pytest.raises(UserError, match="--explore.* is 2 of 2 trials"):
        repeat(run, explore=(0, 2), trials=2)
    with pytest.raises(UserError, match="--explore: give one number"):
        repeat(run, explore=(0, 1), trials=2, ablations=("blind",))
    with pytest.raises(UserError, match="start: .*explore_correlation"):
        load_agent(run).start(trial_steps=STEPS, explore_correlation=1.0)
    run_training(tiny_config({"name": "behavior_cloning"}, training={"steps": 1}), tmp_path / "bc")
    with pytest.raises(UserError, match="behavior_cloning looks at the present trial alone"):
        evaluate(tmp_path / "bc", explore=1)
    with pytest.raises(UserError, match="behavior_cloning looks at the present trial alone"):
        load_agent(tmp_path / "bc").start(trial_steps=STEPS, explore=1)


def test_a_table_without_the_column_is_read(run):
    table = evaluate(run, trials=1, reference=False)
    with table.open() as file:
        lines = [row[:-1] for row in csv.reader(file)]
    replace_together(table.parent, {table.name: "\n".join(",".join(line) for line in [*lines, ""]).encode()})
    assert {row.explored for row in read_returns(table)} == {0}
