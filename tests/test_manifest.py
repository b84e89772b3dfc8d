"""SHA256SUMS: what has changed, is missing or was cut off is named; files are replaced together or not at all."""

import os
import subprocess
from pathlib import Path

import pytest

from ringrl.errors import UserError
from ringrl.manifest import (
    MANIFEST,
    check,
    finish,
    replace_together,
    require,
    require_replaceable,
    seal,
    verified_bytes,
)

FILES = {"a.json": b"{}", "deep/b": b"bb", "deep/er/c": b""}


@pytest.fixture
def folder(tmp_path):
    for name, body in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(body)
    seal(tmp_path)
    return tmp_path


def test_coreutils_read_it(folder):
    lines = (folder / MANIFEST).read_text().splitlines()
    assert lines[0] == "# ringrl: 3 files, 4 bytes"
    assert [line[64:] for line in lines[1:]] == ["  a.json", "  deep/b", "  deep/er/c"]
    assert lines[1].startswith("44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")  # of {}
    done = subprocess.run(["sha256sum", "-c", MANIFEST], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a.json: OK\ndeep/b: OK\ndeep/er/c: OK\n")


def test_every_flipped_bit_is_noticed(folder):
    assert check(folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        body = path.read_bytes()
        for index in range(len(body)):
            path.write_bytes(body[:index] + bytes([body[index] ^ 4]) + body[index + 1 :])
            if path.name == MANIFEST and index < len("# ringrl: 3 files, 4 bytes"):
                continue  # says only how much is missing
            with pytest.raises(UserError, match=r"has changed since it was written|files are missing|line \d: damaged"):
                check(folder)
        path.write_bytes(body)
    assert check(folder)


def test_a_copy_that_was_cut_off_is_called_that(folder):
    (folder / "deep/b").write_bytes(b"b")
    with pytest.raises(
        UserError, match=f"^{folder}/deep/b: has changed .*, and the folder has 3 of 4 bytes: a copy that"
    ):
        check(folder)
    (folder / "deep/b").unlink()
    with pytest.raises(UserError, match="1 of 3 files are missing, the first is deep/b: a copy that was cut off"):
        check(folder)
    assert check(folder, lambda name: name.endswith(".json"))


def test_a_folder_without_one_is_read_unchecked_unless_one_was_promised(folder, caplog):
    (folder / MANIFEST).unlink()
    (folder / "a.json").write_bytes(b"[]")
    assert not check(folder) and verified_bytes(folder / "a.json") == b"[]"
    for _ in range(2):
        require(folder, promised=False)
    assert caplog.text.count("cannot be verified") == 1
    with pytest.raises(UserError, match="its SHA256SUMS is missing: a copy that was cut off"):
        require(folder, promised=True)


@pytest.mark.parametrize("content, said", [(b"", ": is empty"), (b"\0" * 200, " line 1: damaged")])
def test_an_empty_one_is_damaged(folder, content, said):
    (folder / MANIFEST).write_bytes(content)
    for read in (lambda: check(folder), lambda: verified_bytes(folder / "a.json")):
        with pytest.raises(UserError, match=f"SHA256SUMS{said}"):
            read()


def test_files_whose_lines_are_gone_are_counted_in_the_log(folder, caplog):
    lines = (folder / MANIFEST).read_text().splitlines(keepends=True)
    (folder / MANIFEST).write_text("".join(lines[:2]))
    assert check(folder) and check(folder)
    (record,) = caplog.records
    assert record.getMessage().endswith("its SHA256SUMS names 1 of 3 files; the others are not verified")


def test_what_cannot_or_may_not_be_replaced_is_said_before_the_work(folder):
    require_replaceable(folder / "new", ["a.json"], own=False)
    require_replaceable(folder, ["a.json"], own=False)
    (folder / "mine").touch()
    require_replaceable(folder, ["mine"])
    with pytest.raises(UserError, match="mine: was not made by this step"):
        require_replaceable(folder, ["a.json", "mine"], own=False)
    with pytest.raises(UserError, match="deep: is a folder"):
        require_replaceable(folder, ["deep"])
    (folder / MANIFEST).write_bytes(b"junk\n")
    with pytest.raises(UserError, match="SHA256SUMS line 1: damaged"):
        require_replaceable(folder, ["a.json"])


def test_one_file_is_checked_as_it_is_read(folder):
    assert verified_bytes(folder / "a.json") == b"{}"
    (folder / "a.json").write_bytes(b"[]")
    with pytest.raises(UserError, match=f"^{folder}/a.json: has changed .* delete its line in {folder}/{MANIFEST}$"):
        verified_bytes(folder / "a.json")
    (folder / "more").write_bytes(b"not listed")
    assert verified_bytes(folder / "more") == b"not listed"
    (folder / "a.json").unlink()
    with pytest.raises(FileNotFoundError):
        verified_bytes(folder / "a.json")


class Killed(BaseException):
    """Instead of a signal."""


def content(folder: Path) -> dict[str, bytes]:
    return {name: verified_bytes(folder / name) for name in ("x", "y")}


def test_files_are_replaced_together_or_not_at_all(tmp_path, monkeypatch):
    """Killed before the n-th rename, for every n: a reader sees two old files or two new ones, and so does it later."""
    old, new = {"x": b"1", "y": b"2"}, {"x": b"3", "y": b"4"}
    replace, seen = os.replace, []
    for kill_before in range(6):
        folder = tmp_path / str(kill_before)
        replace_together(folder, old)
        count = 0

        def killing(source, target, kill_before=kill_before):
            nonlocal count
            if count == kill_before:
                raise Killed
            count += 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killing)
            try:
                replace_together(folder, new)
            except Killed:
                pass
        seen.append(content(folder))
        finish(folder)
        assert content(folder) == seen[-1]
        assert {name: (folder / name).read_bytes() for name in old} == seen[-1]
        assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "x", "y"]
    assert seen == [old] * 3 + [new] * 3


def test_the_other_files_of_a_folder_keep_their_lines(tmp_path):
    replace_together(tmp_path, {"x": b"1", "y": b"2"})
    replace_together(tmp_path, {"y": b"3", "z": b"4"})
    assert check(tmp_path) and [verified_bytes(tmp_path / name) for name in "xyz"] == [b"1", b"3", b"4"]
