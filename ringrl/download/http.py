"""Fetching one large file over HTTP: a broken line costs little, and a server that lies about the length is found."""

import fcntl
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ringrl.errors import UserError
from ringrl.files import write_text
from ringrl.formats.archive import require_space

_CHUNK = 2**20
_LONGEST_PAUSE = 60.0  # seconds
_ROOM = 2**28  # bytes that stay free on the disk where a server does not tell how much it sends
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Remote:
    """What a server says about a file.

    Attributes:
        url: its address.
        size: bytes; None if the server does not tell.
        etag: the server's name for this version; None if it has none.
        modified: its Last-Modified, as sent.
    """

    url: str
    size: int | None
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """What If-Range may name: a weak ETag does not promise equal bytes (RFC 9110, section 13.1.5)."""
        return self.modified if self.etag is None or self.etag.startswith("W/") else self.etag


class _Interrupted(Exception):
    """What came so far is good, or was thrown away: ask again."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def fetch(
    url: str,
    partial: Path,
    *,
    copies: int = 1,
    retries: int = 8,
    pause: float = 1.0,
    timeout: float = 60.0,
    show: Callable[[int, int | None], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda message: None,
) -> Remote:
    """Make `partial` the whole file at `url`, going on where an earlier call or a broken line left off.

    What the server said is kept in `PARTIAL.json`. If the file has changed since, by its ETag, Last-Modified or size,
    all is fetched anew. Proxies are taken from the environment. Whoever calls holds a lock (`exclusive`).

    Args:
        url: http or https.
        partial: where to write, in an existing folder; it stays there on every failure but a lie.
        copies: how many times the file's size must fit on the disk.
        retries: failures in a row, without any new byte, after which to give up.
        pause: seconds before the second attempt; doubled with every failure in a row, up to a minute.
        timeout: seconds of silence after which the line counts as broken.
        show: called with the bytes so far and the size.
        tell: called with a line of words before every pause.

    Raises:
        UserError: in one line: if the server refuses, contradicts itself about the length, or sends more than it
            announced; if the disk is too full, or becomes so where no size is announced; or if the retries are used
            up, with what to do.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: not an http or https address")
    failures, furthest = 0, _size(partial)
    while True:
        try:
            return _receive(url, partial, copies, timeout, show)
        except _Interrupted as error:
            have = _size(partial)
            failures = 1 if have > furthest else failures + 1
            furthest = max(furthest, have)
            if failures > retries:
                kept = f"; {have} bytes are kept in {partial}, run again to go on" if have else "; try again later"
                raise UserError(f"{url}: {error}{kept}") from error
            wait = max(error.wait, min(_LONGEST_PAUSE, pause * 2 ** (failures - 1)))
            tell(f"{url}: {error}; asking again in {wait:.0f} s")
            time.sleep(wait)


def forget(partial: Path) -> None:
    """Remove a partial file and what is known of it."""
    partial.unlink(missing_ok=True)
    _state(partial).unlink(missing_ok=True)


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold `lock`, a file that exists only meanwhile, against other processes; a killed one holds it no longer.

    Raises:
        UserError: if another process holds it.
    """
    file = _try_lock(lock)
    while file is None:
        file = _try_lock(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)


def _try_lock(lock: Path) -> int | None:
    """The open file, locked; None if its last holder removed it between our two calls, so that it protects nothing."""
    try:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(lock, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), lock.stat()):
            return file
    except FileNotFoundError:
        pass
    except OSError as error:
        os.close(file)
        busy = isinstance(error, BlockingIOError)
        what = "another process is at work on this; wait for it to end" if busy else f"cannot lock ({error.strerror})"
        raise UserError(f"{lock}: {what}") from None
    os.close(file)
    return None


def _receive(url: str, partial: Path, copies: int, timeout: float, show: Callable[[int, int | None], None]) -> Remote:
    """One connection."""
    known = _load_state(partial, url)
    have = _size(partial) if known else 0
    if known and have and known.size == have:
        return known
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "ringrl"})
    if known and have:
        request.add_header("Range", f"bytes={have}-")
        if known.validator:
            request.add_header("If-Range", known.validator)
    try:
        with urllib.request.build_opener().open(request, timeout=timeout) as reply:
            remote, start = _understand(reply, url, partial, known, have)
            if remote.size is not None:
                require_space(partial.parent, copies * remote.size - start)
            _copy(reply, partial, start, remote, show)
    except urllib.error.HTTPError as error:
        with error:
            remote = _refused(error, url, partial, known, have)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(f"{url}: its certificate is not trusted: {reason.verify_message}") from error
        raise _Interrupted(f"the line broke ({reason or type(reason).__name__})") from error
    done = _size(partial)
    if remote.size is not None and done < remote.size:
        raise _Interrupted(f"the line broke after {done} of {remote.size} bytes")
    complete = Remote(url, done, remote.etag, remote.modified)
    _save_state(partial, complete)
    return complete


def _understand(reply: Any, url: str, partial: Path, known: Remote | None, have: int) -> tuple[Remote, int]:
    """What the server says, and the byte with which its answer begins."""
    headers: Message = reply.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(f"{url}: the server sends it as {headers['Content-Encoding']}, though not asked to")
    length = int(headers["Content-Length"]) if headers.get("Content-Length", "").isdigit() else None
    if reply.status == 200:  # the whole file: at first, or because it has changed or ranges are not known there
        return Remote(url, length, headers.get("ETag"), headers.get("Last-Modified")), 0
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if reply.status != 206 or match is None or known is None:
        raise UserError(f"{url}: the server answers {reply.status} without saying which part of the file it sends")
    start, end, total = int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])
    if (total is not None and end >= total) or (length is not None and length != end - start + 1):
        raise UserError(f"{url}: the server contradicts itself: {match[0]}, but {length} bytes follow")
    remote = Remote(url, known.size if total is None else total, headers.get("ETag"), headers.get("Last-Modified"))
    # Whatever If-Range was meant to prevent: there are servers that do not know it.
    pairs = ((known.size, remote.size), (known.etag, remote.etag), (known.modified, remote.modified))
    if start != have or any(None not in pair and pair[0] != pair[1] for pair in pairs):
        forget(partial)
        raise _Interrupted("the file has changed on the server")
    return Remote(url, remote.size, known.etag, known.modified), start


def _copy(reply: Any, partial: Path, start: int, remote: Remote, show: Callable[[int, int | None], None]) -> None:
    try:
        file = partial.open("r+b" if start else "wb")
    except OSError as error:
        raise _unwritable(partial, error) from error
    with file:
        file.seek(start)
        file.truncate()
        _save_state(partial, remote)  # now that no byte of another version is left
        done = start
        show(done, remote.size)
        while chunk := reply.read1(_CHUNK):
            done += len(chunk)
            if remote.size is not None and done > remote.size:
                forget(partial)
                raise UserError(f"{remote.url}: the server announced {remote.size} bytes and sends more; refused")
            free = shutil.disk_usage(partial.parent).free if remote.size is None else _ROOM
            if free < _ROOM:
                raise UserError(
                    f"{partial}: {remote.url} does not tell its size, and only {free / 1e9:.2f} GB are free after "
                    f"{(done - len(chunk)) / 1e9:.2f} GB of it; make room and run again, or remove what came"
                )
            try:
                file.write(chunk)
                file.flush()  # or an error of the disk comes later, and looks like one of the line
            except OSError as error:
                raise _unwritable(partial, error) from error
            show(done, remote.size)


def _refused(error: urllib.error.HTTPError, url: str, partial: Path, known: Remote | None, have: int) -> Remote:
    """What an error status means: all is there already (416), ask again, or give up."""
    if error.code == 416 and known:
        match = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", "").strip())
        if match and int(match[1]) == have:
            return Remote(url, have, known.etag, known.modified)
        forget(partial)
        raise _Interrupted("the file has changed on the server") from error
    if error.code in _TRANSIENT:
        asked = error.headers.get("Retry-After", "")
        wait = min(_LONGEST_PAUSE, float(asked)) if asked.isdigit() else 0.0
        raise _Interrupted(f"the server answers {error.code} {error.reason}", wait) from error
    raise UserError(f"{url}: the server answers {error.code} {error.reason}; is the address right?") from error


def _state(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _save_state(partial: Path, remote: Remote) -> None:
    try:
        write_text(_state(partial), json.dumps(asdict(remote)))
    except OSError as error:
        raise _unwritable(partial, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror}); make room there, or choose another place")


def _load_state(partial: Path, url: str) -> Remote | None:
    """What is known of the partial file; None if nothing is, or it is of another address: then it is worth nothing."""
    try:
        known = Remote(**json.loads(_state(partial).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return known if known.url == url and (known.size is None or _size(partial) <= known.size) else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
