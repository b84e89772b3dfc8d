"""LeRobot data sets, versions 2 and 3 (Hugging Face's format for recordings of robots): which episodes there are.

`meta/info.json` names the features of a step and their shapes. Of version 3, `meta/episodes/` has a row an episode, and
`data/` the steps of many episodes a file; of version 2, `meta/episodes.jsonl` has a line an episode, and `data/` a file
an episode. Steps are Parquet in both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict

from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.formats.parquet import parquet_files, read_columns
from ringrl.readers import RECORD, WHOLE, Count, Text, parse_json, read_bytes, read_json

_AGAIN = "fetch the data set again"
_FILES = {
    "v2.": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "v3.": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
_ROW = ("episode_index", "length", "data/chunk_index", "data/file_index")


@with_config(RECORD)
class LeRobotFeature(TypedDict):
    """What a step has under one name."""

    dtype: Text
    shape: list[Count]


@with_config(RECORD)
class LeRobotInfo(TypedDict):
    """`meta/info.json`, as far as it is used."""

    codebase_version: Text
    total_episodes: Count
    features: dict[Text, LeRobotFeature]
    data_path: NotRequired[Text]
    chunks_size: NotRequired[Annotated[int, Field(ge=1, lt=WHOLE)]]
    robot_type: NotRequired[str | None]


@with_config(RECORD)
class LeRobotLine(TypedDict):
    """A line of version 2's `meta/episodes.jsonl`."""

    episode_index: Count
    length: Count
    tasks: NotRequired[list[str]]


@dataclass(frozen=True)
class RecordedEpisode:
    """Where one episode is.

    Attributes:
        index: its number in the data set.
        length: steps.
        path: the file that has them, among others'.
        instructions: the tasks that it shows, in words.
    """

    index: int
    length: int
    path: Path
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class LeRobotData:
    """An open data set.

    Attributes:
        folder: where it is.
        info: its `meta/info.json`.
        episodes: in their order.
    """

    folder: Path
    info: LeRobotInfo
    episodes: tuple[RecordedEpisode, ...]

    @property
    def name(self) -> str:
        """The folder's own name, where links lead to it that of the link."""
        return self.folder.absolute().name or self.folder.resolve().name

    @property
    def instructions(self) -> tuple[str, ...]:
        """All that the episodes show, each once, in alphabetical order."""
        return tuple(sorted({text for each in self.episodes for text in each.instructions}))

    @property
    def unread(self) -> tuple[str, ...]:
        """Features that are pictures, which nothing here reads."""
        return tuple(name for name, each in self.info["features"].items() if each["dtype"] in ("image", "video"))


def open_lerobot(folder: Path | str, instructions: Sequence[str] = ()) -> LeRobotData:
    """The data set in a folder, with all episodes, or those alone that show one of these instructions.

    Raises:
        UserError: if there is none, it is of another version, an episode is missing, none is left, or a file is
            missing or damaged; if PyArrow is not installed.
    """
    folder = user_path(folder)
    if not (folder / "meta" / "info.json").is_file():
        raise UserError(f"{folder}: has no meta/info.json, as every LeRobot data set has; give the folder above meta/")
    info = read_json(folder / "meta" / "info.json", LeRobotInfo, _AGAIN)
    version = _version(folder, info)
    listed = _read_lines(folder, info) if version == "v2." else _read_rows(folder)
    episodes = sorted(listed, key=lambda each: each.index)
    if len(episodes) != info["total_episodes"] or [each.index for each in episodes] != [*range(len(episodes))]:
        last = info["total_episodes"] - 1
        raise UserError(
            f"{folder}: meta/episodes lists {len(episodes)} episodes, and not numbers 0 to {last} as meta/info.json "
            f"says; {_AGAIN}"
        )
    whole = LeRobotData(folder, info, tuple(episodes))
    if unknown := [text for text in instructions if text not in whole.instructions]:
        has = "; ".join(whole.instructions[:20]) or "none"
        raise UserError(f"{folder}: no episode shows {unknown[0]!r}; its instructions are: {has}")
    wanted = set(instructions)
    chosen = [each for each in episodes if not wanted or each.instructions and wanted.issuperset(each.instructions)]
    if not chosen:
        raise UserError(f"{folder}: no episode shows {'these instructions alone' if instructions else 'anything'}")
    return replace(whole, episodes=tuple(chosen))


def _version(folder: Path, info: LeRobotInfo) -> str:
    version = info["codebase_version"][:3]
    if version not in _FILES:
        found = info["codebase_version"][:20]
        raise UserError(f"{folder}: is of LeRobot's version {found}, and v2 and v3 are read; convert it with LeRobot")
    if info.get("data_path", _FILES[version]) != _FILES[version]:
        raise UserError(f"{folder}/meta/info.json: data_path is not {_FILES[version]}; rename the files so, and say so")
    return version


def _read_rows(folder: Path) -> Iterator[RecordedEpisode]:
    """The episodes that the files of version 3's `meta/episodes` list."""
    for path in parquet_files(folder / "meta" / "episodes"):
        rows = read_columns(path, _ROW, optional=("tasks",))
        if any(rows[name].ndim != 1 or rows[name].dtype.kind not in "iu" or (rows[name] < 0).any() for name in _ROW):
            raise UserError(f"{path}: {', '.join(_ROW)} must be whole numbers from 0 on; {_AGAIN}")
        shown = rows.get("tasks", [()] * len(rows["length"]))
        for index, length, chunk, file, texts in zip(*(rows[name].tolist() for name in _ROW), shown, strict=True):
            place = folder / _FILES["v3."].format(chunk_index=chunk, file_index=file)
            texts = (texts,) if isinstance(texts, str) else texts or ()
            yield RecordedEpisode(index, length, place, tuple(str(text) for text in texts))


def _read_lines(folder: Path, info: LeRobotInfo) -> Iterator[RecordedEpisode]:
    """The episodes that version 2's `meta/episodes.jsonl` lists."""
    path, size = folder / "meta" / "episodes.jsonl", info.get("chunks_size", 1000)
    for number, line in enumerate(read_bytes(path, _AGAIN).splitlines(), 1):
        if line.strip():
            record = parse_json(line, LeRobotLine, f"{path} line {number}", _AGAIN)
            index = record["episode_index"]
            place = folder / _FILES["v2."].format(episode_chunk=index // size, episode_index=index)
            yield RecordedEpisode(index, record["length"], place, tuple(record.get("tasks", ())))
