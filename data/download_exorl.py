"""ExoRL's published episodes of one domain and one collector -> a folder, or a zip that is read as it is.

    ringrl data download_exorl walker rnd                    # -> datasets/walker/rnd/buffer/*.npz
    ringrl data download_exorl walker rnd --keep-zip         # -> datasets/walker/rnd.zip

A broken transfer continues where it broke, also when the step is run again. The publisher gives no checksums: every
member's CRC is checked, and the SHA-256 of the zip is written down, so that running the step again verifies it.
"""

import difflib
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NotRequired

import tyro
from pydantic import Field, with_config
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from typing_extensions import TypedDict

from ringrl.download.http import fetch
from ringrl.download.partial_file import forget
from ringrl.errors import UserError
from ringrl.files import alone_in, atomic_folder, write_text
from ringrl.formats.archive import DamagedArchive, read_all
from ringrl.formats.description import DOWNLOAD
from ringrl.progress import progress_bar
from ringrl.readers import RECORD, WHOLE, Text, read_json

DOMAINS = ("cartpole", "cheetah", "jaco", "point_mass_maze", "quadruped", "walker")
COLLECTORS = ("aps", "diayn", "disagreement", "icm", "icm_apt", "proto", "random", "rnd", "smm")
BASE = "https://dl.fbaipublicfiles.com/exorl"

Record = dict[str, Any]


@with_config(RECORD)
class DownloadRecord(TypedDict):
    """download.json; `files`: of a folder, size and CRC-32 by name."""

    domain: Text
    collector: Text
    size: Annotated[int, Field(ge=1, lt=WHOLE)]
    sha256: str
    files: NotRequired[dict[Text, str]]


Show = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Args:
    """Download ExoRL's episodes of one domain and one collector, or verify those downloaded before."""

    domain: Annotated[str, tyro.conf.Positional]
    """cartpole, cheetah, jaco, point_mass_maze, quadruped or walker."""
    collector: Annotated[str, tyro.conf.Positional]
    """aps, diayn, disagreement, icm, icm_apt, proto, random, rnd or smm."""
    out: Path | None = None
    """The folder to make; default datasets/DOMAIN/COLLECTOR. With --keep-zip the zip is OUT.zip."""
    keep_zip: bool = False
    """Keep the zip instead of unpacking it; every step reads it as it is."""
    url: str = BASE
    """A mirror: the file is at URL/DOMAIN/COLLECTOR.zip."""
    retries: int = 8
    """Failures in a row, without any new byte, after which to give up. The pause grows from one second to a minute."""


def main(args: Args) -> None:
    """Download, check and unpack.

    Raises:
        UserError: in one line, for an unknown name, a server that fails or contradicts itself, an archive that is
            damaged or malicious, a full disk, or an earlier download that has changed. What a broken transfer received
            is kept.
    """
    domain, collector = _known("domain", args.domain, DOMAINS), _known("collector", args.collector, COLLECTORS)
    out = args.out or Path("datasets") / domain / collector
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out.parent}: cannot be made ({error.strerror}); choose another place with --out") from error
    about = {"domain": domain, "collector": collector}
    kept = out.with_name(f"{out.name}.zip")
    with alone_in(out.parent, f".{out.name}.download.lock", of=out):
        if out.exists() and not args.keep_zip:
            _verify_folder(out, about)
        elif kept.exists():
            record = _verify_zip(kept, about)
            if not args.keep_zip:
                _unpack(kept, out, record)
        else:
            _download(args, out, kept, about)


def _download(args: Args, out: Path, kept: Path, about: Record) -> None:
    url = f"{args.url.rstrip('/')}/{about['domain']}/{about['collector']}.zip"
    partial = kept.with_name(f"{kept.name}.partial")
    with _progress(f"downloading {about['domain']}/{about['collector']}") as show:
        copies = 1 if args.keep_zip else 2
        remote = fetch(url, partial, copies=copies, retries=args.retries, on_progress=show, on_pause=_print_above)
    record = about | {
        "url": url,
        "size": remote.size,
        "sha256": _sha256(partial),
        "etag": remote.etag,
        "last_modified": remote.modified,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        if args.keep_zip:
            _keep(partial, kept, record)
        else:
            _unpack(partial, out, record)
    except DamagedArchive as error:
        forget(partial)
        raise UserError(f"{error}; what came from {url} was removed, run again to fetch it anew") from error
    forget(partial)


def _keep(partial: Path, kept: Path, record: Record) -> None:
    with _progress(f"checking {kept}") as show:
        files = read_all(partial, show=show)
    _write_record(_record_of(kept), record)
    partial.replace(kept)
    print(f"{kept}: {len(files)} episodes, {record['size']} bytes, sha256 {record['sha256']}")


def _unpack(archive: Path, out: Path, record: Record) -> None:
    with atomic_folder(out, marker=DOWNLOAD) as folder, _progress(f"unpacking into {out}") as show:
        (folder / "buffer").mkdir()
        files = read_all(archive, folder / "buffer", show)
        _write_record(
            folder / DOWNLOAD, record | {"files": {name: f"{size} {crc:08x}" for name, (size, crc) in files.items()}}
        )
    print(f"{out}: {len(files)} episodes; the zip had {record['size']} bytes, sha256 {record['sha256']}")


def _verify_zip(kept: Path, about: Record) -> Record:
    """The record of a zip that is here already; one that somebody else put here is checked and gets one."""
    record = _read_record(_record_of(kept), about)
    size, sha256 = kept.stat().st_size, _sha256(kept)
    if record is None:
        with _progress(f"checking {kept}") as show:
            read_all(kept, show=show)
        record = about | {"url": None, "size": size, "sha256": sha256}
        _write_record(_record_of(kept), record)
    elif (size, sha256) != (record.get("size"), record.get("sha256")):
        raise UserError(f"{kept} is not what was downloaded (sha256 {sha256}); remove it to download it again")
    print(f"{kept}: verified, {size} bytes, sha256 {sha256}")
    return record


def _verify_folder(out: Path, about: Record) -> None:
    record = _read_record(out / DOWNLOAD, about)
    if record is None:
        raise UserError(f"{out} exists already and has no {DOWNLOAD}; choose another place with --out")
    files, bad = record.get("files", {}), []
    with _progress(f"verifying {out}") as show:
        for index, (name, expected) in enumerate(files.items(), start=1):
            path = out / "buffer" / name
            content = path.read_bytes() if path.is_file() else b""
            if f"{len(content)} {zlib.crc32(content):08x}" != expected:
                bad.append(name)
            show(index * record["size"] // len(files), record["size"])
    there = {path.name for path in (out / "buffer").glob("*.npz") if not path.name.startswith(".")}
    added = sorted(there - files.keys())
    if added:
        raise UserError(
            f"{out}: {len(added)} files in buffer/ were not downloaded, the first is {added[0]}; move them elsewhere"
        )
    if bad:
        raise UserError(
            f"{out}: {len(bad)} of {len(files)} files are missing or have changed, the first is {bad[0]}; "
            "remove the folder to download it again"
        )
    print(f"{out}: verified, {len(files)} episodes")


def _record_of(kept: Path) -> Path:
    return kept.with_name(f"{kept.stem}.{DOWNLOAD}")


def _read_record(path: Path, about: Record) -> Record | None:
    if not path.exists():
        return None
    record = dict(read_json(path, DownloadRecord, "remove the download that it describes"))
    found = {name: record.get(name) for name in about}
    if found != about:
        raise UserError(f"{path} is of {found['domain']}/{found['collector']}; choose another place with --out")
    return record


def _write_record(path: Path, record: Record) -> None:
    write_text(path, json.dumps(record, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _known(kind: str, name: str, known: tuple[str, ...]) -> str:
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=2)
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(f"ExoRL has no {kind} {name!r}; {guess}there are: {', '.join(known)}")


def _print_above(message: str) -> None:
    print(message, file=sys.stderr)  # above the progress line, if there is one


@contextmanager
def _progress(label: str) -> Iterator[Show]:
    """A line with the amount, the rate and the time left; it yields a function of (bytes so far, bytes in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with progress_bar(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


if __name__ == "__main__":
    main(tyro.cli(Args))
