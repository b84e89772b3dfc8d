"""Contexts paid by drawn members, of ten positions, and trajectories in no order; answers worked out by hand."""

import numpy as np
import pytest

from ringrl.batch import BATCH_SCHEMA, LABELLED_BATCH_SCHEMA, LabelledBatch
from ringrl.errors import UserError
from ringrl.sampling.chains import build_chain
from ringrl.sampling.loader import make_loader
from ringrl.sampling.relabelled_samplers import MemberSampler, TrajectorySampler
from ringrl.sampling.samplers import HistorySampler, WindowSampler
from tests.sampling.families import toy_episodes
from tests.sampling.stores import ints, unit_normalizer

VISITED = [[0, 1, 2], [0, 2, 2, 3], [0, 4, 1, 1, 1]]  # three episodes of 2, 3 and 4 steps
TASK = "hidden_toy_place"


def draws(sampler, count: int = 200):
    rng = np.random.default_rng(0)
    return [sampler.sample(rng) for _ in range(count)]


def test_trajectories_are_different_whole_episodes_in_any_order_and_number():
    plans = draws(TrajectorySampler(ints(2, 3, 4), 2, fewest=1))
    assert {tuple(plan.episode) for plan in plans} == {(0,), (1,), (2,), (0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)}
    for plan in plans:
        assert (plan.start == 0).all() and plan.stop.tolist() == ints(2, 3, 4)[plan.episode].tolist()
        assert not plan.target.any() and not plan.completed.any() and plan.parameter is None
    assert {len(plan.episode) for plan in draws(TrajectorySampler(ints(2, 3, 4), 2))} == {2}


def test_trajectories_of_one_source():
    plans = draws(TrajectorySampler(ints(2, 3, 4, 5, 6), 2, source=np.array([0, 1, 0, 1, 1], np.int32)))
    assert {tuple(sorted(plan.episode)) for plan in plans} == {(0, 2), (1, 3), (1, 4), (3, 4)}


@pytest.mark.parametrize("trajectories, fewest", [(0, None), (4, None), (2, 3), (2, 0)])
def test_trajectories_that_there_are_not(trajectories, fewest):
    with pytest.raises(UserError, match="cannot be drawn from 3 episodes"):
        TrajectorySampler(ints(2, 3, 4), trajectories, fewest)


def test_a_member_by_hindsight_pays_in_the_context_and_one_drawn_does_not(tmp_path):
    known = toy_episodes(tmp_path / "s", VISITED)
    inner = TrajectorySampler(known.lengths, 2)
    for plan in draws(MemberSampler(inner, known)):
        member = plan.parameter[0, 0]
        assert (plan.parameter == member).all() and plan.parameter.dtype == np.float32
        after = [place for episode in plan.episode for place in VISITED[episode][1:]]
        assert member in after, "the state before any step is not one that a step reached"
        assert plan.target.tolist() == [VISITED[episode][1:].count(member) for episode in plan.episode]
        assert not plan.completed.any()
    known = toy_episodes(tmp_path / "t", VISITED, share=0.0)
    assert {float(p.parameter[0, 0]) for p in draws(MemberSampler(inner, known))} == {100, 101}
    mixed = toy_episodes(tmp_path / "u", VISITED, share=0.5)
    share = np.mean([p.parameter[0, 0] < 100 for p in draws(MemberSampler(inner, mixed), 1000)])
    assert share == pytest.approx(0.5, abs=0.05)


def test_an_ascending_context_is_a_chain_of_hindsight_under_its_member(tmp_path):
    known = toy_episodes(tmp_path / "s", VISITED)
    plans = draws(MemberSampler(TrajectorySampler(known.lengths, 3), known, order="ascending"))
    ones = next(plan for plan in plans if plan.parameter[0, 0] == 1)
    # Place 1 pays episode 1 nothing, episode 0 one step and episode 2 three.
    assert ones.episode.tolist() == [1, 0, 2] and ones.stop.tolist() == [3, 2, 4]
    assert ones.target.tolist() == [3, 3, 3] and ones.completed.tolist() == [False, False, True]
    chain = build_chain(known, ones, TASK)
    assert chain.reward.tolist() == [0, 0, 0, 1, 0, 0, 1, 1, 1]
    assert chain.return_to_go.tolist() == [3, 3, 3, 3, 2, 3, 3, 2, 1]
    assert chain.completion.tolist() == [0] * 8 + [1]


def test_jitter_is_one_factor_for_the_context(tmp_path):
    known = toy_episodes(tmp_path / "s", VISITED)
    sampler = MemberSampler(TrajectorySampler(known.lengths, 3), known, order="ascending", target_jitter=0.5)
    for plan in draws(sampler, 50):
        best = max(one[1:].count(plan.parameter[0, 0]) for one in VISITED)
        assert len(set(plan.target)) == 1 and 0.5 * best <= plan.target[0] <= 1.5 * best


def test_windows_and_histories_are_paid_by_members_too(tmp_path):
    known = toy_episodes(tmp_path / "s", VISITED, sources=[0, 0, 1])
    windows = WindowSampler(known.lengths, np.full(3, -1.0), window=1)
    for plan in draws(MemberSampler(windows, known)):
        (episode,), member = plan.episode, plan.parameter[0, 0]
        # The target is the whole episode's return under the member, regardless of the window.
        assert plan.target.tolist() == [VISITED[episode][1:].count(member)]
    source = np.array([0, 0, 1], np.int32)
    with pytest.raises(UserError, match="history of source 1"):
        HistorySampler(known.lengths, np.zeros(3), source, 2)
    histories = HistorySampler(known.lengths, np.zeros(3), np.zeros(3, np.int32), 2)
    for plan in draws(MemberSampler(histories, known, conditioned=False)):
        assert plan.episode.tolist() in ([0, 1], [1, 2]) and not plan.target.any()
    for plan in draws(MemberSampler(histories, known, order="ascending", conditioned=False)):
        assert (np.diff([VISITED[e][1:].count(plan.parameter[0, 0]) for e in plan.episode]) >= 0).all()


def labelled(known, **changes):
    """Batches whose labels are the place, the member and the action, as one number."""
    digits = lambda chain, wanted: 100 * chain.observation[:, :1] + wanted + chain.action  # noqa: E731
    sampler = MemberSampler(TrajectorySampler(known.lengths, 2), known, conditioned=False)
    options = {"batch": 3, "steps": 8, "seed": 1, "labels": digits} | changes
    loader = make_loader(known, sampler, TASK, unit_normalizer(observation_std=np.full(2, 2, np.float32)), **options)
    batch = next(loader)
    loader.close()
    return batch


def test_a_label_is_beside_its_step_and_says_what_the_functions_was(tmp_path):
    known = toy_episodes(tmp_path / "s", VISITED)
    batch = labelled(known)
    assert isinstance(batch, LabelledBatch) and list(batch.asdict()) == list(LABELLED_BATCH_SCHEMA)
    assert set(LABELLED_BATCH_SCHEMA) == {*BATCH_SCHEMA, "label"} and batch.label.dtype == np.float32
    for row in range(3):
        real = batch.segment_ids[row] > 0
        label, place = batch.label[row, :, 0], batch.observation[row, :, 0] * 2
        assert not label[~real].any()
        wanted = np.floor(label - 100 * place)[real]
        assert (wanted == wanted[0]).all() and 0 < wanted[0] < 5
        np.testing.assert_allclose(label[real], 100 * place[real] + wanted + batch.action[row, real, 0], rtol=1e-6)
        # And the rewards are that member's: a step pays where the next place is wanted.
        here, same = place[real], np.diff(batch.trial[row][real]) == 0
        assert ((here[1:] == wanted[0]) == batch.reward[row][real][:-1])[same].all()


@pytest.mark.parametrize("positions", [ints(0, 1, 6, 7), ints(2, 3, 4, 5), ints(7)])
def test_a_shard_has_the_labels_of_its_steps(positions, tmp_path):
    known = toy_episodes(tmp_path / "s", VISITED)
    whole, part = labelled(known), labelled(known, positions=positions, rows=ints(2, 0))
    for name, array in whole.asdict().items():
        np.testing.assert_array_equal(part.asdict()[name], array[[2, 0]][:, positions], err_msg=name)


def test_packed_rows_have_a_member_for_every_segment(tmp_path):
    batch = labelled(toy_episodes(tmp_path / "s", VISITED), packing=True, steps=16)
    members = np.floor(batch.label[..., 0] - 200 * batch.observation[..., 0])
    several = 0
    for row in range(3):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            assert len(set(members[row][batch.segment_ids[row] == segment])) == 1
        several += batch.segment_ids[row].max() > 1
    assert several
