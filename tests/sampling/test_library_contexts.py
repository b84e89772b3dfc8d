"""Contexts of a library, of positions worked out by hand: whose pieces are whose, and what each shows and pays."""

import numpy as np
import pytest

from ringrl.envs.custom.library import CUE, with_cues
from ringrl.sampling.chains import build_chain
from ringrl.sampling.relabelled import RelabelledEpisodes
from ringrl.sampling.relabelled_samplers import MemberSampler, TrajectorySampler
from tests.sampling.families import FAMILY, toy_store

VISITED = [[0, 1, 1], [0, 2, 2, 3], [0, 4, 4], [0, 5, 6, 7], [0, 8, 9]]  # no place is in two episodes, but the first
TASK = "library2_toy_place"


def episodes(path, library=(2,), share=1.0):
    return RelabelledEpisodes(
        toy_store(path, VISITED), with_cues(FAMILY), hindsight_share=share, library=library
    )  # observations are (place, episode) and a cue


def draws(known, count=200, pieces=4, **options):
    sampler, rng = MemberSampler(TrajectorySampler(known.lengths, pieces), known, **options), np.random.default_rng(0)
    return [sampler.sample(rng) for _ in range(count)]


def members_of(plan):
    """The different members of a context, and of each piece which it is."""
    return np.unique(plan.parameter, axis=0, return_inverse=True)


def test_each_piece_is_of_one_of_so_many_members_each_as_likely_as_any(tmp_path):
    counts, first = [], []
    for plan in draws(episodes(tmp_path / "s"), 400):
        assert plan.parameter.shape == (4, CUE + 1) and plan.parameter.dtype == np.float32
        members, of_piece = members_of(plan)
        counts.append(len(members))
        first.append(of_piece.ravel()[0] == of_piece.ravel()[1])
        assert len(np.unique(members[:, :CUE], axis=0)) == len(members) <= 2
    # Four pieces are all of one of two members once in eight, and two pieces of one half of the time.
    assert np.mean(np.equal(counts, 1)) == pytest.approx(1 / 8, abs=0.05)
    assert np.mean(first) == pytest.approx(1 / 2, abs=0.07)


def test_how_many_members_there_are_is_drawn_for_each_context(tmp_path):
    plans = draws(episodes(tmp_path / "s", library=(1, 999)), 400)
    counts = [len(members_of(plan)[0]) for plan in plans]
    assert np.mean(np.equal(counts, 1)) == pytest.approx(1 / 2, abs=0.07)
    assert np.mean(np.equal(counts, 4)) == pytest.approx(1 / 2, abs=0.07)


def test_by_hindsight_a_member_pays_at_a_state_of_an_episode_that_it_pays(tmp_path):
    for plan in draws(episodes(tmp_path / "s")):
        members, of_piece = members_of(plan)
        for member, place in enumerate(members[:, CUE]):
            own = plan.episode[of_piece.ravel() == member]
            assert place in [there for episode in own for there in VISITED[episode][1:]]
    for plan in draws(episodes(tmp_path / "t", share=0.0)):
        assert set(plan.parameter[:, CUE]) <= {100, 101}


def test_observations_end_with_the_cue_and_each_piece_is_paid_by_its_own_member(tmp_path):
    known = episodes(tmp_path / "s")
    assert known.sizes == {"observation": 2 + CUE, "action": 1}
    plan = next(plan for plan in draws(known) if len(members_of(plan)[0]) == 2)
    chain = build_chain(known, plan, TASK)
    assert chain.observation.shape == (chain.length, 2 + CUE)
    np.testing.assert_array_equal(chain.observation[:, 2:], plan.parameter[chain.trial, :CUE])
    for piece, episode in enumerate(plan.episode.tolist()):
        here = chain.trial == piece
        assert chain.observation[here, 0].tolist() == VISITED[episode][:-1]
        assert chain.reward[here].tolist() == [place == plan.parameter[piece, CUE] for place in VISITED[episode][1:]]


def test_an_ascending_context_keeps_each_piece_with_its_member(tmp_path):
    known = episodes(tmp_path / "s")
    for plan in draws(known, 50, order="ascending"):
        paid = [VISITED[e][1:].count(place) for e, place in zip(plan.episode, plan.parameter[:, CUE], strict=True)]
        assert paid == sorted(paid) and set(plan.target) == {max(paid)}
        np.testing.assert_array_equal(plan.completed, np.equal(paid, max(paid)))


def test_the_scales_of_cues_are_measured_as_drawn(tmp_path):
    """Where no context is asked for, each episode has a member, and so a cue, of its own."""
    known = episodes(tmp_path / "s")
    assert known.drawn.shape == (5, CUE + 1) and len(np.unique(known.drawn[:, :CUE], axis=0)) == 5
    (span,) = known.read_many([(1, 0, 3)], TASK)
    np.testing.assert_array_equal(span.observation[:, 2:], np.tile(known.drawn[1, :CUE], (4, 1)))
