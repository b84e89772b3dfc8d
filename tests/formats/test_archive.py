"""Archives as ExoRL publishes them, as people zip folders, and as people attack with them."""

import json
import multiprocessing
import pickle
import stat
import struct
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.formats import archive, exorl
from ringrl.formats.description import describe_folder
from tests.builders import make_episode


def pack(path, count=3, inside="buffer", extra=(), compression=zipfile.ZIP_STORED):
    """A zip of `count` episodes and of `extra` (name or ZipInfo, content)."""
    folder = path.with_suffix("")
    folder.mkdir()
    files = [exorl.write_episode(folder, index, make_episode(seed=index)) for index in range(count)]
    with zipfile.ZipFile(path, "w", compression) as made:
        for file in reversed(files):
            made.write(file, f"{inside}/{file.name}" if inside else file.name)
        for name, content in extra:
            made.writestr(name, content)
    for file in files:
        file.unlink()
    folder.rmdir()
    return path


def named(name, mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    info.external_attr = mode << 16
    return info


def patch(path, old, new, count=-1):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, count))


@pytest.mark.parametrize("inside", ["buffer", "walker/rnd/buffer", ""])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_read_like_the_folder_it_was_made_of(tmp_path, inside, compression):
    extra = [("walker/rnd/video/0.mp4", b"x" * 99), ("__MACOSX/buffer/._episode_000000_6.npz", b"junk")]
    path = pack(tmp_path / "a.zip", inside=inside, extra=extra if inside else (), compression=compression)
    reading = exorl.read_folder(path)
    assert len(reading) == 3 and reading.dims == (3, 2, 1, 4)
    for index, (file, episode) in enumerate(reading):
        assert file.name == f"episode_{index:06d}_6.npz"
        assert str(file) == str(path / inside / file.name)
        np.testing.assert_array_equal(episode.physics, make_episode(seed=index).physics)


def test_an_archives_files_travel_to_other_processes_as_their_names(tmp_path):
    files = exorl.list_episodes(pack(tmp_path / "a.zip", count=8))
    assert len(pickle.dumps(files[0])) < 300 + len(str(tmp_path))
    exorl.read_episode(files[0])  # open here, before the forks and after
    with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
        episodes = list(pool.map(exorl.read_episode, files * 4))
    for index, episode in enumerate(episodes):
        np.testing.assert_array_equal(episode.action, make_episode(seed=index % 8).action)


def test_an_archive_that_was_replaced_is_opened_anew(tmp_path):
    first = exorl.list_episodes(pack(tmp_path / "a.zip", count=1))
    exorl.read_episode(first[0])
    (tmp_path / "a.zip").unlink()
    assert len(exorl.list_episodes(pack(tmp_path / "a.zip", count=2))) == 2


def test_bad_files_in_an_archive_are_named_and_skipped(tmp_path):
    path = pack(tmp_path / "a.zip", extra=[("buffer/episode_000003_6.npz", b"PK")])
    with pytest.raises(UserError, match=r"a\.zip/buffer/episode_000003_6\.npz: bad episode file: it is truncated"):
        list(exorl.read_folder(path))
    before = path.read_bytes()
    for _ in range(2):
        reading = exorl.read_folder(path, skip_bad=True)
        assert len(list(reading)) == 3 and reading.skipped == 1
        (reason,) = (tmp_path / "a.zip.reasons.txt").read_text().splitlines()
        assert "episode_000003_6.npz" in reason
    assert path.read_bytes() == before


def test_a_damaged_member_is_found_by_its_crc(tmp_path):
    path = pack(tmp_path / "a.zip", compression=zipfile.ZIP_STORED)
    episode = exorl.list_episodes(path)[1].read_bytes()
    patch(path, episode, episode[:100] + bytes([episode[100] ^ 1]) + episode[101:])
    with pytest.raises(UserError, match="episode_000001_6.npz.*CRC"):
        list(exorl.read_folder(path))
    with pytest.raises(archive.DamagedArchive, match=r"damaged: buffer/episode_000001_6\.npz: Bad CRC"):
        archive.read_all(path)


def test_reading_all_unpacks_the_episodes_alone(tmp_path):
    path = pack(tmp_path / "a.zip", inside="x/buffer", extra=[("x/video/0.mp4", b"v" * 50), ("x/empty/", b"")])
    shown = []
    (tmp_path / "out").mkdir()
    found = archive.read_all(path, tmp_path / "out", lambda done, total: shown.append((done, total)))
    assert sorted(found) == sorted(file.name for file in (tmp_path / "out").iterdir()) and len(found) == 3
    for name, (size, _) in found.items():
        assert (tmp_path / "out" / name).stat().st_size == size
    assert shown[-1][0] == shown[-1][1] > 50
    assert archive.read_all(path) == found


@pytest.mark.parametrize(
    "member, message",
    [
        (named("../buffer/episode_000009_6.npz"), "leaves the folder"),
        (named("buffer/../../x"), "leaves the folder"),
        (named("/etc/passwd"), "leaves the folder"),
        (named("C:/x"), "leaves the folder"),
        (named("..\\x"), "is no name for a file"),
        (named("buffer/episode\n.npz"), "is no name for a file"),
        (named("link", stat.S_IFLNK | 0o777), "is a symbolic link"),
        (named("null", stat.S_IFCHR | 0o666), "is a device"),
        (named("Buffer/EPISODE_000001_6.npz"), "is there twice"),
    ],
)
def test_evil_members_are_refused(tmp_path, member, message):
    path = pack(tmp_path / "a.zip", extra=[(member, b"x")])
    for use in (exorl.list_episodes, archive.read_all, describe_folder):
        with pytest.raises(UserError, match=message) as caught:
            use(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_encrypted_members_are_refused(tmp_path):
    path = pack(tmp_path / "a.zip")
    with zipfile.ZipFile(path) as opened:
        at = opened.start_dir
    content = bytearray(path.read_bytes())
    content[at + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is encrypted"):
        exorl.list_episodes(path)


def test_other_compressions_are_refused(tmp_path):
    with pytest.raises(UserError, match="compressed by method 14, not deflate"):
        exorl.list_episodes(pack(tmp_path / "a.zip", compression=zipfile.ZIP_LZMA))


def test_archives_that_blow_up_are_refused(tmp_path):
    bomb = bytes(archive.MEMBER_BYTES + 1)
    one = pack(tmp_path / "one.zip", extra=[("buffer/episode_000009_6.npz", bomb)], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="'buffer/episode_000009_6.npz' unpacks to 16777217 bytes"):
        exorl.list_episodes(one)
    many = [(f"video/{index}.mp4", bomb) for index in range(5)]
    with pytest.raises(UserError, match="bytes unpack to .* more than 20 times as much"):
        exorl.list_episodes(pack(tmp_path / "many.zip", extra=many, compression=zipfile.ZIP_DEFLATED))


def test_a_member_that_lies_about_its_size_is_damaged(tmp_path):
    path = pack(tmp_path / "a.zip", extra=[("buffer/episode_000009_6.npz", bytes(10**6))],
                compression=zipfile.ZIP_DEFLATED)  # fmt: skip
    patch(path, struct.pack("<I", 10**6), struct.pack("<I", 10))
    with pytest.raises(archive.DamagedArchive, match="episode_000009_6.npz: Bad CRC"):
        archive.read_all(path)


def test_an_episode_that_blows_up_is_a_bad_file(tmp_path):
    rows = 7
    huge = {"observation": np.zeros((rows, 10**7), np.float32)}
    small = {name: np.zeros((rows, 1), np.float32) for name in ("action", "reward", "discount")}
    path = tmp_path / "episode_000000_6.npz"
    np.savez_compressed(path, **huge, **small, physics=np.zeros((rows, 1)))
    with pytest.raises(UserError, match="its arrays unpack to more than 268435456 bytes"):
        exorl.read_episode(path)


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.99])
def test_a_truncated_archive_is_damaged(tmp_path, share):
    path = pack(tmp_path / "a.zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    for use in (exorl.list_episodes, archive.read_all):
        with pytest.raises(archive.DamagedArchive, match="truncated or not a zip"):
            use(path)


def test_overlapping_members_are_refused(tmp_path):
    path = pack(tmp_path / "a.zip", count=1, extra=[("x", np.random.default_rng(0).bytes(4000))])
    with zipfile.ZipFile(path, "a") as made:
        for index in range(9):  # each entry of the directory points at the same bytes
            info = pickle.loads(pickle.dumps(made.getinfo("x")))
            info.filename = info.orig_filename = f"y{index}"
            made.filelist.append(info)
            made.NameToInfo[info.filename] = info
        made._didModify = True
    with pytest.raises(UserError, match="its members overlap"):
        exorl.list_episodes(path)


def test_what_holds_no_episodes_or_several_folders_of_them_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such archive"):
        exorl.list_episodes(tmp_path / "a.zip")
    with pytest.raises(UserError, match="no episode files"):
        exorl.list_episodes(pack(tmp_path / "b.zip", count=0, extra=[("readme.txt", b"")]))
    second = [("proto/buffer/episode_000000_6.npz", b"")]
    with pytest.raises(UserError, match=r"several folders \(proto/buffer, rnd/buffer\)"):
        exorl.list_episodes(pack(tmp_path / "c.zip", inside="rnd/buffer", extra=second))
    with pytest.raises(UserError, match=r"d\.zip/walker\.npz: bad episode file: the name is neither"):
        exorl.list_episodes(pack(tmp_path / "d.zip", inside="", extra=[("walker.npz", b"")]))


def test_an_archive_is_described_by_its_folders_its_name_or_what_it_holds(tmp_path):
    inner = describe_folder(pack(tmp_path / "a.zip", inside="walker/rnd/buffer"))
    assert (inner.domain, inner.source.collector, inner.source.name) == ("walker", "rnd", "walker/rnd")
    assert inner.source.path == "a.zip"
    (tmp_path / "jaco").mkdir()
    outer = describe_folder(pack(tmp_path / "jaco" / "proto.zip"))
    assert (outer.domain, outer.source.collector, outer.source.name) == ("jaco", "proto", "jaco/proto")
    about = {"domain": "cartpole", "task": "cartpole_swingup", "collector": "td3"}
    for place in ("seed4/collect.json", "seed4/buffer/collect.json"):
        path = pack(tmp_path / "b.zip", inside="seed4/buffer", extra=[(place, json.dumps(about))])
        found = describe_folder(path)
        assert (found.domain, found.tasks, found.source.name) == ("cartpole", ("cartpole_swingup",), "seed4")
        path.unlink()


def test_an_archive_without_a_telling_name_is_described_by_its_download(tmp_path):
    path = pack(tmp_path / "x.zip")
    with pytest.raises(UserError, match=r"x\.zip: cannot tell the domain"):
        describe_folder(path)
    Path(tmp_path / "x.download.json").write_text('{"domain": "walker", "collector": "smm"}')
    found = describe_folder(path)
    assert (found.domain, found.source.collector, found.source.name) == ("walker", "smm", "walker/smm")
