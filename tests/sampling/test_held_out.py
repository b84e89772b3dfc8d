"""Which episodes are held out, and that training never reads them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringrl.errors import UserError
from ringrl.sampling.held_out import MANY, split_episodes


def test_of_few_sources_each_gives_episodes_of_all_its_course():
    train, out = split_episodes(np.array([0] * 10 + [1] * 5, np.int32), 0.2)
    assert out.tolist() == [2, 7, 12]
    assert train.tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14]


def test_of_many_sources_whole_ones_are_held_out():
    train, out = split_episodes(np.repeat(np.arange(20, dtype=np.int32), 3), 0.1)
    assert out.tolist() == [15, 16, 17, 45, 46, 47]
    assert len(train) == 54


@given(st.lists(st.integers(1, 12), min_size=1, max_size=2 * MANY), st.floats(0.01, 0.99))
def test_every_episode_is_on_one_side_and_the_share_is_kept(lengths, share):
    source = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    try:
        train, out = split_episodes(source, share)
    except UserError:
        assert max(lengths) == 1 and len(lengths) < MANY
        return
    assert sorted([*train, *out]) == list(range(len(source)))
    if len(lengths) >= MANY:
        assert not set(source[train]) & set(source[out])
        assert abs(len(set(source[out])) - share * len(lengths)) <= 1
    else:
        assert all(abs((source[out] == each).sum() - share * n) <= 1 for each, n in enumerate(lengths))


def test_too_few_episodes_are_an_error():
    with pytest.raises(UserError, match="validation_share=0.5 of 1 episodes leaves none on one side"):
        split_episodes(np.zeros(1, np.int32), 0.5)
