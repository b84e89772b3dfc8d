"""A line of metrics.jsonl: numbers by name, and a checksum of them, so that no damaged number is drawn or kept."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from ringrl.errors import UserError
from ringrl.readers import parse_json
from ringrl.run_records import MetricsRecord

_ADVICE = "mend or delete the line"


def format_line(entry: Mapping[str, int | float]) -> bytes:
    """The line of `entry`, with its end."""
    body = json.dumps(dict(entry)).encode()
    return body[:-1] + b', "crc32": ' + str(zlib.crc32(body)).encode() + b"}\n"


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """The numbers of a line, by name; those of an earlier ringrl have no checksum.

    Raises:
        UserError: it is no line of numbers, or not what was written; names `where`.
    """
    entry = dict(parse_json(line, MetricsRecord, where, _ADVICE))
    body, _, last = line.rpartition(b', "')
    name, _, value = last.partition(b'": ')
    right = value.strip() == f"{zlib.crc32(body + b'}')}}}".encode()
    if right != (name == b"crc32"):  # a checksum by another name is one whose name was damaged
        raise UserError(f"{where}: has changed since it was written; {_ADVICE}")
    entry.pop("crc32", None)
    return entry
