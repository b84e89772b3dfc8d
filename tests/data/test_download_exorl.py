import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tyro

from ringrl.download import http
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.formats import exorl
from ringrl.formats.description import describe_folder

ROOT = Path(__file__).parents[2]
STEP = ROOT / "data" / "download_exorl.py"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


step = load(STEP)
http_site = load(ROOT / "tests" / "download" / "http_site.py")
fault = http_site.fault


def archive(folder, extra=(), compression=zipfile.ZIP_STORED, count=4):
    """A zip as ExoRL publishes it."""
    rng = np.random.default_rng(0)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as file:
        for index in range(count):
            one = np.ones((40, 1), np.float32)
            wide = rng.normal(size=(41, 24)).astype(np.float32)
            episode = Episode(wide, 0.1 * wide[1:, :6], one, one[:, 0], rng.normal(size=(41, 18)))
            path = exorl.write_episode(folder, index, episode)
            file.write(path, f"buffer/{path.name}")
            path.unlink()
        file.writestr("video/0.mp4", rng.bytes(100_000))
        for name, content in extra:
            file.writestr(name, content)
    return made.getvalue()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(http.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def site(tmp_path):
    (tmp_path / "out").mkdir()
    with http_site.running(http_site.Site(archive(tmp_path / "made"))) as site:
        yield site


@pytest.fixture
def run(site, tmp_path):
    """Runs the step against the site: `run("walker", "rnd", "--keep-zip")`."""

    def run(*arguments):
        where = () if "--out" in arguments else ("--out", str(tmp_path / "out" / "rnd"))
        step.main(tyro.cli(step.Args, args=[*arguments, "--url", site.url, "--retries", "2", *where]))

    return run


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_the_episodes_come_unpacked_with_a_record(site, run, tmp_path, capsys):
    site.faults += [fault(cut=30_000), fault(cut=30_000)]
    run("walker", "rnd")
    assert left(tmp_path) == ["rnd"] and site.requests[0]["path"] == "/walker/rnd.zip"
    out = tmp_path / "out" / "rnd"
    assert sorted(path.name for path in out.iterdir()) == ["buffer", "download.json"]
    assert len(list(exorl.read_folder(out))) == 4
    record = json.loads((out / "download.json").read_text())
    assert record["size"] == len(site.content) and record["url"] == f"{site.url}/walker/rnd.zip"
    assert record["etag"] == '"1"' and len(record["sha256"]) == 64 and record["sha256"] in capsys.readouterr().out
    found = describe_folder(out / "buffer")
    assert (found.domain, found.source.collector) == ("walker", "rnd")


def test_run_again_it_verifies_and_asks_no_server(site, run, tmp_path, capsys):
    run("walker", "rnd")
    run("walker", "rnd")
    assert len(site.requests) == 1 and "rnd: verified, 4 episodes" in capsys.readouterr().out
    path = tmp_path / "out" / "rnd" / "buffer" / "episode_000002_40.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="1 of 4 files are missing or have changed, the first is episode_000002_40.npz"):
        run("walker", "rnd")
    added = path.with_name("episode_000009_40.npz")
    added.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="1 files in buffer/ were not downloaded, the first is episode_000009_40.npz"):
        run("walker", "rnd")
    with pytest.raises(UserError, match="is of walker/rnd; choose another place with --out"):
        run("walker", "proto")


def test_the_zip_can_be_kept_verified_and_unpacked_later(site, run, tmp_path, capsys):
    run("walker", "rnd", "--keep-zip")
    assert left(tmp_path) == ["rnd.download.json", "rnd.zip"]
    kept = tmp_path / "out" / "rnd.zip"
    assert kept.read_bytes() == site.content and len(list(exorl.read_folder(kept))) == 4
    assert describe_folder(kept).domain == "walker"
    run("walker", "rnd", "--keep-zip")
    assert f"{kept}: verified" in capsys.readouterr().out
    run("walker", "rnd")
    assert left(tmp_path) == ["rnd", "rnd.download.json", "rnd.zip"] and len(site.requests) == 1
    kept.write_bytes(kept.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"rnd\.zip is not what was downloaded \(sha256 .*remove it to download"):
        run("walker", "rnd", "--keep-zip")


def test_a_zip_that_somebody_put_there_is_checked_and_recorded(site, run, tmp_path):
    (tmp_path / "out" / "rnd.zip").write_bytes(site.content)
    run("walker", "rnd", "--keep-zip")
    assert not site.requests
    record = json.loads((tmp_path / "out" / "rnd.download.json").read_text())
    assert record["url"] is None and record["domain"] == "walker"


def test_a_truncated_zip_is_not_kept(site, run, tmp_path):
    site.content = site.content[:-5000]
    for options in ((), ("--keep-zip",)):
        with pytest.raises(UserError, match=r"damaged: it is truncated.* was removed, run again") as caught:
            run("walker", "rnd", *options)
        assert left(tmp_path) == [] and "\n" not in str(caught.value)


def test_a_length_announced_too_short_leaves_a_truncated_zip_which_is_not_kept(site, run, tmp_path):
    site.faults += [fault(announce=len(site.content) - 5000)]
    with pytest.raises(UserError, match="truncated"):
        run("walker", "rnd")
    assert left(tmp_path) == []
    run("walker", "rnd")


def test_a_flipped_bit_is_found_by_its_crc(site, run, tmp_path):
    at = site.content.index(b"video/0.mp4") + 5000
    site.content = site.content[:at] + bytes([site.content[at] ^ 4]) + site.content[at + 1 :]
    with pytest.raises(UserError, match="damaged: video/0.mp4: Bad CRC-32"):
        run("walker", "rnd")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "name, content, message",
    [("../../evil", b"x", "'../../evil' leaves the folder"), ("video/1.mp4", bytes(2**27), "more than 20 times")],
)
def test_an_evil_zip_is_refused_and_nothing_of_it_unpacked(site, run, tmp_path, name, content, message):
    site.content = archive(tmp_path / "made", [(name, content)], zipfile.ZIP_DEFLATED)
    for options in ((), ("--keep-zip",)):
        with pytest.raises(UserError, match=message):
            run("walker", "rnd", *options)
        # It stays as it came, under a name that nothing reads: our bounds may be wrong, and it took hours.
        assert left(tmp_path) == ["rnd.zip.partial", "rnd.zip.partial.json"]
    assert not (tmp_path.parent / "evil").exists() and len(site.requests) == 1


def test_a_wrong_address_leaves_nothing(site, run, tmp_path):
    site.faults += [http_site.status(404)]
    with pytest.raises(UserError, match="walker/rnd.zip: the server answers 404"):
        run("walker", "rnd")
    assert left(tmp_path) == []


def test_names_are_checked_with_a_guess(run):
    with pytest.raises(UserError, match="no domain 'waker'; did you mean walker"):
        run("waker", "rnd")
    with pytest.raises(UserError, match="no collector 'ppo'; .*there are: aps, diayn"):
        run("walker", "ppo")


def test_a_folder_that_is_not_ours_is_left_alone(site, run, tmp_path):
    (tmp_path / "out" / "rnd").mkdir()
    with pytest.raises(UserError, match="exists already and has no download.json"):
        run("walker", "rnd")
    assert left(tmp_path) == ["rnd"] and not site.requests


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_download_goes_on_and_excludes_a_second_one(site, run, tmp_path, how):
    site.content = archive(tmp_path / "made", [("video/1.mp4", np.random.default_rng(1).bytes(2**22))])
    begun, go_on = http_site.threading.Event(), http_site.threading.Event()
    partial = tmp_path / "out" / "rnd.zip.partial"

    def pace():
        if partial.exists() and partial.stat().st_size:
            begun.set()
            go_on.wait(20)
        go_on.wait(0.02)  # slowly, so that not all is on its way before the first byte has arrived

    site.faults.append(fault(pace=pace))
    # A shell starts what runs in its background with interrupts ignored, and children would ignore them too.
    start = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[:1] = []"
    command = [sys.executable, "-c", f"{start}; runpy.run_path(sys.argv[0], run_name='__main__')", str(STEP)]
    command += ["walker", "rnd", "--url", site.url, "--out", str(tmp_path / "out" / "rnd")]
    first = subprocess.Popen(command, env=os.environ | {"no_proxy": "*"}, stderr=subprocess.DEVNULL)
    try:
        assert begun.wait(30)
        with pytest.raises(UserError, match=f"rnd: in use by process {first.pid} on "):
            run("walker", "rnd")
    finally:
        first.send_signal(how)
        first.wait(30)
        go_on.set()
    assert "rnd" not in left(tmp_path)
    have = partial.stat().st_size
    run("walker", "rnd")
    assert site.requests[-1]["Range"] == f"bytes={have}-" and 0 < have < len(site.content)
    assert left(tmp_path) == ["rnd"] and len(exorl.list_episodes(tmp_path / "out" / "rnd")) == 4
