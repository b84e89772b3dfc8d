"""A store behind a URL: the same bytes through a local HTTP server, and what is said when they do not come."""

import itertools
import threading
import zlib
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from ringrl.agent import make_agent
from ringrl.config import parse_config
from ringrl.errors import UserError
from ringrl.store import zarr
from ringrl.store.episode_store import open_store
from ringrl.training.processes import LocalShard
from tests.store.test_episode_store import TASKS, build, make_episode


class Files(BaseHTTPRequestHandler):
    """Serves the files of a folder, whole or one range of bytes."""

    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, asked: list[str], *args):
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def do_GET(self):
        self.asked.append(self.path)
        file = self.folder / self.path.lstrip("/")
        if not file.is_file():
            return self.answer(404, b"")
        content = file.read_bytes()
        if (wanted := self.headers["Range"]) is None:
            return self.answer(200, content)
        first, last = wanted.removeprefix("bytes=").split("-")
        start, stop = (len(content) - int(last), len(content)) if not first else (int(first), int(last or -2) + 1)
        stop = len(content) if stop < 0 else min(stop, len(content))
        self.answer(206, content[start:stop], f"bytes {start}-{stop - 1}/{len(content)}")

    def answer(self, status: int, content: bytes, content_range: str | None = None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{zlib.crc32(content)}"')  # S3 always has one
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def web(tmp_path):
    """The URL of `tmp_path`, and the paths asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, tmp_path, asked))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def episodes():
    return [make_episode(length, seed) for seed, length in enumerate([50, 30, 40, 60])]


def test_a_store_behind_a_url_is_the_store(tmp_path, web, episodes):
    url, asked = web
    local, remote = open_store(build(tmp_path / "walker", episodes)), open_store(f"{url}/walker/")
    assert not [path for path in asked if "/c/" in path], "opening reads nothing of the episodes"
    spans = [(3, 5, 60), (0, 0, 50), (2, 39, 40)]
    for ours, theirs in zip(local.read_many(spans, TASKS[1]), remote.read_many(spans, TASKS[1]), strict=True):
        for name in ("observation", "action", "reward", "discount", "earlier"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    np.testing.assert_array_equal(local.returns(TASKS[0]), remote.returns(TASKS[0]))
    np.testing.assert_array_equal(local.source, remote.source)
    np.testing.assert_array_equal(local.physics(1), remote.physics(1))


def test_a_url_in_a_config_is_all_that_training_needs(tmp_path, web, episodes):
    def first_batch(store: str) -> dict[str, np.ndarray]:
        agent = {"name": "decision_transformer", "window": 5}
        training = {"batch": 2, "row_steps": 5}
        config = parse_config(
            {"data": {"store": store, "task": TASKS[0]}, "agent": agent, "training": training}, "here"
        )
        source = make_agent(config.agent).make_trainer(config).data
        source.prepare(tmp_path / "run")
        batches = source.batches(0, LocalShard(np.arange(2), np.arange(5), (2, 5)))
        return list(itertools.islice(batches, 1))[0]

    out = build(tmp_path / "walker", episodes)
    local, remote = first_batch(str(out)), first_batch(f"{web[0]}/walker")
    for name in local:
        np.testing.assert_array_equal(local[name], remote[name])


def test_a_server_that_speaks_s3_is_named_as_for_amazons_tools(tmp_path, web, episodes, monkeypatch):
    url, asked = web
    for name, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "me", "SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    local, remote = open_store(build(tmp_path / "bucket" / "walker", episodes)), open_store("s3://bucket/walker")
    ours, theirs = local.read(3, 5, 60, TASKS[1]), remote.read(3, 5, 60, TASKS[1])
    np.testing.assert_array_equal(ours.observation, theirs.observation)
    assert "/bucket/walker/store.json" in asked


@pytest.mark.parametrize("lost", ["store.json", "offsets/zarr.json", "offsets/c/0", "transition/c/0/0"])
@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_what_does_not_come_is_one_line(tmp_path, web, episodes, lost, how):
    file = build(tmp_path / "walker", episodes) / lost
    file.write_bytes(b"{ not what it was")
    if how == "lost":
        file.unlink()
    with pytest.raises(UserError, match="http://.*/walker (cannot be read|is not an episode store)") as caught:
        open_store(f"{web[0]}/walker").read(1, 0, 3, TASKS[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url, message",
    [
        ("http://127.0.0.1:1/walker", "cannot be read: .*check the address and the network"),
        ("ftp://host/walker", "unsupported URL scheme"),
        ("gs://b/walker", "Invalid GCS bucket name"),
    ],
)
def test_addresses_that_lead_nowhere(monkeypatch, url, message):
    monkeypatch.setattr(zarr, "_RETRIES", {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"})
    with pytest.raises(UserError, match=message) as caught:
        open_store(url)
    assert "\n" not in str(caught.value)
