"""The tasks of members: copies of them, and where they are among the tasks of a domain."""

import copy

import numpy as np
import pytest

from ringrl import envs
from ringrl.envs.custom import CUSTOM, hidden


def test_a_members_task_can_be_copied():
    task = envs.make_env("visible_point_mass_goal_10mm", seed=3).task
    for copied in (copy.copy(task), copy.deepcopy(task)):
        np.testing.assert_array_equal(copied.hidden, task.hidden)
        assert copied.random is not None
    with pytest.raises(AttributeError, match="no_such"):
        _ = task.no_such


def test_hidden_tasks_of_no_family_have_none_of_families_among_them():
    assert set(hidden.DOMAINS["hidden_point_mass"]) == {"goal", "actuators"}
    assert set(CUSTOM["hidden_point_mass"]) > {"goal", "actuators", "goal_10mm"}
