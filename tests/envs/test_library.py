"""Libraries: several members in one environment, a cue that says which of them a trial is of, and what it pays."""

import numpy as np
import pytest

from ringrl import envs
from ringrl.collect.record import record_episode
from ringrl.envs import HELD_OUT, family_of, library_of, make_env, members_in, with_different_cues
from ringrl.envs.custom import FAMILIES
from ringrl.envs.custom.library import CUE, with_cues
from ringrl.errors import UserError
from ringrl.relabelling.features import FeatureReader
from ringrl.relabelling.rewards import Relabeler

TASK, HIDDEN = "library4_point_mass_goal_30mm", "hidden_point_mass_goal_30mm"
GOALS = FAMILIES["point_mass_goal_30mm"]
each_family = pytest.mark.parametrize("name", FAMILIES)


def recorded(env, rng):
    """An episode under random actions, and the member it is of."""
    episode, _ = record_episode(env, lambda _: rng.uniform(-1, 1, env.widths[1]).astype(np.float32))
    return episode, env.task.active


@each_family
def test_every_family_has_libraries(name):
    task, family = f"library3_{name}", FAMILIES[name]
    domain, short = envs.split_task(task)
    assert f"{domain}_{short}" == task and domain == f"library3_{family.domain}" and task in envs.tasks(domain)
    assert envs.is_task(task) and envs.is_hidden(task) and not envs.is_visible(task) and members_in(task) == 3
    cued = family_of(task)
    assert cued is with_cues(family) and cued.name == name and cued.parameters[CUE:] == family.parameters
    assert members_in(f"hidden_{name}") is None and (cued.shown(False), family.shown(False)) == (CUE, 0)


@each_family
def test_a_cue_changes_no_reward_not_even_a_bit(name):
    family, rng = FAMILIES[name], np.random.default_rng(0)
    features = rng.normal(0, 0.2, (40, len(family.features))).astype(np.float32)
    members = family.hindsight(rng, features)
    cues = rng.choice([-1.0, 1.0], (40, CUE)).astype(np.float32)
    paid = with_cues(family).reward(features, np.concatenate([cues, members], axis=1))
    np.testing.assert_array_equal(paid, family.reward(features, members))
    alone = with_cues(family).reward(features[7], np.concatenate([cues[7], members[7]]))
    assert alone.shape == () and alone == paid[7]


@each_family
def test_what_is_held_out_of_a_family_is_held_out_of_its_libraries(name):
    family, rng = FAMILIES[name], np.random.default_rng(0)
    cued = with_cues(family)
    assert set(cued.canonical) == set(family.canonical)
    for member in family.canonical.values():
        cue = rng.choice([-1.0, 1.0], CUE)
        assert cued.held_out(np.float32([[*cue, *member]])).all()
    drawn = cued.members(rng, 50)
    assert not family.held_out(drawn[:, CUE:]).any() and not cued.held_out(drawn).any()
    assert set(np.unique(drawn[:, :CUE])) == {-1, 1}


def test_cues_of_a_library_differ_and_are_as_likely_as_any():
    rng = np.random.default_rng(0)
    many = np.stack([with_different_cues(rng, np.zeros((32, CUE + 2), np.float32)) for _ in range(200)])
    assert all(len(np.unique(each[:, :CUE], axis=0)) == 32 for each in many) and not many[..., CUE:].any()
    cues = many[..., :CUE].reshape(-1, CUE)
    assert np.abs(cues.mean(axis=0)).max() < 0.05
    assert np.abs(np.corrcoef(cues.T) - np.eye(CUE)).max() < 0.06


def test_an_environments_library_is_its_seeds():
    env = make_env(TASK, seed=HELD_OUT)
    assert env.widths == (4 + CUE, 2)
    np.testing.assert_array_equal(env.task.library, library_of(with_cues(GOALS), HELD_OUT, 4))
    np.testing.assert_array_equal(env.task.library, make_env(TASK, seed=HELD_OUT).task.library)
    assert not np.array_equal(env.task.library, make_env(TASK, seed=HELD_OUT + 1).task.library)
    one = make_env("library1_point_mass_goal_30mm", seed=HELD_OUT)
    np.testing.assert_array_equal(one.task.library[0, CUE:], GOALS.member(HELD_OUT))  # as the hidden task's


def test_each_trial_is_of_one_member_whose_cue_ends_every_observation_and_whose_reward_is_paid():
    env, rng = make_env(TASK, seed=3, time_limit=20), np.random.default_rng(0)
    features, actives = FeatureReader(GOALS), []
    # A goal that lies where trials start, for each member a little further off.
    library = with_different_cues(rng, np.zeros((4, CUE + 2), np.float32))
    for _ in range(24):
        env.reset()
        library[:, CUE:] = env.physics.get_state()[:2] + 0.02 * np.arange(4)[:, None]
        env.task.library[:] = library
        episode, active = recorded(env, rng)
        actives.append(active)
        library = env.task.library
        np.testing.assert_array_equal(episode.observation[:, 4:], np.tile(library[active, :CUE], (21, 1)))
        paid = GOALS.reward(features(episode)[1:], library[active, CUE:])
        np.testing.assert_array_equal(episode.reward[:, 0], paid)
    assert sorted(set(actives)) == [0, 1, 2, 3] and len(set(map(tuple, np.diff(actives).reshape(-1, 1)))) > 2


def test_the_members_of_trials_are_as_likely_as_each_other_and_the_seeds():
    env, other = make_env(TASK, seed=9), make_env(TASK, seed=9)
    drawn = [(env.reset(), env.task.active)[1] for _ in range(400)]
    assert drawn[:20] == [(other.reset(), other.task.active)[1] for _ in range(20)]
    assert np.abs(np.bincount(drawn) - 100).max() < 30
    first, _ = env.reset(seed=5)
    again, _ = other.reset(seed=5)  # after other episodes
    np.testing.assert_array_equal(first, again)


def test_of_one_member_nothing_is_drawn():
    """So trials start where those of the hidden task start."""
    one, hidden = make_env("library1_point_mass_goal_30mm", seed=4), make_env(HIDDEN, seed=4)
    for _ in range(3):
        np.testing.assert_array_equal(one.reset()[0][:4], hidden.reset()[0])


def test_many_environments_are_as_each_alone():
    vector = envs.make_vector(TASK, 3, seed=HELD_OUT, workers=0, action_repeat=4, time_limit=12)
    alone = [make_env(TASK, seed=HELD_OUT + i, action_repeat=4, time_limit=12) for i in range(3)]
    seen, _ = vector.reset()
    np.testing.assert_array_equal(seen, [env.reset()[0] for env in alone])
    rng = np.random.default_rng(0)
    for _ in range(9):  # three trials of three agent steps
        actions = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        vector.step_async(actions, np.ones(3, bool), restart=True)
        seen, reward, _, truncated, _ = vector.step_wait()
        steps = [env.step(action) for env, action in zip(alone, actions, strict=True)]
        np.testing.assert_array_equal(reward, [step[1] for step in steps])
        ended = truncated.all()
        np.testing.assert_array_equal(
            seen, [e.reset()[0] if ended else s[0] for e, s in zip(alone, steps, strict=True)]
        )
    vector.close()


def test_a_library_of_ones_own():
    members = np.zeros((4, CUE + 2), np.float32)
    members[:, CUE:] = [[0.1, 0.1], [0.1, -0.1], [-0.1, 0.1], [-0.1, -0.1]]
    members[:, :CUE] = with_different_cues(np.random.default_rng(0), members)[:, :CUE]
    env = make_env(TASK, seed=1, parameter=members)
    env.reset()
    np.testing.assert_array_equal(env.task.hidden, members[env.task.active])


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: make_env(TASK, parameter=(0.1, 0.2)),
            r"shape \(2,\): a member of .* is 18 numbers .*; give 4 members",
        ),
        (
            lambda: make_env(TASK, parameter=((0.1,), (0.1, 0.2))),
            "rows of several lengths: a member of .*; give 4",
        ),
        (lambda: make_env(TASK, parameter=np.full((4, CUE + 2), np.nan)), "of finite numbers"),
        (lambda: make_env("library0_point_mass_goal_30mm"), "unknown task 'library0_point_mass_goal_30mm'"),
        (lambda: make_env("library8_walker_walk"), "unknown task 'library8_walker_walk': did you mean"),
        (lambda: envs.tasks("library8_walkers"), "unknown domain 'library8_walkers'"),
        (lambda: Relabeler((TASK,), seed=7), "depends on which member a trial is of"),
    ],
)
def test_what_is_no_library_is_refused_in_a_line(call, message):
    with pytest.raises(UserError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
