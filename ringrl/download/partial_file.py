"""The state of a download that is not finished: the bytes received, and what the server said of the file.

The bytes are in `PARTIAL`, the server's description in `PARTIAL.json` beside it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ringrl.errors import UserError, unwritable
from ringrl.files import write_text
from ringrl.readers import read_json


@dataclass(frozen=True)
class Remote:
    """What a server says about a file.

    Attributes:
        url: its address.
        size: bytes; None if the server does not announce it.
        etag: the server's name for this version; None if it has none.
        modified: its Last-Modified, as sent.
    """

    url: str
    size: int | None
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """The value for If-Range: a weak ETag does not promise equal bytes (RFC 9110, section 13.1.5)."""
        return self.modified if self.etag is None or self.etag.startswith("W/") else self.etag


def received(partial: Path) -> int:
    """The bytes received so far."""
    return partial.stat().st_size if partial.exists() else 0


def load_remote(partial: Path, url: str) -> Remote | None:
    """What the server said of the partial file; None if the file cannot be continued from `url`."""
    try:
        known = read_json(_state(partial), Remote, "fetch it anew")
    except UserError:
        return None
    return known if known.url == url and (known.size is None or received(partial) <= known.size) else None


def save_remote(partial: Path, remote: Remote) -> None:
    """Keep what the server said.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        write_text(_state(partial), json.dumps(asdict(remote)))
    except OSError as error:
        raise unwritable(partial, error) from error


def forget(partial: Path) -> None:
    """Remove the bytes and the server's description."""
    partial.unlink(missing_ok=True)
    _state(partial).unlink(missing_ok=True)


def _state(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")
