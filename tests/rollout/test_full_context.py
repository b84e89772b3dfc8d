"""What is kept of a full context, by name: worked examples, and a rollout that is what its kept trials say."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.errors import UserError
from ringrl.rollout.full_context import Dropped, RoomMaker
from ringrl.rollout.recent_steps import RecentSteps
from ringrl.rollout.trained_agent import TrainedAgent, load_agent
from ringrl.training.loop import run_training

SIZES = {"observation": 1, "action": 1}
TRIAL_STEPS = 4


def recorded(trials: list[tuple[int, float]], capacity: int) -> RecentSteps:
    """One environment's context after trials of (steps, reward of each step); observations count all steps."""
    recent, seen = RecentSteps(1, capacity, SIZES), 0
    for length, reward in trials:
        for step in range(length):
            numbers = {"return_to_go": np.zeros(1, np.float32), "step": np.array([step], np.int32)}
            recent.append({"observation": np.array([[seen]], np.float32), **numbers})
            outcome = {"action": np.full((1, 1), seen, np.float32), "completion": np.zeros(1, np.float32)}
            recent.amend({"reward": np.array([reward], np.float32), **outcome})
            seen += 1
    return recent


def kept(recent: RecentSteps, name: str) -> list[float]:
    return recent.fields[name][0, : recent.count[0]].ravel().tolist()


def test_newest_keeps_the_newest_whole_trials():
    recent = recorded([(4, 9.0), (3, 1.0), (3, 5.0), (2, 0.0)], 12)
    maker = RoomMaker(12, TRIAL_STEPS, "newest")
    maker.make_room(recent, 0, begins=True, at_trial=4)
    assert kept(recent, "observation") == [4, 5, 6, 7, 8, 9, 10, 11]
    assert kept(recent, "trial") == [0, 0, 0, 1, 1, 1, 2, 2]
    assert kept(recent, "position") == list(range(8))
    assert kept(recent, "previous_action") == [0, 4, 5, 0, 7, 8, 0, 10]
    assert list(maker.dropped) == [Dropped(env=0, at_trial=4, trials=1, steps=4)]


def test_best_keeps_the_best_trials_ascending_and_the_present_one():
    # Eight steps are kept: two of the present trial, so six of the earlier ones, whose returns are 36, 3, 15.
    recent = recorded([(4, 9.0), (3, 1.0), (3, 5.0), (2, 0.0)], 12)
    maker = RoomMaker(12, TRIAL_STEPS, "best")
    maker.make_room(recent, 0, begins=False, at_trial=3)
    assert kept(recent, "observation") == [0, 1, 2, 3, 10, 11]
    recent = recorded([(3, 9.0), (3, 1.0), (3, 5.0), (3, 0.0)], 12)
    maker.make_room(recent, 0, begins=True, at_trial=4)
    assert kept(recent, "observation") == [6, 7, 8, 0, 1, 2]
    assert kept(recent, "trial") == [0, 0, 0, 1, 1, 1]
    assert kept(recent, "previous_reward") == [0, 5, 5, 0, 9, 9]
    assert list(maker.dropped) == [Dropped(0, 3, 2, 6), Dropped(0, 4, 2, 6)]


def test_a_trial_that_is_longer_than_what_is_kept_goes_on_from_its_newest_steps():
    recent = recorded([(2, 1.0), (4, 2.0)], 6)
    RoomMaker(6, 6, "newest").make_room(recent, 0, begins=False, at_trial=1)
    assert kept(recent, "observation") == [3, 4, 5]
    assert (kept(recent, "step"), kept(recent, "trial"), kept(recent, "position")) == ([1, 2, 3], [0] * 3, [0, 1, 2])


def test_stop_drops_nothing_and_begins_no_trial_without_room():
    recent = recorded([(4, 1.0), (4, 1.0), (3, 1.0)], 12)
    maker = RoomMaker(12, TRIAL_STEPS, "stop")
    assert maker.room(recent).tolist() == [False]
    assert maker.room(recorded([(4, 1.0), (4, 1.0)], 12)).tolist() == [True]
    with pytest.raises(UserError, match=r"context of environment 0 is full \(12 steps\).*when_full is stop"):
        maker.make_room(recent, 0, begins=True, at_trial=3)
    assert recent.count.tolist() == [11] and not maker.dropped


@settings(max_examples=60, deadline=None)
@given(
    trials=st.lists(st.tuples(st.integers(1, TRIAL_STEPS), st.integers(0, 9)), min_size=3, max_size=12),
    policy=st.sampled_from(["newest", "best"]),
    begins=st.booleans(),
)
def test_there_is_room_for_another_trial_and_kept_trials_are_whole(trials, policy, begins):
    steps = sum(length for length, _ in trials)
    recent = recorded([(length, float(reward)) for length, reward in trials], max(steps, 8))
    maker = RoomMaker(max(steps, 8), TRIAL_STEPS, policy)
    maker.make_room(recent, 0, begins=begins, at_trial=len(trials))
    left = int(recent.count[0])
    assert left <= max(max(steps, 8) - TRIAL_STEPS, max(steps, 8) // 2)
    lengths, starts = [length for length, _ in trials], np.cumsum([0] + [length for length, _ in trials])
    observed, groups = np.array(kept(recent, "observation")), recent.trials(0)
    which = [int(np.searchsorted(starts, observed[group[0]], side="right")) - 1 for group in groups]
    assert [len(group) for group in groups] == [lengths[each] for each in which]
    finished = which if begins else which[:-1]
    returns = [trials[each][0] * trials[each][1] for each in finished]
    assert begins or which[-1] == len(trials) - 1
    assert (finished == sorted(finished)) if policy == "newest" else (returns == sorted(returns))
    assert maker.dropped[0].steps == steps - left and maker.dropped[0].trials == len(trials) - len(groups)


@pytest.fixture(scope="module")
def agent(tmp_path_factory, tiny_config):
    config = tiny_config({"name": "agentic_transformer", "trajectories": 2}, training={"steps": 1})
    path = tmp_path_factory.mktemp("full") / "run"
    run_training(config, path)
    return load_agent(path)


def of_trials(agent: TrainedAgent, trials: int) -> TrainedAgent:
    """The agent with a context of so many trials."""
    return replace(agent, spec=replace(agent.spec, context_steps=trials * TRIAL_STEPS))


def trial(session, seed: int, reward: float) -> np.ndarray:
    """The actions of a trial of 4 steps whose observations are drawn by `seed`."""
    rng, actions = np.random.default_rng(seed), []
    session.new_trial()
    for step in range(TRIAL_STEPS):
        actions.append(session.act(rng.normal(size=5).astype(np.float32)))
        session.observe(reward, step == TRIAL_STEPS - 1)
    return np.stack(actions)


@pytest.mark.parametrize("policy, before", [("newest", [2, 3]), ("best", [2, 0])])
def test_the_rebuilt_cache_is_that_of_the_kept_trials(agent, policy, before):
    """A context of three trials, returns 36, 4, 20, 12: the fifth trial has two before it."""
    session = of_trials(agent, 3).start(trials=8, trial_steps=TRIAL_STEPS, when_full=policy)
    for seed, reward in enumerate((9.0, 1.0, 5.0, 3.0)):
        trial(session, seed, reward)
    acted = trial(session, 4, 2.0)
    steps = session.policy._context._recent
    assert steps.count.tolist() == [3 * TRIAL_STEPS]
    earned = [steps.fields["reward"][0, each * TRIAL_STEPS] for each in range(2)]
    assert np.argsort(earned).tolist() == np.argsort([(9, 1, 5, 3)[each] for each in before]).tolist()
    calls = session.policy._calls
    for step in range(TRIAL_STEPS):
        raw = calls.window(steps.fields, np.array([2 * TRIAL_STEPS + step], np.int32))
        np.testing.assert_allclose(calls.act(raw, None)[0], acted[step], atol=2e-5)
    assert [each.at_trial for each in session.policy.dropped] == [3, 4]


def test_a_session_that_stops_says_whether_there_is_room(agent):
    session = of_trials(agent, 2).start(trials=8, trial_steps=TRIAL_STEPS, when_full="stop")
    trial(session, 0, 1.0)
    assert session.room.all()
    trial(session, 1, 1.0)
    assert not session.room.any()
    session.new_trial()
    with pytest.raises(UserError, match="full"):
        session.act(np.zeros(5, np.float32))
