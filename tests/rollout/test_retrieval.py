"""Retrieval: an agent that sees the member, given a member that pays in the best-paid state of its context.

And the same agent in a canonical task, given the member that the task is.
"""

import csv
import json

import numpy as np
import pytest

from ringrl.cli.run_verbs import EvaluateVerb
from ringrl.envs import HELD_OUT, family_of, make_env
from ringrl.errors import UserError
from ringrl.policy import ContextPolicy, RolloutSetting, RolloutSpec
from ringrl.reporting import write_report
from ringrl.rollout.evaluate import evaluate, load_evaluated
from ringrl.rollout.retrieval import FeatureForm, TrainedRetrieval, as_retrieval, is_canonical, is_retrieval
from ringrl.rollout.stored_trajectories import ContextDraw, StoredTrajectories
from ringrl.rollout.trained_agent import load_agent
from ringrl.rollout.transition_policy import TransitionPolicy
from ringrl.sampling.normalizer import Normalizer
from ringrl.training.loop import run_training
from tests.builders import limit_evaluation, make_config
from tests.rollout.reward_free import FAMILY, HIDDEN, VISIBLE, reward_free_store

GOALS = family_of(HIDDEN)
assert GOALS is not None
SETTING = RolloutSetting(environments=2, trial_steps=6, trials=1, seed=HELD_OUT, first=4)


@pytest.fixture(scope="module", autouse=True)
def short_episodes():
    with pytest.MonkeyPatch.context() as patch:
        limit_evaluation(patch, 22)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return reward_free_store(tmp_path_factory.mktemp("retrieval") / "free.store")


def learned(path, store, task):
    """A run of TD3 that sees members of a family, learned from the store's features."""
    sections = {
        "data": {"store": str(store.path), "task": task, "action_repeat": 4},
        "agent": {"name": "td3", "hidden": [8]},
        "training": {"steps": 2},
        "evaluation": {"trials": 1, "envs": 3, "seed": HELD_OUT},
    }
    run_training(make_config(sections), path)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, store):
    return learned(tmp_path_factory.mktemp("teacher") / "run", store, VISIBLE)


def policy(known=None):
    """Retrieval by an agent whose action is the member that it sees, in environments 4 and 5."""
    scales = Normalizer(np.zeros(6, np.float32), np.ones(6, np.float32), 1.0, 1.0)
    sees = TransitionPolicy(lambda observation: observation[:, 4:], scales, 7)
    return TrainedRetrieval(sees, GOALS, known).start(RolloutSpec(1), SETTING)


def context(rewards, trial=(0, 0, 1)) -> dict[str, np.ndarray]:
    feature = np.array([[0.1, 0.0], [0.0, 0.2], [-0.1, 0.05]], np.float32)
    return {"trial": np.array(trial, np.int32), "reward": np.array(rewards, np.float32), "feature": feature}


def test_the_best_paid_state_is_where_it_goes():
    acts = policy()
    assert isinstance(acts, ContextPolicy)
    guess = acts.act(np.zeros((2, 4), np.float32))
    acts.demonstrate([context([0.1, 0.9, 0.3]), context([0.0, 0.0, 0.0])])
    assert acts.demonstrations == 2
    found = acts.act(np.zeros((2, 4), np.float32))
    np.testing.assert_array_equal(found[0], np.float32([0.0, 0.2]))
    np.testing.assert_array_equal(found[1], guess[1])  # nothing was paid
    acts.forget(np.array([True, True]))
    np.testing.assert_array_equal(acts.act(np.zeros((2, 4), np.float32)), guess)
    assert acts.demonstrations == 0


def test_states_in_which_no_member_pays_are_passed_over():
    """A goal at the arena's edge, 0.26, pays 0.1 in 0.32; no goal of 30 mm pays a hundredth in 0.36."""
    acts, unpaid = policy(), policy().parameter
    beyond = context([0.2, 0.1, 0.3]) | {"feature": np.float32([[0.36, 0.0], [0.1, 0.1], [0.4, 0.0]])}
    nowhere = context([0.2, 0.0, 0.3]) | {"feature": beyond["feature"]}
    acts.demonstrate([beyond, nowhere])
    np.testing.assert_array_equal(acts.parameter[0], np.float32([0.1, 0.1]))
    np.testing.assert_array_equal(acts.parameter[1], unpaid[1])
    many = {"trial": np.zeros(200, np.int32), "reward": np.linspace(1, 0.5, 200, dtype=np.float32)}
    feature = np.full((200, 2), 0.4, np.float32)
    feature[150:] = np.linspace(0, 0.2, 50, dtype=np.float32)[:, None]
    acts.demonstrate(many | {"feature": feature})
    np.testing.assert_array_equal(acts.parameter, np.zeros((2, 2), np.float32))


def test_a_guess_is_another_member_than_the_environments_and_the_expert_knows_that():
    guess, known = policy().parameter, policy(GOALS.member).parameter
    np.testing.assert_array_equal(known, [GOALS.member(HELD_OUT + 4), GOALS.member(HELD_OUT + 5)])
    assert (np.abs(guess - known).max(axis=1) > 0.01).all()


def test_it_goes_on_as_it_was_saved():
    acts, again = policy(), policy()
    acts.demonstrate(context([0.1, 0.9, 0.3]))
    again.restore(acts.state())
    assert again.demonstrations == 2
    np.testing.assert_array_equal(again.parameter, np.float32([[0.0, 0.2]] * 2))


def test_it_is_shown_the_rewards_and_features_of_environment_steps(store):
    form = FeatureForm(RolloutSpec(1), policy()._inner.normalizer, {"observation": 4, "action": 2}, 4)
    shown = StoredTrajectories(store, HIDDEN, form, ContextDraw(3, 2, HELD_OUT, "random"))
    fields, given = shown.first(3).of(1, 1)[0], shown._contexts[1]
    assert fields["trial"].tolist() == [0] * 22 + [1] * 22 + [2] * 22
    paid = GOALS.reward(fields["feature"], np.tile(GOALS.member(HELD_OUT + 1), (66, 1)))
    np.testing.assert_array_equal(fields["reward"], paid)
    first = store.first_rows[given.episodes[2]] + 1
    np.testing.assert_array_equal(fields["feature"][44:], store.features(FAMILY)[first : first + 22])


def test_a_visible_agent_is_evaluated_in_the_hidden_task(teacher, store, tmp_path):
    table = evaluate(teacher, task=HIDDEN)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert table == teacher / "evaluation" / HIDDEN / "returns.csv"
    assert [row["agent"] for row in rows[::3]] == ["retrieval", "random", "expert"]
    own = evaluate(teacher, reference=False)  # in the visible task, of the same members: what the expert does
    with own.open() as file:
        assert [row["return"] for row in csv.DictReader(file)] == [row["return"] for row in rows[6:]]
    EvaluateVerb(teacher, task=HIDDEN, demonstrations=str(store.path), trajectories=(0, 4, 8)).run()
    page = write_report(teacher, tmp_path / "report")
    found = json.loads((page.parent / "summary.json").read_text())["tasks"][HIDDEN]
    assert found["demonstrations"]["Retrieval"]["numbers"] == [0, 4, 8] and found["references"]["expert"]


def test_what_is_no_retrieval_is_refused(teacher):
    assert is_retrieval(VISIBLE, HIDDEN) and is_retrieval(VISIBLE, "hidden_point_mass_goal_10mm")
    assert not is_retrieval(HIDDEN, VISIBLE) and not is_retrieval(VISIBLE, "point_mass_easy")
    with pytest.raises(UserError, match="observation has 4 numbers, the agent .* was trained on 6"):
        evaluate(teacher, task="point_mass_easy")
    with pytest.raises(UserError, match="--ablation: retrieval keeps one state of its demonstrations") as refused:
        EvaluateVerb(teacher, task=HIDDEN, ablation=("blind",)).run()
    assert "\n" not in str(refused.value)
    with pytest.raises(
        UserError, match="--task hidden_point_mass_maze.*: is of point_mass_maze, and td3 sees members of"
    ):
        evaluate(teacher, task="hidden_point_mass_maze_goal_15mm")  # of the same widths
    agent = load_agent(teacher)
    with pytest.raises(UserError, match="has a context of its own"):
        as_retrieval(teacher, load_evaluated(teacher, "latest", {}, HIDDEN).agent, HIDDEN)
    assert as_retrieval(teacher, agent, HIDDEN).name == "retrieval"


def test_in_a_canonical_task_it_is_given_the_member_that_the_task_is(tmp_path):
    """So it earns what it earns in the family's visible task, of that member."""
    store = reward_free_store(tmp_path / "motion.store", 2, task="cheetah_run", name="cheetah_motion")
    run = learned(tmp_path / "run", store, "visible_cheetah_motion")
    table = evaluate(run, task="cheetah_flip", seed=7)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert table == run / "evaluation" / "cheetah_flip" / "returns.csv"
    assert [row["agent"] for row in rows] == ["td3"] * 3 + ["random"] * 3
    family, session = family_of("visible_cheetah_motion"), load_agent(run).start(trial_steps=6)
    assert family is not None
    env = make_env(
        "visible_cheetah_motion", seed=8, action_repeat=4, time_limit=22, parameter=family.canonical["cheetah_flip"]
    )
    observation, _ = env.reset()
    session.new_trial()
    earned, done = 0.0, False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(session.act(observation))
        done = terminated or truncated
        session.observe(reward, done)
        earned += reward
    np.testing.assert_allclose(float(rows[1]["return"]), earned, rtol=1e-5)
    with pytest.raises(UserError, match="td3's context is the present trial alone"):
        EvaluateVerb(run, task="cheetah_flip", demonstrations=str(store.path), trajectories=(2,)).run()


def test_what_is_no_canonical_task_of_the_family():
    assert is_canonical("visible_walker_motion", "walker_run")
    assert not is_canonical("visible_walker_motion", "cheetah_run")
    assert not is_canonical("hidden_walker_motion", "walker_run")  # the student's: of its own widths
    assert not is_canonical("walker_walk", "walker_run")
