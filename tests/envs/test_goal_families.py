"""Goals made in hindsight: in the state where one may lie there, else drawn as tasks are."""

import numpy as np
import pytest

from ringrl.envs.custom import FAMILIES


@pytest.mark.parametrize("name", ["point_mass_goal_10mm", "point_mass_field"])
def test_goals_of_states_at_the_walls_do_not_gather_at_the_edge_of_the_arena(name):
    family, rng = FAMILIES[name], np.random.default_rng(0)
    inside, just, wall = ([0.1, -0.2], [0.27, 0.1], [0.29, 0.1])  # goals lie within 0.26
    states = np.repeat(np.float32([inside, just, wall]), 1000, axis=0)
    goals = family.hindsight(rng, states)[:, :2].reshape(3, 1000, 2)
    np.testing.assert_array_equal(goals[0], states[:1000])
    np.testing.assert_array_equal(goals[1], np.broadcast_to(np.float32([0.26, 0.1]), (1000, 2)))  # pays 1 at 1 cm
    assert np.abs(goals[2]).max() <= 0.26 and np.abs(goals[2]).mean() == pytest.approx(0.13, abs=0.01)
    wide = FAMILIES["point_mass_goal_30mm"].hindsight(rng, states)
    np.testing.assert_array_equal(wide[2000:], np.broadcast_to(np.float32([0.26, 0.1]), (1000, 2)))


def test_of_the_maze_they_are_drawn_outside_its_walls():
    states = np.tile(np.float32([0.29, 0.1, 1.0]), (3000, 1))
    goals = np.abs(FAMILIES["point_mass_maze_goal_15mm"].hindsight(np.random.default_rng(0), states))
    clipped = FAMILIES["point_mass_maze_goal_15mm"].hindsight(
        np.random.default_rng(0), states - np.float32([0.02, 0, 0])
    )
    assert not ((goals.min(axis=1) < 0.03) & (goals.max(axis=1) < 0.2)).any()
    np.testing.assert_array_equal(clipped, np.broadcast_to(np.float32([0.26, 0.1]), (3000, 2)))
