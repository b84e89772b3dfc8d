"""`ringrl data line_retrieval`: every query has one answer in its document, and only answers weigh."""

import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringrl import recipes
from ringrl.errors import UserError
from ringrl.formats.token_file import TokenFile

lines = recipes.load("data", "line_retrieval")
SMALL = lines.Args(out=Path("lines.npy"), lines=3, queries=2, documents=4, key=2, words=3, values=5)


def test_a_document_by_hand():
    """Three lines and queries about two of them. Keys are (0 to 2, 3 to 5), values 6 to 10."""
    ids, answers = lines.write_document(np.random.default_rng(2), SMALL)
    written = [[2, 4, 10], [0, 4, 8], [2, 3, 6]]
    assert ids.reshape(-1, 3).tolist() == [*written, [2, 3, 6], [2, 4, 10]]
    assert np.flatnonzero(answers).tolist() == [11, 14]


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_a_query_repeats_one_line_before_it(key, number, asked, seed):
    args = replace(SMALL, lines=number, queries=min(asked, number), key=key, words=9)
    ids, answers = lines.write_document(np.random.default_rng(seed), args)
    rows, again = ids.reshape(-1, key + 1).tolist(), answers.reshape(-1, key + 1)
    keys = [tuple(row[:-1]) for row in rows]
    assert not again[:, :-1].any() and again[:, -1].tolist() == [i >= number for i in range(len(rows))]
    for i, row in enumerate(rows):
        assert rows[:i].count(row) == keys[:i].count(keys[i]) == int(again[i, -1])
        assert [word // 9 for word in row[:-1]] == list(range(key)) and 0 <= row[-1] - 9 * key < 5


def test_keys_are_made_of_few_words_where_they_are_to_be_alike():
    args = replace(SMALL, lines=4, words=9, alike=2)
    for seed in range(5):
        rows = lines.write_document(np.random.default_rng(seed), args)[0].reshape(-1, 3)[:4]
        assert [len(set(words)) for words in rows[:, :2].T] == [2, 2]


def test_the_file_is_read_as_documents_with_weights(tmp_path):
    args = replace(SMALL, out=tmp_path / "new" / "lines.npy")
    lines.main(args)
    file = TokenFile(args.out, 11)
    assert file.document == 15 and len(file.ids) == 60 and file.ids.dtype == np.uint8
    assert file.read_weights(np.arange(60)).sum() == 8
    with pytest.raises(UserError, match="exists"):
        lines.main(args)
    before = file.checksum()
    lines.main(replace(args, overwrite=True))
    assert TokenFile(args.out, 11).checksum() == before  # the seed fixes all


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"queries": 6}, "--queries 6: none is asked for twice"),
        ({"lines": 10}, "--lines 10: 2 of 3 words make 9 keys"),
        ({"values": 0}, "give 1 or more"),
        ({"alike": 4}, "--alike 4: give 1 or more, and at most the 3 words"),
        ({"alike": 1}, "--lines 3: 2 of 1 words make 1 keys; give more --alike"),
        ({"out": Path("lines.npz")}, "lines.npz: token ids are a .npy file"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        lines.main(replace(SMALL, **change))


def test_what_a_killed_one_left_is_removed(tmp_path):
    (tmp_path / f".partial-{platform.node()}-{os.getpid()}-0123-lines.npy").touch()
    lines.main(replace(SMALL, out=tmp_path / "lines.npy"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.npy", "lines.weights.npy"]
