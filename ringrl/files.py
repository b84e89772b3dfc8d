"""Files that are complete or not there."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, replacing what was there in one step."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, body: bytes) -> None:
    """Write `body` to `path`, replacing what was there: readers see the old file or the new, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(body)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
