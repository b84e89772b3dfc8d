"""Usage errors as tyro finds them, in one line."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from ringrl.errors import UserError


@contextmanager
def usage_error_in_one_line() -> Iterator[None]:
    """Turn the box that tyro draws around a usage error into a UserError; `--help` still ends with SystemExit(0)."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        _title, *lines = (line.strip("│╭╮╰╯ ") for line in box.getvalue().splitlines())
        # Rules (of dashes where the terminal can draw no others) separate what is wrong and a pointer to --help.
        parts = re.split(r"^[-─]{3,}$", "\n".join(lines), flags=re.MULTILINE)
        message = next(" ".join(part.split()) for part in parts if part.strip()).rstrip(".")
        raise UserError(f"{message}; `--help` shows what can be given") from stop
