"""Families of motion: factors worked by hand, what is drawn, and which members lie near canonical tasks."""

import numpy as np
import pytest

from ringrl.envs.custom import FAMILIES
from ringrl.envs.custom.canonical_states import paid_by_doing
from ringrl.envs.custom.motion_terms import NOTHING, Quantity, alike, at_least, at_most, counting, linear

WALKER, CHEETAH, QUADRUPED = (FAMILIES[f"{domain}_motion"] for domain in ("walker", "cheetah", "quadruped"))
PLANAR = [WALKER, CHEETAH]


def member(family, **numbers):
    """A member of these numbers, the others 0."""
    assert set(numbers) <= set(family.parameters)
    return np.float32([numbers.get(name, 0.0) for name in family.parameters])


def state(family, **numbers):
    assert set(numbers) <= set(family.features)
    return np.float32([numbers.get(name, 0.0) for name in family.features])


@pytest.mark.parametrize(
    ("factor", "wanted"),
    [  # of -2, 0, 1, 2, 3, 6
        (NOTHING, [1, 1, 1, 1, 1, 1]),
        (at_least(2.0, 0.5), [0, 0, 0.5, 1, 1, 1]),
        (at_most(0.0, 0.5), [1, 1, 0.5, 0, 0, 0]),
        (at_least(2.0, 0.5, weight=0.75), [0.25, 0.25, 0.625, 1, 1, 1]),
        ((1.0, 2.0, 1.0, 0.25, 1.0), [0, 0, 1, 1, 0.75, 0]),
    ],
)
def test_a_factor_is_1_between_its_bounds_and_falls_on_the_sides_that_are_not_open(factor, wanted):
    values = np.array([-2.0, 0, 1, 2, 3, 6])
    np.testing.assert_array_equal(linear(values, np.tile(factor, (6, 1))), wanted)


def test_a_quantity_is_asked_to_reach_its_target_or_to_stay_about_it():
    rng, speed = np.random.default_rng(0), Quantity("speed", (0.5, 10.0), chance=1.0)
    low, high, rise, fall, weight = speed.draw(rng, 3000).T
    assert speed.parameters == ("speed_low", "speed_high", "speed_rise", "speed_fall", "speed_weight")
    forward, backward, about = (rise > 0) & (fall == 0), (fall > 0) & (rise == 0), (rise > 0) & (fall > 0)
    assert (forward | backward | about).all() and (weight > 0.8).all()
    assert [each.mean().round(1) for each in (forward, backward, about)] == [0.3, 0.3, 0.3]
    assert (low[forward] > 0.5).all() and (high[backward] < -0.5).all() and (low < high)[about].all()
    assert (low == high)[~about].all()
    # Where nothing moves nothing is paid to those who are asked to move fast: 1 falls to 0 before.
    assert (linear(np.zeros(3000), np.stack([low, high, rise, fall, np.ones(3000)], 1))[forward | backward] <= 0).all()


def test_in_hindsight_a_quantity_is_asked_for_what_it_was():
    rng, speed = np.random.default_rng(0), Quantity("speed", (0.5, 10.0), chance=1.0)
    values = rng.normal(0, 2, 2000)
    factors = speed.fit(rng, values)
    np.testing.assert_allclose(linear(values, factors), 1, rtol=1e-9)
    small = np.abs(values) < 0.5
    assert (factors[small, 2:4] > 0).all()  # at rest: stay so
    assert ((factors[~small, 2] > 0) | (values[~small] < 0)).all()


def test_at_least_one_quantity_counts():
    quantities = (Quantity("a", (1.0, 2.0), chance=0.2), Quantity("b", (1.0, 2.0), chance=0.1))
    counts = counting(np.random.default_rng(0), quantities, 5000)
    assert counts.any(axis=1).all() and counts.all(axis=1).mean() == pytest.approx(0.02, abs=0.01)


@pytest.mark.parametrize(
    ("factor", "near"),
    [
        (at_least(8.0, 0.125), True),
        (at_least(9.9, 0.3, weight=0.5), True),  # any slope and weight
        (at_least(10.1, 0.125), False),
        (at_most(8.0, 0.125), False),
        ((7.0, 9.0, 1.0, 1.0, 1.0), True),  # about 8 m/s
        (NOTHING, False),
    ],
)
def test_a_factor_near_running_asks_for_about_8_metres_a_second(factor, near):
    assert alike(np.array([factor]), np.array(at_least(8.0, 0.125, weight=5 / 6)))[0] == near
    assert alike(np.array([factor]), np.array(NOTHING))[0] == (factor == NOTHING)


@pytest.mark.parametrize("family", PLANAR)
def test_members_of_planar_families_by_hand(family):
    one = member(
        family,
        **{"speed_low": 2, "speed_high": 2, "speed_rise": 0.5, "speed_weight": 0.5},
        **{"height_low": 0.5, "height_high": 0.6, "height_rise": 10, "height_fall": 5},
        **{"posture_sine": 1, "posture_cosine": 0, "posture_slope": 2, "both_weight": 1},
    )
    lying = {"height": 0.55, "sine": 1.0, "cosine": 0.0}
    table = [
        (state(family, speed=2.0, **lying), 1.0),
        (state(family, speed=1.0, **lying), 0.75),  # half of it is worth half of it
        (state(family, speed=-3.0, **lying), 0.5),
        (state(family, speed=2.0, height=0.4, sine=1.0), 0.1),
        (state(family, speed=2.0, height=0.8, sine=1.0), 0.1),
        (state(family, speed=2.0, height=0.55, sine=0.6, cosine=0.8), 0.2),  # 1 - 2 (1 - 0.6)
        (state(family, speed=2.0, height=0.55, sine=0.0, cosine=1.0), 0.0),
        (state(family, speed=2.0, spin=9.0, **lying), 1.0),  # the spin does not count
    ]
    for where, wanted in table:
        assert family.reward(where, one) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("family", PLANAR)
def test_planar_members_ask_for_something_and_for_different_things(family):
    members = family.members(np.random.default_rng(0), 4000).astype(np.float64)
    index = {name: family.parameters.index(name) for name in family.parameters}
    speed, spin, *body = (
        members[:, index[f"{each}_weight"]] for each in ("speed", "spin", "height", "posture", "both")
    )
    kinds = np.stack([speed > 0, spin > 0, *(each > 0 for each in body)], axis=1)
    assert kinds.any(axis=1).all() and (kinds[:, 2:].sum(axis=1) <= 1).all()
    assert len(np.unique(kinds, axis=0)) == 15  # all combinations of 2 and 2 and 4 but that of nothing
    assert np.hypot(members[:, index["posture_sine"]], members[:, index["posture_cosine"]]).max() == pytest.approx(1)
    assert 0.4 < (speed > 0).mean() < 0.8 and 0.1 < (spin > 0).mean() < 0.5


def test_near_walker_stand_are_members_that_ask_for_a_high_and_upright_torso_at_any_speed():
    high = {"height_low": 1.1, "height_high": 1.1, "height_rise": 3}
    upright = {"posture_sine": 0, "posture_cosine": 1, "posture_slope": 1}
    inside = [
        member(WALKER, **high, height_weight=1),
        member(WALKER, **upright, posture_weight=1),
        member(WALKER, **high, **upright, both_weight=1),
    ]
    outside = [
        member(WALKER, height_low=0.6, height_high=0.6, height_fall=3, height_weight=1),
        member(WALKER, posture_sine=1, posture_cosine=0, posture_slope=1, posture_weight=1),
        member(WALKER, **high, height_weight=1, speed_low=-3, speed_high=-3, speed_fall=0.3, speed_weight=1),
    ]
    assert WALKER.held_out(np.stack(inside)).all() and not WALKER.held_out(np.stack(outside)).any()


def test_near_a_canonical_task_is_what_who_does_it_is_paid_for():
    """To be still and upright solves what asks for a speed of about 0, and running at 8 what asks for 6 or 10."""
    upright = {"posture_sine": 0, "posture_cosine": 1, "posture_slope": 1, "posture_weight": 1}

    def asks(low, high, rise, fall):
        return member(
            WALKER, **upright, speed_low=low, speed_high=high, speed_rise=rise, speed_fall=fall, speed_weight=1
        )

    near = [asks(-0.3, 0.3, 2, 2), asks(0.8, 0.8, 1.25, 0), asks(5.5, 5.5, 0.2, 0), asks(10, 10, 0.1, 0)]
    far = [
        asks(2, 3, 1, 1),
        asks(-4, -4, 0, 0.3),
        member(WALKER, height_low=0.5, height_high=0.5, height_fall=4, height_weight=1),
    ]
    assert WALKER.held_out(np.stack(near)).all() and not WALKER.held_out(np.stack(far)).any()


def test_in_hindsight_of_upright_and_still_no_member_tells_it_from_lying():
    still, lying = state(WALKER, height=1.25, cosine=1.0), state(WALKER, height=0.3, sine=1.0)
    members = WALKER.hindsight(np.random.default_rng(0), np.tile(still, (500, 1)))
    solved = (WALKER.reward(np.stack([still]), members) >= 0.9) & (WALKER.reward(np.stack([lying]), members) <= 0.5)
    assert solved.mean() < 0.01


def test_paid_by_doing_by_hand():
    """One feature, and members that pay weight * feature + start: of 0, 0.5 and 1."""
    pay = lambda features, parameter: np.clip(features[..., 0] * parameter[..., 0] + parameter[..., 1], 0, 1)  # noqa: E731
    members = np.array([[1.0, 0], [0.7, 0], [0.69, 0], [0.4, 0.6], [0.39, 0.6], [-1, 1], [0, 1], [9.0, -8.0]])
    found = paid_by_doing(pay, members, np.array([1.0, 0.0]), np.array([[0.0], [0.5], [1.0]]))
    # At least 0.7 at the end, 0.4 more than at the start, and correlated: (0, 0, 1) with (0, 0.5, 1) is 0.87.
    assert found.tolist() == [True, True, False, True, False, False, False, False]


def test_near_quadruped_stand_are_members_that_ask_for_an_upright_torso_alone():
    upright = {"upright_low": 0.9, "upright_high": 0.9, "upright_rise": 0.5, "upright_weight": 1}
    inside = member(QUADRUPED, **upright)
    turning = member(QUADRUPED, **upright, turn_low=2, turn_high=2, turn_rise=0.5, turn_weight=1)
    assert QUADRUPED.held_out(np.stack([inside, turning])).tolist() == [True, False]
    fast = {"forward_low": 5, "forward_high": 5, "forward_rise": 0.2, "forward_weight": 1}
    assert QUADRUPED.held_out(member(QUADRUPED, **fast)[None]).all()  # quadruped run, in any posture
