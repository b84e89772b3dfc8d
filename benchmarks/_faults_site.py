"""A web server for downloads that are killed: one file, with ranges, sent slowly enough to be killed in between."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_CHUNK = 2**16


class _Handler(BaseHTTPRequestHandler):
    content: bytes

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        body = self.content[int(asked[1]) if asked else 0 :]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        if asked:
            self.send_header("Content-Range", f"bytes {asked[1]}-{len(self.content) - 1}/{len(self.content)}")
        self.end_headers()
        for start in range(0, len(body), _CHUNK):
            self.wfile.write(body[start : start + _CHUNK])
            time.sleep(0.01)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that was killed."""


@contextmanager
def serving(file: Path, port: int = 0) -> Iterator[str]:
    """Serve a file at every address of http://127.0.0.1:PORT, which is yielded.

    Args:
        file: the file.
        port: 0 takes a free one. The same again continues a download: it is kept with the address.
    """
    handler = type("Handler", (_Handler,), {"content": file.read_bytes()})
    with _Server(("127.0.0.1", port), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
