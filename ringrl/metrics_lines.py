"""A line of metrics.jsonl: numbers by name, and a checksum of them, so that no damaged number is drawn or kept."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from ringrl.errors import UserError
from ringrl.readers import parse_json
from ringrl.run_records import MetricsRecord

_CHECKSUM = b', "crc32": '
_ADVICE = "mend or delete the line"


def format_line(entry: Mapping[str, int | float]) -> bytes:
    """The line of `entry`, with its end."""
    body = json.dumps(dict(entry)).encode()
    return body[:-1] + _CHECKSUM + str(zlib.crc32(body)).encode() + b"}\n"


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """The numbers of a line, by name; those of an earlier ringrl have no checksum.

    Raises:
        UserError: it is no line of numbers, or not what was written; names `where`.
    """
    entry = dict(parse_json(line, MetricsRecord, where, _ADVICE))
    body, written, checksum = line.rpartition(_CHECKSUM)
    if written and checksum.strip() != f"{zlib.crc32(body + b'}')}}}".encode():
        raise UserError(f"{where}: has changed since it was written; {_ADVICE}")
    entry.pop("crc32", None)
    return entry
