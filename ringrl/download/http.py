"""Fetching one large file over HTTP, in as many connections as it takes, with the announced length checked."""

import http.client
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.filesize import decimal

from ringrl.download.partial_file import Remote, forget, load_remote, received, save_remote
from ringrl.errors import UserError, unwritable
from ringrl.formats.archive import require_space

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the size, None where it is unknown."""

_CHUNK = 2**20
_LONGEST_PAUSE = 60.0  # seconds
_ROOM = 2**28  # bytes that stay free on the disk where a server does not announce the size
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, and from https to https alone."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            raise UserError(
                f"{req.full_url}: the server redirects to {newurl}, which is not encrypted, so that anyone on the way "
                "could change the file; ask who runs the server, or give that address itself if you accept this"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Interrupted(Exception):
    """The connection ended early. The bytes in the partial file are good, or were removed: ask again."""

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
    on_progress: Progress = lambda done, total: None,
    on_pause: Callable[[str], None] = lambda message: None,
) -> Remote:
    """Make `partial` the whole file at `url`, continuing where an earlier call or a broken connection ended.

    What the server says is kept in `PARTIAL.json`. If the file has changed since, by its ETag, Last-Modified or size,
    all is fetched anew. Proxies are taken from the environment. The caller keeps other processes away from `partial`
    (`ringrl.locks.exclusive`).

    Args:
        url: http or https.
        partial: where to write, in an existing folder; it stays there on a failure, unless its bytes are useless.
        copies: how many times the file's size must fit on the disk.
        retries: failures in a row, without any new byte, after which to give up.
        pause: seconds before the second attempt; doubled with every failure in a row, up to a minute.
        timeout: seconds without a byte after which the connection counts as broken.
        on_progress: called with the bytes so far and the size.
        on_pause: called with the reason, one line, before every pause.

    Returns:
        What the server says of the file, with its size.

    Raises:
        UserError: in one line: if the server refuses, redirects from https to what is not encrypted, contradicts itself
            about the length, or sends more than it announced; if the disk is too full, or becomes so where no size is
            announced; or if the retries are used up, with what to do.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: not an http or https address")
    failures, furthest = 0, received(partial)
    while True:
        try:
            return _receive(url, partial, copies, timeout, on_progress)
        except _Interrupted as error:
            have = received(partial)
            failures = 1 if have > furthest else failures + 1
            furthest = max(furthest, have)
            if failures > retries:
                kept = f"; {have} bytes are kept in {partial}, run again to go on" if have else "; try again later"
                raise UserError(f"{url}: {error}{kept}") from error
            wait = max(error.wait, min(_LONGEST_PAUSE, pause * 2 ** (failures - 1)))
            on_pause(f"{url}: {error}; asking again in {wait:.0f} s")
            time.sleep(wait)


def _receive(url: str, partial: Path, copies: int, timeout: float, on_progress: Progress) -> Remote:
    """One connection."""
    known = load_remote(partial, url)
    have = received(partial) if known else 0
    if known and have and known.size == have:
        return known
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "ringrl"})
    if known and have:
        request.add_header("Range", f"bytes={have}-")
        if known.validator:
            request.add_header("If-Range", known.validator)
    try:
        with urllib.request.build_opener(_SafeRedirects).open(request, timeout=timeout) as reply:
            remote, start = _parse_reply(reply, url, partial, known, have)
            if remote.size is not None:
                require_space(partial.parent, copies * remote.size - start)
            _copy(reply, partial, start, remote, on_progress)
    except urllib.error.HTTPError as error:
        with error:
            remote = _handle_status(error, url, partial, known, have)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(f"{url}: its certificate is not trusted: {reason.verify_message}") from error
        raise _Interrupted(f"the connection broke ({reason or type(reason).__name__})") from error
    done = received(partial)
    if remote.size is not None and done < remote.size:
        raise _Interrupted(f"the connection broke after {done} of {remote.size} bytes")
    complete = Remote(url, done, remote.etag, remote.modified)
    save_remote(partial, complete)
    return complete


def _parse_reply(reply: Any, url: str, partial: Path, known: Remote | None, have: int) -> tuple[Remote, int]:
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
    # If-Range should prevent this, but some servers do not know it.
    pairs = ((known.size, remote.size), (known.etag, remote.etag), (known.modified, remote.modified))
    if start != have or any(None not in pair and pair[0] != pair[1] for pair in pairs):
        forget(partial)
        raise _Interrupted("the file has changed on the server")
    return Remote(url, remote.size, known.etag, known.modified), start


def _copy(reply: Any, partial: Path, start: int, remote: Remote, on_progress: Progress) -> None:
    try:
        file = partial.open("r+b" if start else "wb")
    except OSError as error:
        raise unwritable(partial, error) from error
    with file:
        file.seek(start)
        file.truncate()
        save_remote(partial, remote)  # now that no byte of another version is left
        done = start
        on_progress(done, remote.size)
        while chunk := reply.read1(_CHUNK):
            done += len(chunk)
            if remote.size is not None and done > remote.size:
                forget(partial)
                raise UserError(f"{remote.url}: the server announced {remote.size} bytes and sends more; refused")
            free = shutil.disk_usage(partial.parent).free if remote.size is None else _ROOM
            if free < _ROOM:
                raise UserError(
                    f"{partial}: {remote.url} does not announce its size, and only {decimal(free)} are free after "
                    f"{decimal(done - len(chunk))} of it; make room and run again, or remove what came"
                )
            try:
                file.write(chunk)
                file.flush()  # or an error of the disk comes later, and looks like one of the connection
            except OSError as error:
                raise unwritable(partial, error) from error
            on_progress(done, remote.size)


def _handle_status(error: urllib.error.HTTPError, url: str, partial: Path, known: Remote | None, have: int) -> Remote:
    """What follows from an error status: the file is complete (416), ask again, or give up."""
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
