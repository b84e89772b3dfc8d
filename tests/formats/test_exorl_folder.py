"""Folders of ExoRL's episode files: their order, bad files among them, and quarantine."""

import re
import zipfile

import pytest

from ringrl.errors import UserError
from ringrl.formats import exorl
from tests.builders import make_episode


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match="no such episode file"):
        exorl.read_episode(tmp_path / "episode_000000_6.npz")
    with pytest.raises(UserError, match="no such folder"):
        exorl.list_episodes(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no episode files"):
        exorl.list_episodes(tmp_path)


def test_exorl_files_come_by_index_from_the_folder_or_the_one_above(tmp_path):
    for index in (1_000_000, 2, 10):
        exorl.write_episode(tmp_path / "proto" / "buffer", index, make_episode())
    (tmp_path / "proto" / "buffer" / ".episode_000003_6.npz.99").touch()
    names = ["episode_000002_6.npz", "episode_000010_6.npz", "episode_1000000_6.npz"]
    assert [path.name for path in exorl.list_episodes(tmp_path / "proto")] == names
    assert [path.name for path in exorl.list_episodes(tmp_path / "proto" / "buffer")] == names


def test_urlb_files_come_by_timestamp_then_index(tmp_path):
    names = ["20210101T000000_9_6.npz", "20210102T000000_2_6.npz", "20210102T000000_10_6.npz"]
    for name in reversed(names):
        exorl.write_episode(tmp_path, 0, make_episode()).rename(tmp_path / name)
    assert [path.name for path in exorl.list_episodes(tmp_path)] == names


FOREIGN = ("EPISODE_000003_6.NPZ", "episode_000001_6 (1).npz", "episode_000002_6.npz.part", "stats.npz")


def test_a_file_with_another_name_is_named(tmp_path):
    exorl.write_episode(tmp_path, 0, make_episode()).rename(tmp_path / "walker.npz")
    with pytest.raises(
        UserError, match=r"walker\.npz: bad episode file: the name is neither.*has no file of such a name"
    ):
        exorl.list_episodes(tmp_path)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_foreign_file_is_named_and_skipped_where_that_is_asked_for(tmp_path, name, zipped):
    buffer = tmp_path / "rnd" / "buffer"
    good = exorl.write_episode(buffer, 0, make_episode())
    (buffer / name).write_bytes(good.read_bytes())
    folder = tmp_path / "rnd"
    if zipped:
        folder = tmp_path / "rnd.zip"
        with zipfile.ZipFile(folder, "w") as archive:
            for path in buffer.iterdir():
                archive.write(path, f"buffer/{path.name}")
    with pytest.raises(
        UserError, match=rf"{re.escape(name)}: bad episode file.*; rename or remove it, or .*--skip-bad"
    ):
        exorl.read_folder(folder)
    reading = exorl.read_folder(folder, skip_bad=True, move=False)
    assert [path.name for path, _ in reading] == [good.name] and reading.skipped == 1 and name in reading.reasons[0]
    assert (buffer / name).exists() and not list(tmp_path.glob("*reasons*"))
    assert [path.name for path, _ in exorl.read_folder(folder, skip_bad=True)] == [good.name]
    reasons = tmp_path / "rnd.zip.reasons.txt" if zipped else buffer / "quarantine" / "reasons.txt"
    assert name in reasons.read_text() and (zipped or (buffer / "quarantine" / name).exists())
    assert zipped or len(exorl.list_episodes(folder)) == 1


def test_all_foreign_files_are_counted(tmp_path):
    good = exorl.write_episode(tmp_path, 0, make_episode())
    for name in FOREIGN:
        (tmp_path / name).write_bytes(good.read_bytes())
    with pytest.raises(UserError, match=r"EPISODE_000003_6.NPZ: .* \(and 3 more\)"):
        exorl.list_episodes(tmp_path)
    assert exorl.read_folder(tmp_path, skip_bad=True).skipped == 4


def test_a_folder_stops_at_the_first_bad_file(tmp_path):
    for index in range(3):
        exorl.write_episode(tmp_path, index, make_episode(seed=index))
    (tmp_path / "episode_000001_6.npz").write_bytes(b"PK")
    reading = exorl.read_folder(tmp_path)
    assert len(reading) == 3 and next(reading)[0].name == "episode_000000_6.npz"
    with pytest.raises(UserError, match="episode_000001_6.npz"):
        next(reading)


def test_skip_bad_moves_files_to_quarantine_with_reasons(tmp_path):
    exorl.write_episode(tmp_path, 0, make_episode(widths=(9, 2, 1, 4)))  # the odd one is the first
    for index in range(1, 4):
        exorl.write_episode(tmp_path, index, make_episode(seed=index))
    (tmp_path / "episode_000002_6.npz").write_bytes(b"")
    reading = exorl.read_folder(tmp_path, skip_bad=True)
    assert [path.name[8:14] for path, _ in reading] == ["000001", "000003"]
    assert reading.skipped == 2
    quarantine = tmp_path / "quarantine"
    assert {path.name for path in quarantine.glob("*.npz")} == {"episode_000000_6.npz", "episode_000002_6.npz"}
    reasons = (quarantine / "reasons.txt").read_text().splitlines()
    assert "observation 9" in reasons[0] and "truncated" in reasons[1]
    assert [path.name[8:14] for path, _ in exorl.read_folder(tmp_path)] == ["000001", "000003"]


def test_a_bad_file_that_another_process_has_moved_is_no_error(tmp_path):
    for index in range(2):
        exorl.write_episode(tmp_path, index, make_episode(seed=index))
    reading = exorl.read_folder(tmp_path, skip_bad=True)
    (tmp_path / reading.files[1].name).unlink()
    assert len(list(reading)) == 1 and reading.skipped == 1
    assert not (tmp_path / "quarantine" / "reasons.txt").exists()
