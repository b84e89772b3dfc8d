"""`ringrl data line_retrieval`: every query has one answer in its document, and only answers weigh."""

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
    written = [[2, 3, 10], [0, 3, 8], [2, 4, 6]]
    assert ids.reshape(-1, 3).tolist() == [*written, [2, 3, 10], [2, 4, 6]]
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
        ({"out": Path("lines.npz")}, "lines.npz: token ids are a .npy file"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        lines.main(replace(SMALL, **change))
