"""What a folder or archive of episodes is: its domain, the tasks of its reward columns, who collected it."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ringrl.envs import domains
from ringrl.errors import UserError
from ringrl.formats.archive import episode_members, is_archive, read_text
from ringrl.store.episode_store import DataSource

COLLECT = "collect.json"
RELABEL = "relabel.json"
DOWNLOAD = "download.json"


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
        domain: what the domain is, if nothing tells it.

    Raises:
        UserError: if there is no such folder, if nothing tells the domain, if what tells it contradicts `domain`, or
            if a JSON file is damaged; as `episode_members` for an archive.
    """
    given = folder = folder.resolve()
    archive = folder if is_archive(folder) else None
    if archive is None and not folder.is_dir():
        raise UserError(f"{given}: no such folder of episodes")
    if archive is not None:  # from here on as if it were unpacked where it lies
        folder = archive.with_suffix("") / PurePosixPath(episode_members(archive)[0].path).parent
    home = folder.parent if folder.name == "buffer" else folder
    relabelled = _read_json(archive, (folder / RELABEL, home / RELABEL))
    collected = _read_json(archive, (folder / COLLECT, home / COLLECT)) or relabelled.get("collect", {})
    record = archive.with_name(f"{archive.stem}.{DOWNLOAD}") if archive else home / DOWNLOAD
    downloaded = _read_json(None, (record,))
    name, collector = home.name, collected.get("collector")
    found = relabelled.get("domain") or collected.get("domain")
    if not found and home.parent.name in domains():
        found, collector, name = home.parent.name, home.name, f"{home.parent.name}/{home.name}"
    if not found and downloaded:
        found, collector = downloaded.get("domain"), downloaded.get("collector")
        name = f"{found}/{collector}"
    if not (found or domain):
        raise UserError(
            f"{given}: cannot tell the domain, having no {COLLECT} and no path DOMAIN/ALGORITHM/buffer; pass --domain"
        )
    if found and domain and found != domain:
        raise UserError(f"{given}: its domain is {found}, not {domain}")
    task = collected.get("task")
    recorded = relabelled.get("tasks") or collected.get("tasks") or ([task] if task else None)
    source = DataSource(name, given.name, collector, task, collected, relabelled.get("mode"))
    return Description(str(found or domain), tuple(recorded) if recorded else None, source)


def _read_json(archive: Path | None, candidates: tuple[Path, ...]) -> dict[str, Any]:
    """The object in the first of these files that there is, in the archive if one is given; else an empty one."""
    for path in candidates:
        text = _read_text(archive, path)
        if text is None:
            continue
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} is damaged: it holds no object")
        return content
    return {}


def _read_text(archive: Path | None, path: Path) -> str | None:
    if archive is None:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    top = archive.with_suffix("")
    return read_text(archive, path.relative_to(top).as_posix()) if path.is_relative_to(top) else None
