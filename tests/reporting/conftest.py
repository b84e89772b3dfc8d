"""A run directory below the test's own directory."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`write_run` below the test's own directory: `make_run("name", agent=...)`."""
    return lambda name="run", **options: write_run(tmp_path / name, **options)
