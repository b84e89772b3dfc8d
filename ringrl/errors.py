"""The one exception that users are meant to see."""

import os
import re
from pathlib import Path

_LONGEST = 4000
_NOT_OF_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong, where, and what to do.

    The command line prints it and exits with 2; a traceback appears only with `--debug`. What is quoted of a file may
    hold anything: line breaks, codes that steer a terminal, and halves of characters become spaces, and what is beyond
    4000 characters is left out.
    """

    def __init__(self, message: str):
        line = _NOT_OF_A_LINE.sub(" ", message)
        super().__init__(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}...")


def one_line(error: BaseException) -> str:
    """What an error of a user's or a library's program says, in one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def unwritable(path: Path, error: Exception) -> UserError:
    """The error to raise where `path` cannot be written, for a reason of the system's, TensorStore's or another's."""
    code = re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)", str(error))  # of TensorStore; of safetensors
    system = os.strerror(int(code[1] or code[2])) if code else getattr(error, "strerror", None)
    reason = system or " ".join(str(error).split())[:200] or type(error).__name__
    is_file = isinstance(error, FileExistsError | NotADirectoryError)
    what = "it, or what is above it, is a file;" if is_file else "make room there, or"
    return UserError(f"{path}: cannot be written ({reason}); {what} choose another place")
