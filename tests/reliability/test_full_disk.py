"""A disk that takes no more is one line with the place. A limit of the size of files is one that every system has."""

import errno
import os
import subprocess
import sys

import pytest

from ringrl.errors import unwritable
from ringrl.files import write_text
from ringrl.formats.exorl import write_episode
from tests.builders import make_episode

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from ringrl.cli.entry import main
sys.argv = ["ringrl", *sys.argv[1:]]
main()
"""


def test_a_store_that_does_not_fit_is_one_line_and_leaves_nothing(tmp_path):
    for index in range(2):
        write_episode(tmp_path / "cartpole" / "rnd" / "buffer", index, make_episode(4000, widths=(5, 1, 1, 4)))
    command = ["data", "build_store", "cartpole/rnd", "--out", "stores/new", "--relabel", "recorded"]
    command += ["--tasks", "cartpole_swingup"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "cannot be written (File too large)" in line, line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cartpole"]


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (ValueError("RESOURCE_EXHAUSTED: \"a\": Failed to write [os_error_code='28']"), "No space left on device"),
        (RuntimeError("I/O error: full (os error 28)"), "No space left on device"),
        (ValueError("two\nlines"), "two lines"),
        (ValueError(), "ValueError"),
    ],
    ids=str,
)
def test_the_reason_is_the_systems_where_it_is_known(tmp_path, error, reason):
    expected = f"{tmp_path}: cannot be written ({reason}); make room there, or choose another place"
    assert str(unwritable(tmp_path, error)) == expected


def test_a_file_that_cannot_be_written_is_named_as_it_would_be_called(tmp_path):
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "nowhere" / "a.json", "x")
    assert caught.value.filename == str(tmp_path / "nowhere" / "a.json")
