"""The one exception that users are meant to see."""

from pathlib import Path


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong, where, and what to do.

    The command line prints it and exits with 2; a traceback appears only with `--debug`.
    """


def unwritable(path: Path, error: OSError) -> UserError:
    """The error to raise where `path` cannot be written."""
    return UserError(f"{path}: cannot be written ({error.strerror}); make room there, or choose another place")
