"""Damage and nonsense, drawn: what a file may contain after a crash, a bad disk, a careless hand or a malicious one."""

import json
import random
from typing import Any

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 2**31, 2**53, 2**63,
    -(2**63) - 1, 10**30, "", "0", "nan", "a\0b", "\ud800", "é", "../../..", "/", ".", "~", "x" * 5000, "a\nb",
    "\u202e", [], {}, [[]], [None], {"": None}, {"a": 1}, [1, "a"], [0] * 1000, "2020-99-99", "decision_transformer",
)  # fmt: skip
_TOKENS = (
    b"{", b"}", b"[", b"]", b"[" * 2000, b'{"a":' * 2000, b'"', b"\\", b"\\ud800", b"\\u0000", b",", b":", b"\0", b"\n",
    b"\r", b"\xff", b"\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"nan", b"NaN", b"Infinity", b"1e999", b"-1",
    b"9" * 5000, b"!!int x", b"!!int ''", b"!!bool ''", b"!!timestamp 2020-99-99", b"!!binary =", b"!!set {a}",
    b"!!omap [a]", b"&a [*a]", b"2020-99-99", b"<<: 1", b"? [a]", b"---\n", b"%YAML 9.9\n", b"\t", b"- " * 500,
    b"1:2:3", b"0x", b"0o9", b"1_000", b"null", b"true", b"~", b"#", b'"' * 3, b"a" * 140_000, b"PK\x03\x04",
    b"\x93NUMPY", b"\x89HDF\r\n\x1a\n",
)  # fmt: skip


def mutate(content: bytes, draw: random.Random) -> bytes:
    """`content` otherwise: a value of its JSON or a cell of its table replaced, or bytes changed, once or thrice."""
    changed = content
    for _ in range(draw.choice((1, 1, 1, 3))):
        kinds = [_change_bytes, _change_bytes]
        if changed[:1] in b"{[":
            kinds += [_change_json] * 4
        if len(changed) < 100_000:
            kinds += [_change_line, _change_word]
        changed = draw.choice(kinds)(changed, draw)
    return changed


def _change_bytes(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    length = draw.choice((1, 1, 2, 8, 64, len(content) // 4))
    start, taken, end = content[:at], content[at : at + length], content[at + length :]
    how = draw.randrange(8)
    if how == 0:
        return start + bytes((byte ^ 1 << draw.randrange(8)) for byte in taken[:1]) + taken[1:] + end
    if how == 1:
        return start + draw.randbytes(len(taken)) + end
    if how == 2:
        return start + end
    if how == 3:
        return start
    if how == 4:
        return start + taken + taken + end
    if how == 5:
        return start + draw.choice(_TOKENS) + taken + end
    if how == 6:
        return start + draw.choice(_TOKENS) + end
    return start + b"\0" * len(taken) + end


def _change_line(content: bytes, draw: random.Random) -> bytes:
    """A line lost, doubled, moved or indented."""
    lines = content.split(b"\n")
    index = draw.randrange(len(lines))
    line = lines.pop(index)
    how = draw.randrange(4)
    if how == 0:
        lines.insert(draw.randrange(len(lines) + 1), line)
    elif how == 1:
        lines[index:index] = [line, line]
    elif how == 2:
        lines.insert(index, b"  " + line)
    return b"\n".join(lines)


def _change_word(content: bytes, draw: random.Random) -> bytes:
    """What is between two separators replaced, as a value of YAML or a cell of CSV."""
    separators = [index for index, byte in enumerate(content) if byte in b",:\n []{}"]
    if len(separators) < 2:
        return content
    first = draw.randrange(len(separators) - 1)
    value = draw.choice(_VALUES)
    word = draw.choice(_TOKENS) if draw.random() < 0.3 else str(value).encode(errors="surrogatepass")
    return content[: separators[first] + 1] + word + content[separators[first + 1] :]


def _change_json(content: bytes, draw: random.Random) -> bytes:
    """A value or a key of JSON replaced, removed or added."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return _change_bytes(content, draw)
    holders = _holders(document)
    if not holders:
        return json.dumps(draw.choice(_VALUES)).encode()
    holder = draw.choice(holders)
    key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    how = draw.randrange(6)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[draw.choice(("", "x", str(key).upper(), "\0", "schema"))] = holder.pop(key)
    elif how == 2:
        holder[key] = [holder[key]]
    else:
        holder[key] = draw.choice(_VALUES)
    return json.dumps(document).encode()


def _holders(value: Any) -> list[Any]:
    """The objects and lists in a document that are not empty."""
    if not isinstance(value, dict | list) or not value:
        return []
    items = value.values() if isinstance(value, dict) else value[:50]
    return [value, *(holder for item in items for holder in _holders(item))]
