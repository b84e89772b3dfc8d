"""What benchmarks/_library_curves.py makes of tables: worked examples of two environments."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import _library_curves
from benchmarks._library_curves import actives, blocks, by_trial, earlier, exploration, gained, ratio
from benchmarks._results_library import GIVEN, OWN, SEED, task
from ringrl.envs import make_env, make_vector
from ringrl.policy import RolloutSpec
from ringrl.returns import TrialReturn
from ringrl.rollout.demonstrations import ContextForm
from ringrl.rollout.stored_trajectories import ContextDraw, StoredTrajectories
from ringrl.sampling.normalizer import Normalizer
from tests.rollout.reward_free import reward_free_store

ACTIVE = np.array([[0, 1, 0, 0], [1, 1, 0, 1]])
RETURNS = np.array([[[0.0, 0, 8, 4], [6, 0, 0, 2]]])


def test_a_table_by_trial():
    rows = [TrialReturn("a", "t", 3, e, t, RETURNS[0, e, t], 400, np.nan) for t in range(4) for e in range(2)]
    np.testing.assert_array_equal(by_trial(rows), RETURNS)


def test_a_ratio_of_sums_and_its_interval():
    value, low, high = ratio(np.array([[2.0, 0.0]]), np.array([[2.0, 2.0]]))
    assert (value, low, high) == (0.5, 0.0, 1.0)  # two environments, drawn again: 0, 1/2 or 1
    assert ratio(np.zeros((1, 2)), np.zeros((1, 2))) is None


def test_trials_by_how_many_there_were_a_member():
    found = blocks(RETURNS, members=2)
    assert list(found) == ["0-1", "1-2"]  # two trials of two members each
    assert (found["0-1"][0], found["1-2"][0]) == (1.5, 3.5)
    assert list(blocks(RETURNS, members=1)) == ["0-1", "1-2", "2-4"]


def test_what_came_before_a_trial_of_its_member():
    visits, payments = earlier(ACTIVE, RETURNS[0] > 0)
    assert visits.tolist() == [[0, 0, 1, 2], [0, 1, 0, 2]]
    assert payments.tolist() == [[0, 0, 0, 1], [0, 1, 0, 1]]


def test_when_members_are_first_paid_beside_chance():
    found = exploration(RETURNS, ACTIVE, np.array([[0.1, 0.2], [0.3, 0.4]]))
    # First trials of members: unpaid, unpaid; paid, unpaid. By second trials: member 0 of the first, 1 of the second.
    assert found["paid"][1]["student"][0] == pytest.approx(1 / 4)
    assert found["paid"][1]["random"][0] == pytest.approx((0.1 + 0.2 + 0.3 + 0.4) / 4)
    assert found["paid"][2]["student"][0] == 1
    assert found["paid"][2]["random"][0] == pytest.approx(((1 - 0.9**2) + (1 - 0.6**2)) / 2)
    assert found["paid"][8] == {"student": None, "random": None}
    # Trials of members that were not paid before: three of the first environment, two of the second; two are paid.
    assert found["unpaid"]["student"][0] == pytest.approx(2 / 5)
    assert found["unpaid"]["random"][0] == pytest.approx((0.1 + 0.2 + 0.1 + 0.4 + 0.3) / 5)
    assert found["return_unpaid"][0] == pytest.approx(14 / 5) and found["return_paid"][0] == pytest.approx(6 / 3)
    assert found["return_paid_by_payments"]["1-1"][0] == 2


def test_the_members_of_trials_are_those_of_a_rollout():
    """Their cues are those with which its trials begin."""
    vector = make_vector(task(4), 2, seed=SEED, workers=0, action_repeat=4, time_limit=4)
    libraries = [make_env(task(4), seed=SEED + index).task.library for index in range(2)]
    seen, found = vector.reset()[0], actives(4, 2, 6)
    for trial in range(6):
        for index in range(2):
            np.testing.assert_array_equal(seen[index, 4:], libraries[index][found[index, trial], :16])
        vector.step_async(np.zeros((2, 2), np.float32), np.ones(2, bool), restart=True)
        seen = vector.step_wait()[0]
    vector.close()


def test_trials_and_trajectories_a_member_are_whole_numbers_of_each():
    assert set(GIVEN) == set(OWN)
    assert all(number % members == 0 for members, numbers in GIVEN.items() for number in numbers)
    assert all(trials % members == 0 and trials // members >= 4 for members, (trials, _) in OWN.items())


def test_what_a_paid_trajectory_of_the_trials_member_is_worth(tmp_path, monkeypatch):
    """In environments whose trial's member no first trajectory is of, and another is; and where none is of it."""
    store = reward_free_store(tmp_path / "free.store", episodes=4)
    scales = Normalizer(np.zeros(20, np.float32), np.ones(20, np.float32), 1.0, 1.0)
    form = ContextForm(RolloutSpec(1000), scales, {"observation": 20, "action": 2}, 4)
    monkeypatch.setattr(_library_curves, "load_agent", lambda run: SimpleNamespace(form=lambda: form))
    monkeypatch.setattr(_library_curves, "PAID", 0.0)  # all trajectories count as paid
    monkeypatch.setitem(_library_curves.GIVEN, 4, (1, 4))
    drawn = StoredTrajectories(store, task(4), form, ContextDraw(4, 12, SEED, "random"))._contexts
    trial, first, none = actives(4, 12, 1)[:, 0], [], []
    for index, context in enumerate(drawn):
        library = make_env(task(4), seed=SEED + index).task.library
        of_it = (context.parameter == library[trial[index]]).all(axis=1)
        if not of_it[0]:
            (first if of_it.any() else none).append(index)
    returns = np.zeros((1, 12, 2))
    returns[0, first, 1], returns[0, none, 1] = 7.0, -2.0
    found = gained(tmp_path, 4, store, returns)
    assert (found["paid_environments"], found["unpaid_environments"]) == (len(first), len(none)) and first and none
    assert (found["paid"], found["unpaid"]) == ([7.0] * 3, [-2.0] * 3)
