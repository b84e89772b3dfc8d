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
SMALL = lines.Args(out=Path("lines.npy"), lines=4, queries=2, blocks=2, documents=3, words=3, values=5)


def test_a_document_by_hand():
    """Two blocks of two lines and a query about a line before it. Keys are (0 to 2, 3 to 5), values 6 to 10."""
    ids, answers = lines.write_document(np.random.default_rng(2), SMALL)
    first = [[0, 5, 6], [1, 5, 7], [0, 5, 6]]  # key (0, 5) is asked for
    second = [[0, 3, 9], [0, 4, 10], [1, 5, 7]]  # and (1, 5), a line of the first block
    assert ids.reshape(-1, 3).tolist() == first + second
    assert np.flatnonzero(answers).tolist() == [8, 17]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_a_query_repeats_one_line_before_it(blocks, new, asked, seed):
    args = replace(SMALL, lines=blocks * new, queries=blocks * min(new, asked), blocks=blocks, words=4)
    ids, answers = lines.write_document(np.random.default_rng(seed), args)
    triples, again = ids.reshape(-1, 3).tolist(), answers.reshape(-1, 3)[:, 2]
    keys = [tuple(triple[:2]) for triple in triples]
    for i, triple in enumerate(triples):
        assert triples[:i].count(triple) == keys[:i].count(keys[i]) == int(again[i])


def test_the_file_is_read_as_documents_with_weights(tmp_path):
    args = replace(SMALL, out=tmp_path / "new" / "lines.npy")
    lines.main(args)
    file = TokenFile(args.out, 11)
    assert file.document == 18 and len(file.ids) == 54 and file.ids.dtype == np.uint8
    assert file.read_weights(np.arange(54)).sum() == 6
    with pytest.raises(UserError, match="exists"):
        lines.main(args)
    before = file.checksum()
    lines.main(replace(args, overwrite=True))
    assert TokenFile(args.out, 11).checksum() == before  # the seed fixes all


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks": 3}, "--blocks 3: does not divide 4 lines"),
        ({"queries": 6}, "--queries 6: none is asked for twice"),
        ({"lines": 10}, "--lines 10: 3 words make 9 keys"),
        ({"values": 0}, "give 1 or more"),
        ({"out": Path("lines.npz")}, "lines.npz: token ids are a .npy file"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        lines.main(replace(SMALL, **change))
