"""The tables that `ringrl plan --tables` prints."""

import re
from pathlib import Path

import pytest

from ringrl.planner.closed_form import CHIPS
from ringrl.planner.paper_tables import Shape, rows_of, to_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "attention.md"


def test_every_row_is_in_a_table():
    rows = rows_of(Shape())
    assert [table.row_count for table in to_tables(Shape())] == [len(part) for part in rows.values()]
    assert len(rows["minimal_sequence"]) == len(CHIPS)


def test_a_ring_s_activation_is_of_its_block():
    (ring,) = (row for row in rows_of(Shape(block=10, width=3))["layer_activations"] if row["scheme"] == "ring")
    assert ring["bytes"] == 6 * 10 * 3


def test_the_page_about_attention_prints_the_blocks_that_hide_a_hop():
    printed = re.findall(
        r"^\| (v\d\w?)(?:, a core)? \| [\d,]* ?\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$",
        DOCUMENT.read_text(),
        re.MULTILINE,
    )
    rows = {row.pop("chip").removeprefix("TPU "): list(row.values()) for row in rows_of(Shape())["hidden_from"]}
    assert [name for name, *_ in printed] == ["v3", "v4", "v5e", "v5p", "v6e"]
    for name, *blocks in printed:
        assert [int(block.replace(",", "")) for block in blocks] == pytest.approx(rows[name], abs=0.5)
