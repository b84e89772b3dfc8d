"""What goals and fields pay; and goals made in hindsight: in the state where one may lie there, else drawn."""

import numpy as np
import pytest

from ringrl.envs.custom import FAMILIES


@pytest.mark.parametrize(
    ("millimetres", "off", "paid"),
    [(10, 0.01, 1), (10, 0.02, 0.1), (15, 0.03, 0.1), (10, 0.0273, 10**-2.9929), (10, 0.0274, 0), (30, 0.09, 0)],
)
def test_a_goal_pays_1_within_its_radius_a_tenth_at_twice_it_and_then_0(millimetres, off, paid):
    family = FAMILIES[f"point_mass_goal_{millimetres}mm"]
    place, goal = np.float32([0.1, 0.05 + off]), np.float32([0.1, 0.05])
    assert family.reward(place, goal) == pytest.approx(paid, rel=1e-4)


def test_a_field_pays_the_best_of_height_times_nearness():
    family = FAMILIES["point_mass_field"]
    bumps = np.zeros((16, 3), np.float32)
    bumps[:2] = [[0.1, 0.1, 1.0], [0.1, 0.12, 0.5]]
    bumps[2:, :2] = -0.2
    where = np.float32([[0.1, 0.1], [0.1, 0.12], [0.1, 0.13], [0.1, 0.14], [0.0, 0.0]])
    # 2 cm from the first a tenth of 1, less than 0.5; 1 cm further, still within the second; a tenth of 0.5; nothing.
    np.testing.assert_allclose(family.reward(where, bumps.ravel()), [1, 0.5, 0.5, 0.05, 0], rtol=1e-4)
    low = bumps.copy()
    low[0, 2] = 0.005  # a tenth of it would be less than a thousandth
    assert family.reward(np.float32([0.1, 0.08]), low.ravel()) == 0 < family.reward(where[0], low.ravel())
    heights = family.members(np.random.default_rng(0), 100).reshape(100, 16, 3)[..., 2]
    assert (heights[:, 0] == 1).all() and (np.diff(heights) <= 0).all() and (heights > 0.01).all()


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
