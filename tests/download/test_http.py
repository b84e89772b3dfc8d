import importlib.util
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from ringrl.download import http
from ringrl.errors import UserError
from ringrl.formats import archive

SITE = Path(__file__).with_name("http_site.py")
CONTENT = np.random.default_rng(0).bytes(300_000)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


http_site = load(SITE)
fault, status = http_site.fault, http_site.status


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """What fetch would have slept, in seconds; no proxy of this machine is used."""
    slept = []
    monkeypatch.setattr(http.time, "sleep", slept.append)
    monkeypatch.setenv("no_proxy", "*")
    return slept


@pytest.fixture
def site():
    with http_site.running(http_site.Site(CONTENT)) as site:
        yield site


def fetch(site, folder, **options):
    partial = folder / "x.zip.partial"
    remote = http.fetch(f"{site.url}/x.zip", partial, retries=3, timeout=5.0, **options)
    assert partial.read_bytes() == site.content
    return remote


def ranges(site):
    return [request.get("Range") for request in site.requests]


def test_a_file_comes_whole_with_what_the_server_says_of_it(site, tmp_path, pauses):
    shown = []
    remote = fetch(site, tmp_path, on_progress=lambda done, total: shown.append((done, total)))
    assert (remote.size, remote.etag) == (300_000, '"1"') and not pauses
    assert shown[0] == (0, 300_000) and shown[-1] == (300_000, 300_000)
    assert fetch(site, tmp_path) == remote and len(site.requests) == 1


def test_a_line_that_breaks_again_and_again_costs_no_byte_twice(site, tmp_path, pauses):
    site.faults += [fault(cut=50_000)] * 5
    fetch(site, tmp_path)
    assert ranges(site) == [None, *(f"bytes={50_000 * k}-" for k in range(1, 6))]
    assert all(request["If-Range"] == '"1"' for request in site.requests[1:])
    assert pauses == [1.0] * 5  # every attempt got further, so patience starts anew


def test_without_etag_the_size_must_agree(site, tmp_path):
    site.etag = None
    site.faults += [fault(cut=50_000)]
    fetch(site, tmp_path)
    assert ranges(site) == [None, "bytes=50000-"] and "If-Range" not in site.requests[1]


def test_what_is_no_use_is_given_up_and_what_came_is_kept(site, tmp_path, pauses):
    site.faults += [fault(cut=100), *[fault(cut=0)] * 9]
    with pytest.raises(UserError, match="broke after 100 of 300000 bytes; 100 bytes are kept in .*run again"):
        fetch(site, tmp_path)
    assert pauses == [1.0, 2.0, 4.0]
    site.faults.clear()
    fetch(site, tmp_path)
    assert ranges(site)[-1] == "bytes=100-"


def test_a_server_that_goes_away_and_comes_back_is_waited_for(tmp_path, monkeypatch):
    first = http_site.Site(CONTENT)
    first.faults.append(fault(cut=1000))
    port = first.server_port
    sites = []

    def restart(_):
        if len(sites) == 0:
            first.shutdown()
            first.server_close()  # from here on connections are refused
        if len(sites) == 2:
            monkeypatch.setattr(http_site.Site, "server_bind", lambda self: bind(self, port))
            again = http_site.Site(CONTENT)
            threading.Thread(target=again.serve_forever, kwargs={"poll_interval": 0.01}).start()
            sites.append(again)
        else:
            sites.append(None)

    bind_as = http_site.Site.server_bind

    def bind(server, port):
        server.server_address = ("127.0.0.1", port)
        server.allow_reuse_address = True
        bind_as(server)

    monkeypatch.setattr(http.time, "sleep", restart)
    thread = threading.Thread(target=first.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        fetch(first, tmp_path)
        assert len(sites) == 3 and ranges(sites[2]) == ["bytes=1000-"]
    finally:
        thread.join()
        sites[2].shutdown()
        sites[2].server_close()


def test_a_server_that_knows_no_ranges_starts_from_the_beginning(site, tmp_path):
    site.faults += [fault(cut=200_000), fault(cut=100_000, ranges=False), fault(ranges=False)]
    fetch(site, tmp_path)


def test_a_server_that_knows_no_ranges_and_always_breaks_is_given_up(site, tmp_path):
    site.faults += [fault(cut=1000, ranges=False)] * 20
    with pytest.raises(UserError, match="the connection broke after 1000 of 300000 bytes"):
        fetch(site, tmp_path)
    assert len(site.requests) == 4


def test_a_file_that_changed_meanwhile_is_fetched_anew(site, tmp_path):
    site.faults += [fault(cut=1000)]
    with pytest.raises(UserError, match="1000 bytes are kept"):
        http.fetch(f"{site.url}/x.zip", tmp_path / "x.zip.partial", retries=0)
    site.content, site.etag = CONTENT[::-1], '"2"'
    assert fetch(site, tmp_path).etag == '"2"'


@pytest.mark.parametrize("etag", [None, '"2"'])
def test_a_changed_file_is_noticed_even_where_if_range_is_not_known(site, tmp_path, etag):
    site.etag = None
    site.faults += [fault(cut=1000)]
    with pytest.raises(UserError, match="1000 bytes are kept"):
        http.fetch(f"{site.url}/x.zip", tmp_path / "x.zip.partial", retries=0)
    site.content, site.etag = CONTENT[:-1] if etag is None else CONTENT[::-1], etag
    (tmp_path / "x.zip.partial.json").write_text(
        (tmp_path / "x.zip.partial.json").read_text().replace('"etag": null', '"etag": "W/\\"1\\""')
    )
    fetch(site, tmp_path)
    assert ranges(site) == [None, "bytes=1000-", None]


def test_a_change_that_only_the_date_tells_is_noticed(site, tmp_path):
    site.etag, site.modified = None, "Mon, 07 Feb 2022 10:00:00 GMT"
    site.faults += [fault(cut=1000)]
    with pytest.raises(UserError, match="1000 bytes are kept"):
        http.fetch(f"{site.url}/x.zip", tmp_path / "x.zip.partial", retries=0)
    site.content, site.modified = CONTENT[::-1], "Tue, 08 Feb 2022 10:00:00 GMT"
    fetch(site, tmp_path)
    assert ranges(site) == [None, "bytes=1000-", None]
    assert site.requests[1]["If-Range"].startswith("Mon")  # which this server does not know


def test_a_partial_file_of_another_address_is_not_continued(site, tmp_path):
    site.faults += [fault(cut=1000)]
    with pytest.raises(UserError):
        http.fetch(f"{site.url}/other.zip", tmp_path / "x.zip.partial", retries=0)
    fetch(site, tmp_path)
    assert ranges(site) == [None, None]


def test_a_length_that_was_announced_too_long_ends_where_the_server_says_in_the_end(site, tmp_path):
    site.faults += [fault(announce=400_000)]
    assert fetch(site, tmp_path).size == 300_000
    assert ranges(site) == [None, "bytes=300000-"]


def test_a_file_of_unannounced_length_comes(site, tmp_path):
    site.faults += [fault(announce=0)]
    assert fetch(site, tmp_path).size == 300_000


@pytest.mark.parametrize(
    "lie, message",
    [
        ({"announce": 250_001}, "the server contradicts itself: bytes 50000-299999/300000, but 250001 bytes follow"),
        ({"shown_range": "bytes 50000-299999/299000"}, "the server contradicts itself"),
        ({"shown_range": "items 1-2"}, "the server answers 206 without saying which part"),
        ({"announce": 0}, None),
        ({"coding": "gzip"}, "the server sends it as gzip"),
    ],
)
def test_lies_about_length_and_kind_are_refused(site, tmp_path, lie, message):
    site.faults += [fault(cut=50_000), fault(**lie)]
    if message is None:
        fetch(site, tmp_path)
        return
    with pytest.raises(UserError, match=message) as caught:
        fetch(site, tmp_path)
    assert "\n" not in str(caught.value) and len(site.requests) == 2


def test_more_than_was_announced_is_refused(site, tmp_path):
    def more(handler):
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 50000-299999/300000")
        handler.end_headers()
        handler.wfile.write(CONTENT)

    site.faults += [fault(cut=50_000), more]
    with pytest.raises(UserError, match="announced 300000 bytes and sends more; refused"):
        fetch(site, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [301, 400, 403, 404, 410])
def test_a_refusal_is_final(site, tmp_path, code, pauses):
    site.faults += [status(code)]
    with pytest.raises(UserError, match=f"x.zip: the server answers {code}"):
        fetch(site, tmp_path)
    assert not pauses and list(tmp_path.iterdir()) == []


def test_a_server_in_trouble_is_asked_again_when_it_wishes(site, tmp_path, pauses):
    site.faults += [status(503, Retry_After="7"), status(500), status(429, Retry_After="9999")]
    reasons = []
    fetch(site, tmp_path, on_pause=reasons.append)
    assert reasons[0].endswith("the server answers 503 Service Unavailable; asking again in 7 s") and len(reasons) == 3
    assert pauses == [7.0, 2.0, 60.0]
    (tmp_path / "x.zip.partial").unlink()
    site.faults += [status(500)] * 9
    with pytest.raises(UserError, match="the server answers 500 Internal Server Error; try again later"):
        fetch(site, tmp_path)


def test_a_server_that_sends_nothing_counts_as_a_broken_line(site, tmp_path):
    silent = threading.Event()
    site.faults += [lambda handler: silent.wait(20)]
    try:
        http.fetch(f"{site.url}/x.zip", tmp_path / "x.zip.partial", timeout=0.2)
    finally:
        silent.set()
    assert len(site.requests) == 2


def test_a_disk_too_small_is_said_before_the_first_byte(site, tmp_path, monkeypatch):
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 500_000}))
    with pytest.raises(UserError, match="are needed, .* are free; make room"):
        fetch(site, tmp_path, copies=2)
    assert list(tmp_path.iterdir()) == []
    fetch(site, tmp_path)


def test_a_file_of_unannounced_length_stops_before_the_disk_is_full(site, tmp_path, monkeypatch):
    partial = tmp_path / "x.zip.partial"
    begin = http._ROOM + 100_000
    monkeypatch.setattr(http, "_CHUNK", 20_000)
    monkeypatch.setattr(
        http.shutil, "disk_usage", lambda _: type("Usage", (), {"free": begin - partial.stat().st_size})
    )
    site.faults += [fault(announce=0)]
    with pytest.raises(UserError, match="x.zip does not announce its size, and only .* MB are free") as caught:
        fetch(site, tmp_path)
    assert "\n" not in str(caught.value) and 100_000 <= partial.stat().st_size < 300_000


def test_a_disk_that_fails_is_not_taken_for_the_line(site, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nowhere/x.zip.partial: cannot be written"), monkeypatch.context() as patched:
        patched.setattr(http, "require_space", lambda *_: None)
        fetch(site, tmp_path / "nowhere")
    (tmp_path / "x.zip.partial").mkdir()
    with pytest.raises(UserError, match="x.zip.partial: cannot be written"):
        fetch(site, tmp_path)
    assert len(site.requests) == 2


def test_the_environments_proxy_is_used(site, tmp_path, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", site.url)
    http.fetch("http://nowhere.invalid/a/x.zip", tmp_path / "x.zip.partial")
    assert site.requests[0]["path"] == "http://nowhere.invalid/a/x.zip"


def test_other_addresses_are_refused(tmp_path):
    with pytest.raises(UserError, match="not an http or https address"):
        http.fetch("file:///etc/passwd", tmp_path / "x")
