"""Features computed from the states of an episode equal the live environment's to the bit, and so do rewards."""

import dataclasses

import numpy as np
import pytest

from ringrl import envs
from ringrl.collect.record import record_episode
from ringrl.envs.custom import FAMILIES
from ringrl.errors import UserError
from ringrl.relabelling.features import FeatureReader
from ringrl.relabelling.reward_physics import Recorder
from ringrl.relabelling.rewards import Relabeler, examine

STEPS = 12


def live(task, seed=3):
    """An episode under random actions, and what the family reads in every state as it is reached."""
    env, family, rng = envs.make_env(task, seed=seed, time_limit=STEPS), envs.family_of(task), np.random.default_rng(0)
    features = []

    def act(_):
        features.append([float(each) for each in family.read(env.physics)])
        return rng.uniform(-1, 1, env.widths[1]).astype(np.float32)

    episode, _ = record_episode(env, act)
    act(None)
    return episode, np.array(features, np.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_the_environments_to_the_bit_and_come_in_one_pass(name):
    episode, wanted = live(f"hidden_{name}")
    reader = FeatureReader(FAMILIES[name])
    found = reader(episode)
    assert isinstance(reader._read, Recorder)
    assert found.shape == (STEPS + 1, len(FAMILIES[name].features)) and found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_members_rewards_are_recomputed_to_the_bit_where_the_seed_is_given(name):
    episode, _ = live(f"hidden_{name}", seed=5)
    relabel = Relabeler((f"hidden_{name}",), seed=5)
    assert [type(part) for part, _ in relabel._parts] == [Recorder]
    np.testing.assert_array_equal(relabel(episode), episode.reward)


@pytest.mark.parametrize("name", FAMILIES)
def test_members_of_no_seed_are_refused(name):
    assert "depends on what is hidden" in examine(f"hidden_{name}").obstacle
    with pytest.raises(UserError, match=f"cannot relabel with visible_{name}: its reward depends on what is hidden"):
        Relabeler((f"visible_{name}",))


def test_an_episode_of_another_domain_is_refused():
    episode, _ = live("hidden_point_mass_goal_10mm")
    wide = dataclasses.replace(episode, physics=np.zeros((STEPS + 1, 6)))
    with pytest.raises(UserError, match="it has states of width 4 and actions of width 2, the episode 6 and 2"):
        FeatureReader(FAMILIES["point_mass_goal_10mm"])(wide)


@pytest.mark.parametrize("name", ["walker_motion", "point_mass_goal_10mm"])
def test_a_state_that_mujoco_rejects_is_refused_by_its_row(name):
    episode, _ = live(f"hidden_{name}")
    physics = episode.physics.copy()
    physics[5, 1] = 1e12
    object.__setattr__(episode, "physics", physics)  # an episode made of these numbers is refused before
    with pytest.raises(UserError, match=f"features of {name}: MuJoCo rejects the state of row 5"):
        FeatureReader(FAMILIES[name])(episode)
