"""Every failure of a JSON, YAML or CSV file is one line with the file, the place in it, and what to do."""

import json

import pytest
from pydantic import with_config
from typing_extensions import TypedDict

from ringrl.errors import UserError
from ringrl.readers import RECORD, Count, Text, parse_yaml, read_csv, read_json, read_yaml


@with_config(RECORD)
class Record(TypedDict):
    name: Text
    steps: Count
    scale: float


# 8^9 values in a few hundred bytes.
BOMB = "\n".join(["a0: &a0 [1, 1, 1, 1]", *(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 8}]" for i in range(1, 9))])
GOOD = {"name": "a", "steps": 3, "scale": 0.5}


def refused(read, *arguments):
    with pytest.raises(UserError) as caught:
        found = read(*arguments)
        list(found)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_as_it_must_be_is_read_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD | {"more": [None, {"x": "ä"}]}))
    assert read_json(path, Record, "mend it") == GOOD | {"more": [None, {"x": "ä"}]}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD | {"scale": 2}).encode())  # as an editor may save it
    assert read_json(path, Record, "mend it")["scale"] == 2.0


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "Invalid JSON: EOF"),
        (b'{"name": "a",\n oops', "Invalid JSON: key must be a string at line 2 column 2"),
        (b"[1]", "Input should be an object"),
        (b'{"name": "\xff"}', "Invalid JSON: invalid unicode code point"),
        (b'{"name": "\\ud800"}', "Invalid JSON: "),
        (b"[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        (json.dumps(GOOD | {"name": "a\0b"}).encode(), "`name`: holds a NUL"),
        (json.dumps(GOOD | {"steps": "3"}).encode(), "`steps`: Input should be a valid integer"),
        (json.dumps(GOOD | {"steps": True}).encode(), "`steps`: Input should be a valid integer"),
        (json.dumps(GOOD | {"steps": 2**53}).encode(), "`steps`: Input should be less than 9007199254740992"),
        (json.dumps(GOOD | {"scale": float("nan")}).encode(), "`scale`: Input should be a finite number"),
        (json.dumps(GOOD).replace("0.5", "1e999").encode(), "`scale`: Input should be a finite number"),
        (json.dumps({"name": "a"}).encode(), "`steps`: Field required (and 1 more)"),
    ],
)
def test_a_json_file_that_is_not_is_named_with_line_or_key(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    message = refused(read_json, path, Record, "mend it")
    assert message.startswith(f"{path}: {words}") and message.endswith("; mend it") and len(message) < 400


def test_a_file_that_is_not_there_or_no_file_is_named(tmp_path):
    assert refused(read_json, tmp_path / "x", Record, "mend it") == f"{tmp_path}/x: no such file; mend it"
    assert refused(read_json, tmp_path, Record, "mend it") == f"{tmp_path}: cannot be read (Is a directory); mend it"


@pytest.mark.parametrize(
    "text, values",
    [
        ("a: 1\nb: [x, 1.5, null, true]", {"a": 1, "b": ["x", 1.5, None, True]}),
        ("a: 2020-01-02", {"a": "2020-01-02"}),
        ("a: 2020-99-99", {"a": "2020-99-99"}),
        ("base: &b {x: 1}\na: {<<: *b, y: 2}", {"base": {"x": 1}, "a": {"x": 1, "y": 2}}),
    ],
)
def test_yaml_is_plain_values(text, values):
    assert parse_yaml(text, "here") == values


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: [", "not valid YAML: while parsing"),
        ("a: !!int x", "not valid YAML: invalid literal for int"),
        ("a: !!int ''", "not valid YAML: "),
        ("a: !!bool maybe", "not valid YAML: 'maybe'"),
        ("a: !!python/object:os.system {}", "not valid YAML: could not determine a constructor"),
        ("a: !!binary aGk=", "`a`: a bytes; give text"),
        ("a: !!timestamp 2020-01-02", "`a`: a date; give text"),
        ("a: !!set {x}", "`a`: a set; give text"),
        ("1: a", "``: the key 1 is not text"),
        ("a: {true: b}", "`a`: the key True is not text"),
        ("[1]: a", "not valid YAML: while constructing a mapping found unhashable key"),
        ("a: {b: 1, c: 2, b: 3}", "not valid YAML: the key 'b' twice"),
        ("a: 99999999999999999999", "`a`: a whole number of more than 64 bits"),
        (f"a: {'9' * 5000}", "not valid YAML: Exceeds the limit"),
        ('a: "\\ud800"', "`a`: text with a NUL or half a character"),
        ('a: "\\0"', "`a`: text with a NUL or half a character"),
        ("a: " + "[" * 40 + "]" * 40, "`a."),
        ("[" * 5000, "not valid YAML here: nested too deeply"),
        ("a: &a [*a]", "`a."),
        (BOMB, "`a"),
    ],
)  # fmt: skip
def test_yaml_that_is_none_or_no_plain_values_is_named_with_place_or_key(text, words):
    assert refused(parse_yaml, text, "here").startswith(f"here: {words}")


def test_a_configuration_is_a_small_mapping_in_utf_8(tmp_path):
    path = tmp_path / "a.yaml"
    for content, words in (
        (b"a: \xff", "not text in UTF-8 (byte 3)"),
        (b"[1]", "must be a mapping"),
        (b"#" * 300_000, "at most"),
    ):
        path.write_bytes(content)
        assert words in refused(read_yaml, path)


def test_csv_is_lines_of_cells_with_their_numbers(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfx,y\r\n\r\n"a\nb",1\n')
    assert list(read_csv(path, "mend it")) == [(1, ["x", "y"]), (4, ["a\nb", "1"])]
    for content, words in (
        (b"x\ny\xff", "line 2: is not text in UTF-8 (byte 3)"),
        (b'x\n"a"b', "line 2: not CSV"),
        (b"x" * 200_000, "line 1: not CSV"),
    ):
        path.write_bytes(content)
        assert f"{path} {words}" in refused(read_csv, path, "mend it")
