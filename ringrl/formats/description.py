"""What a folder or archive of episodes is: its domain, the tasks of its reward columns, who collected it."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import with_config
from typing_extensions import TypedDict

from ringrl.envs import domains
from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.formats.archive import episode_members, is_archive, read_small
from ringrl.readers import RECORD, Text, parse_json, read_bytes
from ringrl.store.episode_store import DataSource

COLLECT = "collect.json"
RELABEL = "relabel.json"
DOWNLOAD = "download.json"


@with_config(RECORD)
class FolderRecord(TypedDict, total=False):
    """collect.json, relabel.json or download.json, as far as they say what a folder is."""

    domain: Text | None
    collector: str | None
    task: str | None
    tasks: list[str] | None
    mode: str | None
    collect: "FolderRecord"


@dataclass(frozen=True)
class Description:
    """What is known about a folder of episodes.

    Attributes:
        domain: such as `walker`.
        tasks: of the recorded reward columns, in order; None if nothing tells them.
        source: who collected the episodes.
    """

    domain: str
    tasks: tuple[str, ...] | None
    source: DataSource


def describe_folder(folder: Path, domain: str | None = None) -> Description:
    """Describe a folder by its `collect.json` or `relabel.json`, else by ExoRL's path `DOMAIN/ALGORITHM[/buffer]`, else
    by `download.json`.

    Args:
        folder: of the episode files, or the one above it that contains `buffer/`; or a .zip of either, which may be
            named `DOMAIN/ALGORITHM.zip` or hold such folders, and whose download is described by `NAME.download.json`.
            Where links lead to it, the path as given says what it is, or if that says nothing, the one they lead to.
        domain: what the domain is, if nothing tells it.

    Raises:
        UserError: if there is no such folder, if nothing tells the domain, if what tells it contradicts `domain`, or
            if a JSON file is damaged; as `episode_members` for an archive.
    """
    given = user_path(folder).absolute()
    archive = given if is_archive(given) else None
    if archive is None and not given.is_dir():
        raise UserError(f"{given}: no such folder of episodes")
    if archive is None:
        folders = (given, given.resolve())
        records = tuple(_home(each) / DOWNLOAD for each in folders)
    else:  # as if it were unpacked where it lies
        within = PurePosixPath(episode_members(archive)[0].path).parent
        folders = tuple(each.with_suffix("") / within for each in (archive, archive.resolve()))
        records = tuple(each.with_name(f"{each.stem}.{DOWNLOAD}") for each in (archive, archive.resolve()))
    homes = [_home(each) for each in folders]
    beside = [*zip(folders, homes, strict=True)]
    relabelled = _read_record(archive, tuple(place / RELABEL for pair in beside for place in pair))
    collected = _read_record(archive, tuple(place / COLLECT for pair in beside for place in pair))
    collected = collected or relabelled.get("collect", {})
    downloaded = _read_record(None, records)
    name, collector = homes[0].name, collected.get("collector")
    found = relabelled.get("domain") or collected.get("domain")
    telling = next((home for home in homes if home.parent.name in domains()), None)
    if not found and telling is not None:
        found, collector, name = telling.parent.name, telling.name, f"{telling.parent.name}/{telling.name}"
    if not found and downloaded:
        found, collector = downloaded.get("domain"), downloaded.get("collector")
        name = f"{found}/{collector}"
    _check_domain(given, found, domain)
    task = collected.get("task")
    recorded = relabelled.get("tasks") or collected.get("tasks") or ([task] if task else None)
    source = DataSource(name, given.name, collector, task, dict(collected), relabelled.get("mode"))
    return Description(str(found or domain), tuple(recorded) if recorded else None, source)


def _home(folder: Path) -> Path:
    """ExoRL's ALGORITHM folder, of its files' folder or of itself."""
    return folder.parent if folder.name == "buffer" else folder


def _check_domain(given: Path, found: str | None, domain: str | None) -> None:
    if not (found or domain):
        raise UserError(
            f"{given}: cannot tell the domain, having no {COLLECT} and no path DOMAIN/ALGORITHM/buffer; pass --domain"
        )
    if found and domain and found != domain:
        raise UserError(f"{given}: its domain is {found}, not {domain}")


def _read_record(archive: Path | None, candidates: tuple[Path, ...]) -> FolderRecord:
    """The object in the first of these files that there is, in the archive if one is given; else an empty one."""
    for path in candidates:
        content = _read_content(archive, path)
        if content is not None:
            return parse_json(content, FolderRecord, f"{path} is damaged", "restore it, or delete it and pass --domain")
    return FolderRecord()


def _read_content(archive: Path | None, path: Path) -> bytes | None:
    if archive is None:
        return read_bytes(path, "restore it") if path.is_file() else None
    top = archive.with_suffix("")
    return read_small(archive, path.relative_to(top).as_posix()) if path.is_relative_to(top) else None
