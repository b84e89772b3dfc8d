"""`store.json`: what an episode store says of itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
import tensorstore as ts
from jaxtyping import Int32, Int64
from pydantic import Field, with_config
from typing_extensions import TypedDict

from ringrl.episode import Dims
from ringrl.errors import UserError
from ringrl.manifest import MANIFEST, DamagedError, find_cut
from ringrl.readers import RECORD, Count, Text, parse_json
from ringrl.store.zarr import is_url, read_bytes

FORMAT = "ringrl episode store"
FORMAT_VERSION = 3
METADATA = "store.json"
_AGAIN = "build it again"


@dataclass(frozen=True)
class DataSource:
    """A folder that episodes came from: one learner's history, in its order.

    Attributes:
        name: for people, such as `walker/rnd`.
        path: the folder's own name, without the machine's path.
        collector: what gathered the data, such as `rnd`; None if unknown.
        task: the task that the collector was rewarded for; None if unknown or none.
        collected: all that the collector noted down (`collect.json`).
        relabelled: the mode in which the files' rewards were computed; None if they are those that were paid live.
        episodes: their number; filled in by `build`.
        first: index in the store of the source's first episode; filled in by `build`; None without episodes.
        last: index of its last.
    """

    name: str
    path: str
    collector: str | None = None
    task: str | None = None
    collected: dict[str, Any] = field(default_factory=dict)
    relabelled: str | None = None
    episodes: int = 0
    first: int | None = None
    last: int | None = None


@with_config(RECORD)
class _Widths(TypedDict):
    observation: Count
    action: Count
    reward: Count
    physics: Count


@with_config(RECORD)
class StoreRecord(TypedDict):
    """store.json."""

    manifest: NotRequired[str]
    domain: str
    tasks: list[Text]
    families: NotRequired[dict[Text, Count]]
    demonstrator: NotRequired[bool]
    content: NotRequired[dict[Text, Text]]
    episodes: Annotated[int, Field(ge=1, lt=2**40)]
    steps: Annotated[int, Field(ge=1, lt=2**48)]
    dims: _Widths
    sources: list[DataSource]
    provenance: dict[str, Any]


def write_metadata(
    folder: Path,
    *,
    domain: str,
    tasks: Sequence[str],
    families: Mapping[str, int],
    demonstrator: bool,
    content: Mapping[str, str],
    lengths: Int64[np.ndarray, " episodes"],
    source: Int32[np.ndarray, " episodes"],
    dims: Dims,
    sources: Sequence[DataSource],
    provenance: dict[str, Any],
) -> None:
    """Write store.json; to `provenance` it adds the time and the libraries' versions."""
    metadata = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "manifest": MANIFEST,
        "domain": domain,
        "tasks": list(tasks),
        "families": dict(families),
        **({"demonstrator": True} if demonstrator else {}),
        "content": dict(content),
        "episodes": len(lengths),
        "steps": int(lengths.sum()),
        "dims": dims._asdict(),
        "sources": [asdict(_count(each, index, source)) for index, each in enumerate(sources)],
        "provenance": _provenance() | provenance,
    }
    (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def _count(source: DataSource, index: int, of_episodes: Int32[np.ndarray, " episodes"]) -> DataSource:
    mine = np.flatnonzero(of_episodes == index)
    if not len(mine):
        return source
    return replace(source, episodes=len(mine), first=int(mine[0]), last=int(mine[-1]))


def _provenance() -> dict[str, str]:
    libraries = ("ringrl", "mujoco", "dm-control", "numpy", "tensorstore")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"created": created} | {name.replace("-", "_"): version(name) for name in libraries}


def read_metadata(path: Path | str, context: ts.Context, version: int = FORMAT_VERSION) -> StoreRecord:
    """What store.json says, of one version of the format.

    Raises:
        UserError: there is none, or one of another kind or version, or it cannot be read.
    """
    where = f"{path} is damaged: {METADATA}"
    try:
        content = read_bytes(path, METADATA, context)
    except ValueError as error:
        raise unreadable(path, f"{METADATA}: {error}") from error
    if content is None:
        lost = not is_url(path) and not Path(path).exists()
        what = "does not exist" if lost else f"is not an episode store (no {METADATA})"
        raise UserError(f"{path} {what}; build one with `ringrl data build_store`")
    about = parse_json(content, object, where, _AGAIN)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path} is not an episode store: its {METADATA} is of another kind")
    if about.get("version") != version:
        found = about.get("version")
        if found == FORMAT_VERSION:
            raise UserError(f"{path} has store format {found}, the present one: it needs no conversion")
        convert = f"`ringrl data convert_store {path} --out NEW`"
        resume = "a run on it goes on with `ringrl train --resume RUN data.store=NEW`"
        todo = f"convert it: {convert}; {resume}" if found == 2 else "build it again"
        raise UserError(f"{path} has store format {found!r}, this ringrl reads {version}; {todo}")
    return parse_json(content, StoreRecord, where, _AGAIN)


def dims_of(record: StoreRecord) -> Dims:
    """The widths of a store's arrays."""
    widths = record["dims"]
    return Dims(widths["observation"], widths["action"], widths["reward"], widths["physics"])


def unreadable(path: Path | str, reason: object) -> UserError:
    """The error of a store that cannot be read, in one line."""
    why = " ".join(str(reason).partition(" [http_response_body=")[0].split())  # a server's page is no reason
    if is_url(path) and "was ignored by server" in why:  # as Python's http.server does
        return UserError(f"{path} cannot be read: {why}; take a server that answers requests for ranges of bytes")
    if is_url(path):
        return UserError(f"{path} cannot be read: {why}; check the address and the network, else build it again")
    try:
        cut = find_cut(Path(path))
    except (DamagedError, OSError):  # of the manifest, which is not what was to be read
        cut = None
    return UserError(f"{path} is damaged, build it again: {cut or why}")
