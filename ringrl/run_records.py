"""What the JSON files of a run directory contain, as `ringrl.readers` checks them; a file may say more."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NotRequired

from pydantic import AfterValidator, Field, with_config
from typing_extensions import TypedDict

from ringrl.agent_record import AgentRecord
from ringrl.files import user_path
from ringrl.readers import RECORD, Count, Text


def _check_widths(sizes: dict[str, int]) -> dict[str, int]:
    if sorted(sizes) not in (["action", "observation"], ["previous"], []) or 0 in sizes.values():
        raise ValueError("must have the widths of `observation` and `action`, from 1 on, or `previous`, or be empty")
    return sizes


@with_config(RECORD)
class StorePlaces(TypedDict):
    """Where a store, or a teacher's run, is: `record_paths`."""

    given: Text
    absolute: Text | None
    relative: Text | None


@with_config(RECORD)
class VersionedRecord(TypedDict):
    """As much as every run.json says, of any schema."""

    schema: Count


@with_config(RECORD)
class RunRecord(VersionedRecord):
    """run.json."""

    agent: AgentRecord
    store: StorePlaces
    tokens: NotRequired[Count]
    source: NotRequired[Text | None]
    teacher: NotRequired[StorePlaces]


@with_config(RECORD)
class SourceRecord(TypedDict):
    """One collector's share of a data set."""

    name: str
    collector: str | None
    episodes: Count


@with_config(RECORD)
class DatasetRecord(TypedDict):
    """dataset.json, as far as a report reads it."""

    task: str
    domain: str
    store: str
    relabel: str | None
    sources: list[SourceRecord]
    source: list[Count]
    returns: list[float]
    steps: Count
    notes: NotRequired[list[str]]


@with_config(RECORD)
class CollectedRecord(TypedDict):
    """What dataset.json says of the environment that the data are of."""

    action_repeat: list[Count]
    changed_settings: dict[str, dict[str, str]]


@with_config(RECORD)
class TrainedOnRecord(TypedDict):
    """dataset.json, as far as a rollout reads it."""

    sizes: Annotated[dict[str, Count], AfterValidator(_check_widths)]
    returns: list[float]
    lengths: NotRequired[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    collected: NotRequired[CollectedRecord]


@with_config(RECORD)
class EvaluationRecord(TypedDict, total=False):
    """evaluation.json, and the JSON beside any other table: the settings, and facts of the rollout."""

    task: str
    agent: str
    trials: Count
    envs: Count
    context: Count | None
    seed: Count
    checkpoint_step: Count
    seconds: float
    notes: list[str]


@with_config(RECORD)
class FilmRecord(TypedDict):
    """film.json: the file beside it, its hash and that of the table it is of, what it shows and what that earned."""

    film: Text
    sha256: Text
    of: Text
    trials: list[Count]
    env: Count
    run: Text
    returns: NotRequired[list[float]]


@with_config(RECORD)
class MetricsRecord(TypedDict, total=False):
    """A line of metrics.jsonl: numbers by name, of which `step` is whole."""

    step: Count


def record_paths(given: str, folder: Path) -> dict[str, str | None]:
    """A path as given, absolute, and relative to the folder that keeps it; of a URL only as given."""
    if "://" in given:
        return {"given": given, "absolute": None, "relative": None}
    absolute = user_path(given).resolve()
    return {"given": given, "absolute": str(absolute), "relative": os.path.relpath(absolute, folder.resolve())}


def find_recorded(recorded: Mapping[str, str | None], folder: Path) -> str:
    """The first of the recorded paths that exists: absolute, relative to the folder, as given; else as given.

    The path as given is meant from the directory where it was recorded, and elsewhere may name something else.
    """
    given, absolute, relative = (recorded[key] for key in ("given", "absolute", "relative"))
    assert given is not None
    # os.path's functions, for which a name that no file system takes is one of no file.
    candidates = [] if absolute is None or relative is None else [absolute, os.path.join(folder.resolve(), relative)]
    found = next((os.path.normpath(path) for path in candidates if os.path.exists(path)), given)
    return given if os.path.realpath(os.path.expanduser(given)) == os.path.realpath(found) else found
