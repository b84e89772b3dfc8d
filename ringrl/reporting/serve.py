"""A report that follows its runs: written anew when they log or are evaluated, and shown at a loopback address.

Whoever is on this machine may read it; nobody else can connect. A browser loads the page again by itself.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.reporting.page.report_page import write_report
from ringrl.run import RunDirectory

LOOPBACK = "127.0.0.1"
_KINDS = {".html": "text/html; charset=utf-8", ".json": "application/json", ".png": "image/png"}
_HOSTS = (LOOPBACK, "localhost")


class LiveReport:
    """The page of some runs, and whether it is of what they have logged by now.

    Attributes:
        page: its index.html; None until there is something to show.
        trouble: why it could not be written the last time; empty if it could.
    """

    def __init__(self, runs: Sequence[Path], out: Path | None):
        """`runs` and `out` as `ringrl.reporting.write_report` takes them."""
        self._runs, self._out = [user_path(run) for run in runs], out
        self._seen: object = None
        self.page: Path | None = None
        self.trouble = ""

    def update(self) -> bool:
        """Write the report if a run has logged a step or has another table since it was; whether it was tried."""
        now = [_fingerprint(run) for run in self._runs]
        if now == self._seen:
            return False
        try:
            self.page, self.trouble = write_report(self._runs, self._out), ""
            self._seen = now
        except UserError as error:  # of a run that has not begun to log, or while another writes the report
            self.trouble = str(error)
        return True


def _fingerprint(run: Path) -> list[tuple[str, int, int]]:
    directory = RunDirectory(run)
    files = [directory.metrics_file, *sorted(directory.evaluation.rglob("*"))]
    found = []
    for each in files:
        with suppress(FileNotFoundError):  # a temporary file, which was there just now
            if each.is_file():
                found.append((str(each), each.stat().st_mtime_ns, each.stat().st_size))
    return found


class _Handler(BaseHTTPRequestHandler):
    """The report's files by their names, and nothing else."""

    def __init__(self, *arguments: object, report: LiveReport, every: float):
        self._report, self._every = report, every
        super().__init__(*arguments)  # pyright: ignore[reportArgumentType]

    def do_GET(self) -> None:
        """Answer with one file."""
        if self.headers.get("Host", "").partition(":")[0] not in _HOSTS:  # a name that leads here, of somebody's page
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        name = self.path.partition("?")[0].lstrip("/") or "index.html"
        page = self._report.page
        if page is None and name == "index.html":
            self._answer(self._report.trouble.encode(), "text/plain; charset=utf-8")
            return
        folder = None if page is None else page.parent
        known = [] if folder is None else [each.name for each in folder.iterdir() if each.suffix in _KINDS]
        if folder is None or name not in known:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._answer((folder / name).read_bytes(), _KINDS[Path(name).suffix])

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Refresh", f"{self._every:g}"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: who reads the page knows it."""


@contextmanager
def serving(report: LiveReport, port: int, every: float) -> Iterator[str]:
    """Show the report at a port of the loopback address; yields the address. 0: a port that the system chooses.

    Raises:
        UserError: the port is in use, or cannot be had.
    """
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), partial(_Handler, report=report, every=every))
    except OSError as error:
        raise UserError(f"--port {port}: cannot be used ({error.strerror}); give another, or 0 for any") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def serve(
    runs: Sequence[Path],
    out: Path | None,
    port: int,
    every: float,
    say: Callable[[str], None],
    stop: threading.Event | None = None,
) -> None:
    """Show a report on runs, and follow them until Ctrl-C, or until `stop` is set.

    Args:
        runs: run directories, also of trainings that are under way.
        out: folder of the report; None: as `write_report`.
        port: 0: any.
        every: seconds between two looks at the runs.
        say: gets the address.
        stop: ends it.

    Raises:
        UserError: no such run, or the port cannot be used.
    """
    report, stop = LiveReport(runs, out), stop or threading.Event()
    report.update()
    with serving(report, port, every) as address:
        say(f"report: {address} (ends with Ctrl-C)")
        try:
            while not stop.wait(every):
                report.update()
        except KeyboardInterrupt:
            say("ended")
