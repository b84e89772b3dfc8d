"""Lines of metrics.jsonl."""

import pytest

from ringrl.errors import UserError
from ringrl.metrics_lines import format_line, parse_line

ENTRY = {"step": 20, "loss": 0.25, "tokens_per_s": 1234.5}


def test_a_line_is_read_with_and_without_its_checksum():
    assert parse_line(format_line(ENTRY), "line 1") == ENTRY
    assert parse_line(b'{"step": 20, "loss": 0.25}\n', "line 1") == {"step": 20, "loss": 0.25}


def test_no_flipped_bit_is_read_as_a_line():
    """Not one in the checksum's name either, which would make it a line of an earlier ringrl."""
    line = format_line(ENTRY)
    for bit in range(8 * (len(line) - 1)):  # the last byte is the line's end
        damaged = bytearray(line)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UserError, match="line 1"):
            parse_line(bytes(damaged), "line 1")
