"""Zip archives of episode files, as ExoRL publishes them, read as they are and trusted in nothing.

An archive holds `buffer/*.npz`, at its top or below any folders such as `walker/rnd/`, and often `video/`, which is
ignored. A folder of episodes that somebody zipped is such an archive too.
"""

import functools
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.filesize import decimal

from ringrl.errors import UserError

# An episode of quadruped, the widest domain, is 1001 rows of 824 bytes: no member of ExoRL's comes near this.
MEMBER_BYTES = 2**24
# Physics states hardly compress: walker/rnd.zip is 2.59 GB of 2.72 GB. Deflate itself reaches 1032 to 1.
RATIO = 20
_ALWAYS_ALLOWED = 2**26  # bytes that no machine minds, however well they were compressed
_CHUNK = 2**20
_SPECIAL = {stat.S_IFLNK: "a symbolic link", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
            stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}  # fmt: skip


class DamagedArchive(UserError):
    """The archive is not what its maker wrote, so that fetching it again may help."""


@dataclass(frozen=True)
class Member:
    """A file within a zip archive; what a `Path` is to a file in a folder. Small to pickle.

    Attributes:
        archive: the zip file.
        path: the file's whole name in it, such as `walker/rnd/buffer/episode_000000_1000.npz`.
    """

    archive: Path
    path: str

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return PurePosixPath(self.path).name

    def read_bytes(self) -> bytes:
        """The content, its CRC checked. The archive stays open in this process, so that many reads are cheap.

        Raises:
            UserError: if the archive is missing or no zip.
            FileNotFoundError: if it has no such file.
            zipfile.BadZipFile, zlib.error, EOFError, RuntimeError: if the file is damaged or encrypted.
        """
        opened = _open(self.archive)
        try:
            info = opened.getinfo(self.path)
        except KeyError:
            raise FileNotFoundError(str(self)) from None
        if info.file_size > MEMBER_BYTES:
            raise zipfile.BadZipFile(f"it unpacks to {info.file_size} bytes")
        return opened.read(info)

    def __str__(self) -> str:
        """For messages: the archive's path, then the name within."""
        return f"{self.archive}/{self.path}"


def is_archive(path: Path) -> bool:
    """Whether a path is to be read as an archive: a file whose name ends in .zip."""
    return path.suffix.lower() == ".zip" and not path.is_dir()


def names_npz(name: str) -> bool:
    """Whether a file's name says that it is an npz archive, or one that was copied, renamed or cut off."""
    return ".npz" in name.lower() and not name.startswith(".")  # macOS adds a hidden shadow of every file


def episode_members(archive: Path) -> list[Member]:
    """The episode files of an archive, and what is named like one (`names_npz`): those in `buffer/`, or if it has none,
    all; in no order.

    Raises:
        UserError: as `audit`; if there are none, or they lie in several folders.
    """
    files = [PurePosixPath(info.filename) for info in audit(archive) if not info.is_dir()]
    paths = [path for path in files if names_npz(path.name)]
    paths = [path for path in paths if path.parent.name == "buffer"] or paths
    folders = sorted({str(path.parent) for path in paths})
    if not folders:
        raise UserError(f"{archive}: no episode files; expected episode_INDEX_LENGTH.npz in buffer/")
    if len(folders) > 1:
        raise UserError(f"{archive}: episodes in several folders ({', '.join(folders[:3])}); unpack it and name one")
    return [Member(archive, str(path)) for path in paths]


def read_small(archive: Path, path: str) -> bytes | None:
    """A small file of an archive; None if it has no such file.

    Raises:
        UserError: as `audit`, or if the file is damaged.
    """
    if path not in {info.filename for info in audit(archive)}:
        return None
    try:
        return Member(archive, path).read_bytes()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise DamagedArchive(f"{archive}: {path} is damaged ({error})") from error


def audit(archive: Path) -> list[zipfile.ZipInfo]:
    """The members of an archive, having seen from its directory alone that it is harmless.

    Raises:
        DamagedArchive: if the directory cannot be read.
        UserError: if the archive is missing; if a member would leave the folder, is a link or device, is encrypted,
            compressed by other than deflate, or named like another; or if the whole unpacks beyond bounds.
    """
    members = _open(archive).infolist()
    seen: set[str] = set()
    for info in members:
        reason = _objection(info)
        folded = info.orig_filename.casefold()  # on some file systems two such names are one file
        if reason is None and folded in seen:
            reason = "is there twice"
        if reason is not None:
            raise UserError(f"{archive}: refused: {info.orig_filename!r} {reason}")
        seen.add(folded)
    size = archive.stat().st_size
    unpacked, packed = sum(info.file_size for info in members), sum(info.compress_size for info in members)
    if packed > size:
        raise UserError(f"{archive}: refused: its members overlap ({packed} bytes of members in {size} bytes)")
    if unpacked > max(_ALWAYS_ALLOWED, RATIO * size):
        raise UserError(f"{archive}: refused: {size} bytes unpack to {unpacked}, more than {RATIO} times as much")
    return members


def _objection(info: zipfile.ZipInfo) -> str | None:
    name = info.orig_filename
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in PurePosixPath(name).parts:
        return "leaves the folder"
    if "\\" in name or any(ord(character) < 32 for character in name) or not name.strip("/."):
        return "is no name for a file"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind in _SPECIAL:
        return f"is {_SPECIAL[kind]}"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type}, not deflate"
    if name.endswith(".npz") and info.file_size > MEMBER_BYTES:
        return f"unpacks to {info.file_size} bytes; an episode has at most {MEMBER_BYTES}"
    return None


def read_all(
    archive: Path, folder: Path | None = None, show: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, tuple[int, int]]:
    """Read every member once, which checks its CRC, and write the episode files into `folder`.

    Args:
        archive: the zip file.
        folder: an existing folder for the episode files, without the folders that they have in the archive; None
            only checks. Whoever calls makes it atomic.
        show: called with the unpacked bytes so far and in all.

    Returns:
        Size in bytes and CRC-32 of every episode file by its name.

    Raises:
        DamagedArchive: naming the first damaged member.
        UserError: as `episode_members`; or if the disk is too full.
    """
    members, episodes = audit(archive), {member.path: member for member in episode_members(archive)}
    total, done = sum(info.file_size for info in members), 0
    if folder is not None:
        require_space(folder, sum(info.file_size for info in members if info.filename in episodes))
    opened = _open(archive)
    for info in members:
        target = folder / episodes[info.filename].name if folder and info.filename in episodes else os.devnull
        try:
            with opened.open(info) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise DamagedArchive(f"{archive}: damaged: {info.filename}: {error}") from error
        except OSError as error:
            raise UserError(f"{archive}: cannot unpack {info.filename}: {error.strerror}") from error
        done += info.file_size
        show(done, total)
    return {episodes[i.filename].name: (i.file_size, i.CRC) for i in members if i.filename in episodes}


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        folder: an existing folder on the disk.
        needed: bytes.

    Raises:
        UserError: if the disk has less free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{folder}: {decimal(needed)} are needed, {decimal(free)} are free; make room")


def _open(archive: Path) -> zipfile.ZipFile:
    try:
        status = archive.stat()
    except FileNotFoundError:
        raise UserError(f"{archive}: no such archive") from None
    # A fork shares its parent's file position, so every process opens its own.
    return _opened(archive, os.getpid(), status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _opened(archive: Path, *_identity: int) -> zipfile.ZipFile:
    try:
        opened = zipfile.ZipFile(archive)
        # The end of a member that is a zip itself, as .npz files are, passes for the end of a truncated archive. Some
        # programs begin an archive with a mark of 4 bytes.
        if min((info.header_offset for info in opened.infolist()), default=0) > 4:
            raise zipfile.BadZipFile("the end is that of a file within")
        return opened
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise DamagedArchive(f"{archive}: damaged: it is truncated or not a zip archive ({error})") from error
    except OSError as error:
        raise UserError(f"{archive}: cannot be read: {error.strerror}") from error
