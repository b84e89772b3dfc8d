"""A file that is not what it should be is read as far as it is well, or refused in one line: by every reader there is.

`python -m benchmarks.faults` tries each of them on thousands of files.
"""

import random
import time

import pytest

from benchmarks import _faults_fuzzed
from benchmarks._faults_fuzzed import fuzz, fuzz_in_process
from benchmarks._faults_mutations import mutate
from benchmarks._faults_readers import READERS, Reader
from ringrl import recipes
from ringrl.errors import UserError
from ringrl.run import RunDirectory
from ringrl.run_records import find_recorded

SLOW = ("minari", "export", "page")  # tens of milliseconds to seconds a file


@pytest.mark.parametrize("reader", [each for each in READERS if each.name not in SLOW], ids=lambda reader: reader.name)
def test_what_cannot_be_read_is_refused_in_one_line(reader, tmp_path):
    found = fuzz(reader, 25, 1, tmp_path)
    assert (found.fuzzed, found.untyped, found.hangs) == (25, 0, 0), found.examples


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_what_is_slow_to_read_is_refused_in_one_line(name):
    (reader,) = (each for each in READERS if each.name == name)
    found = fuzz_in_process(reader, 20, 1)
    assert (found.fuzzed, found.untyped, found.hangs) == (20, 0, 0), found.examples


def made(folder):
    (folder / "a").write_text('{"x": [1, 2], "y": "z"}')


def test_other_errors_and_hangs_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(_faults_fuzzed, "PATIENCE", 0.05)
    count = iter(range(100))

    def read(folder):
        number = next(count)
        if number == 1:
            raise UserError("no")
        if number == 2:
            raise KeyError("bare")
        if number == 3:
            time.sleep(1)

    found = fuzz(Reader("some", 1, made, read), 4, 0, tmp_path)
    assert (found.fuzzed, found.refused, found.untyped, found.hangs) == (4, 1, 1, 1)
    (bare, hang) = found.examples.items()
    assert bare[0].startswith("KeyError at test_damaged_inputs.py:") and hang == ("hang", "2, a")


def test_mutations_are_many_and_those_of_a_seed_the_same():
    good = b'{"x": [1, 2], "y": "z"}'
    drawn = [mutate(good, random.Random(seed)) for seed in range(300)]
    assert drawn == [mutate(good, random.Random(seed)) for seed in range(300)]
    assert len(set(drawn)) > 200 and sum(each == good for each in drawn) < 15


def test_a_message_is_one_line_of_text_for_any_terminal():
    message = str(UserError("a\nb\x1b[31m c\u2028d \ud800 é"))
    assert message == "a b [31m c d   é" and len(str(UserError("x" * 10**6))) < 5000


@pytest.mark.parametrize("name", ["x" * 2000, "~nobody-of-that-name/x", f"{'y' * 300}/z"])
def test_names_that_no_file_system_takes_are_names_of_no_file(name, tmp_path):
    with pytest.raises(UserError, match="no such file|no recipe of that name"):
        recipes.find("configs", name)
    assert find_recorded({"given": name, "absolute": name, "relative": name}, tmp_path) == name
    assert not RunDirectory(tmp_path / name).exists
