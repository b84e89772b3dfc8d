"""Families of speed: rewards by hand, what is drawn, and the neighbourhoods of the canonical tasks."""

import numpy as np
import pytest

from ringrl.envs.custom import FAMILIES

WALKER, CHEETAH = FAMILIES["walker_speed"], FAMILIES["cheetah_speed"]


@pytest.mark.parametrize(
    ("member", "wanted"),
    [  # at a speed of 3 m/s and a spin of -2
        ((6.0, 0.0), 0.5),
        ((2.0, 0.0), 1.0),
        ((-6.0, 0.0), 0.0),
        ((0.0, -8.0), 0.25),
        ((6.0, -8.0), 0.125),
        ((6.0, 8.0), 0.0),
        ((0.0, 0.0), 1.0),
    ],
)
def test_rewards_by_hand(member, wanted):
    still_upright = [0.0, 0.0, 1.25, 0.0, 1.0]
    moving = np.float32([3.0, -2.0, *still_upright[2:]])
    assert CHEETAH.reward(moving, np.float32(member)) == pytest.approx(wanted, abs=1e-6)
    # The walker's factors count for 5/6 each, and its body is as the suite wants it.
    factors = [(5 * x + 1) / 6 for x in _factors(member, moving)]
    assert WALKER.reward(moving, np.float32(member)) == pytest.approx(np.prod(factors), abs=1e-6)
    lying = np.float32([3.0, -2.0, 0.1, 1.0, 0.0])
    assert WALKER.reward(lying, np.float32(member)) < 0.15


def _factors(member, features):
    return [np.clip(value / bound, 0, 1) for value, bound in zip(features, member, strict=False) if bound]


@pytest.mark.parametrize("family", [WALKER, CHEETAH])
def test_members_are_of_the_wide_family(family):
    """A canonical task's reward is the same in both."""
    wide, features = FAMILIES[f"{family.domain}_motion"], np.random.default_rng(0).normal(0, 3, (200, 5))
    features = features.astype(np.float32)
    assert family.canonical.keys() == wide.canonical.keys()
    for task, member in family.canonical.items():
        expected = wide.reward(features, np.float32(wide.canonical[task]))
        np.testing.assert_allclose(family.reward(features, np.float32(member)), expected, atol=1e-6)


@pytest.mark.parametrize("family", [WALKER, CHEETAH])
def test_what_is_drawn(family):
    members = family.members(np.random.default_rng(0), 4000)
    alone = [(members[:, axis] != 0) & (members[:, 1 - axis] == 0) for axis in range(2)]
    # Drawn half and a third of the time; those near canonical tasks are drawn again.
    assert [each.mean() for each in alone] == pytest.approx([0.5, 0.35], abs=0.05)
    for axis, canonical in ((0, 0), (1, 1)):
        bounds = members[alone[axis], axis]
        assert 0.4 < (bounds < 0).mean() < 0.7  # fewer ahead of the walker, where its tasks are
        for task in family.canonical.values():
            if task[canonical]:
                assert (np.abs(bounds - task[axis]) >= 0.25 * abs(task[axis])).all()
    assert not np.signbit(members[members == 0]).any()  # observations show a 0


def test_neighbourhoods():
    near = np.float32([[7.6, 0], [9.9, 0], [0.8, 0], [0, 4], [0, 0]])
    far = np.float32([[5.9, 0], [-8, 0], [8, 2], [2, 0], [0, 7], [0, -5]])
    assert WALKER.held_out(near).all() and not WALKER.held_out(far).any()


@pytest.mark.parametrize("family", [WALKER, CHEETAH])
def test_hindsight_asks_for_what_was_reached(family):
    rng = np.random.default_rng(0)
    features = np.float32([[2.0, 0, 1.25, 0, 1], [-3.0, 4.0, 1.25, 0, 1], [0, -6.5, 1.25, 0, 1]] * 300)
    paid = family.reward(features, family.hindsight(rng, features)).reshape(-1, 3)
    # A state that moves in one way only is paid by those members alone that ask for this.
    assert (paid[:, 1] > 0.99).all() and 0.4 < (paid[:, 0] > 0.99).mean() < 0.9
