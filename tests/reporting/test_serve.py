"""A report that follows its runs: on the loopback alone, its files alone, and always of what was logged last."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ringrl.errors import UserError
from ringrl.locks import exclusive
from ringrl.reporting.serve import LOOPBACK, LiveReport, serve, serving


@pytest.fixture
def run(make_run):
    """A training that has not begun to log."""
    path = make_run(points=1, envs=2, trials=2)
    (path / "evaluation" / "returns.csv").unlink()
    (path / "metrics.jsonl").write_text("")
    return path


def log(run, step):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": 1.0 / step}) + "\n")


def get(address, name="", host=None):
    request = urllib.request.Request(address + name, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.headers, answer.read().decode("utf-8", "replace")


def wait_for(condition, worker):
    deadline = time.monotonic() + 120
    while not condition():
        assert worker.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)


def test_a_report_that_could_not_be_written_is_tried_again(run, tmp_path):
    log(run, 10)
    report, out = LiveReport([run], tmp_path / "out"), tmp_path / "out"
    with exclusive(out / ".lock"):
        assert report.update() and "in use by process" in report.trouble and report.page is None
    assert report.update() and not report.trouble and report.page == out / "index.html"
    assert not report.update()


def test_a_file_that_goes_away_while_files_are_listed(run, tmp_path, monkeypatch):
    """As temporary files do, which are renamed when they are whole."""
    log(run, 10)
    gone = run / "evaluation" / "returns.csv.tmp"
    gone.write_text("")
    monkeypatch.setattr(Path, "rglob", disappearing(gone, Path.rglob))
    report = LiveReport([run], tmp_path / "out")
    assert report.update() and not report.trouble and not gone.exists()


def disappearing(path, listed):
    """`Path.rglob`, after which `path` is no longer there."""

    def rglob(*arguments, **options):
        found = list(listed(*arguments, **options))
        path.unlink(missing_ok=True)
        return found

    return rglob


def test_the_page_follows_a_training(run, tmp_path):
    report = LiveReport([run], tmp_path / "out")
    assert report.update() and report.page is None
    with serving(report, 0, 5.0) as address:
        headers, text = get(address)
        assert "has not logged a training step yet" in text and headers["Refresh"] == "5"
        for step in (10, 20):
            log(run, step)
            assert report.update() and not report.update()
            assert json.loads(get(address, "summary.json")[1])["trainings"][0]["step"] == step
        headers, text = get(address)
        assert "<title>Trainings" in text and headers["Cache-Control"] == "no-store"


def test_only_this_machine_and_only_the_reports_files(run, tmp_path):
    log(run, 10)
    report = LiveReport([run], tmp_path / "out")
    report.update()
    (tmp_path / "out" / "private.txt").write_text("private")
    with serving(report, 0, 5.0) as address:
        for name, host, status in (
            ("../run/config.yaml", None, 404),
            ("private.txt", None, 404),
            ("SHA256SUMS", None, 404),
            ("", "example.org", 403),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(address, name, host)
            assert refused.value.code == status
            refused.value.close()
        assert get(address, "", "localhost:1")[1].startswith("<!doctype html>")
        port = int(address.rstrip("/").rpartition(":")[2])
        others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)} - {LOOPBACK, "::1"}
        for other in others:
            with pytest.raises(OSError), socket.create_connection((other, port), timeout=2):
                pytest.fail("it listens elsewhere too")
        with pytest.raises(UserError, match=f"--port {port}: cannot be used"), serving(report, port, 5.0):
            pytest.fail("two at one port")


def test_it_serves_until_it_is_stopped(run, tmp_path):
    log(run, 10)
    said, stop = [], threading.Event()
    worker = threading.Thread(target=serve, args=([run], tmp_path / "out", 0, 0.05, said.append, stop))
    worker.start()
    try:
        wait_for(lambda: said, worker)
        address = said[0].split()[1]
        log(run, 20)
        wait_for(lambda: json.loads(get(address, "summary.json")[1])["trainings"][0]["step"] == 20, worker)
    finally:
        stop.set()
        worker.join(60)
    assert not worker.is_alive()
    with pytest.raises(urllib.error.URLError):
        get(address)
