"""A web server on this machine with one file, which fails in any way that a test asks for, one request at a time."""

import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site(ThreadingHTTPServer):
    """Serves `content` at every address, with ranges, ETag and If-Range; each of `faults` spoils one request."""

    daemon_threads = True

    def __init__(self, content: bytes, etag: str | None = '"1"'):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag = content, etag
        self.modified: str | None = None  # sent, but not compared with If-Range
        self.faults: deque[Callable[[Handler], None]] = deque()
        self.requests: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that went away is nothing to report."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Site

    def do_GET(self):
        self.server.requests.append({"path": self.path, **self.headers})
        fault = self.server.faults.popleft() if self.server.faults else Handler.serve
        fault(self)

    def serve(self, *, cut=None, announce=None, ranges=True, shown_range=None, pace=None, coding=None):
        """The file as a good server sends it, but for what is asked for.

        cut: bytes after which the line breaks; announce: another Content-Length (0 for none); ranges: whether they are
        known; shown_range: another Content-Range; pace: called before every 64 kB; coding: a Content-Encoding.
        """
        content = self.server.content
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if ranges else None
        if self.server.etag and self.headers.get("If-Range", self.server.etag) != self.server.etag:
            asked = None
        start = int(asked[1]) if asked else 0
        if asked and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        body = content[start:]
        if announce != 0:
            self.send_header("Content-Length", str(announce or len(body)))
        if asked:
            self.send_header("Content-Range", shown_range or f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        if self.server.modified:
            self.send_header("Last-Modified", self.server.modified)
        if coding:
            self.send_header("Content-Encoding", coding)
        self.end_headers()
        for at in range(0, len(body[:cut]), 2**16):
            if pace:
                pace()
            self.wfile.write(body[:cut][at : at + 2**16])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format, *args):
        """Nothing is logged."""


def fault(**options) -> Callable[[Handler], None]:
    """`serve` with options."""
    return lambda handler: handler.serve(**options)


def status(code: int, **headers: str) -> Callable[[Handler], None]:
    """An answer of this status alone."""

    def answer(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


@contextmanager
def running(site: Site) -> Iterator[Site]:
    """Serves meanwhile."""
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        site.server_close()
        thread.join()
