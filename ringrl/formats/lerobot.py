"""The steps of LeRobot data sets (Hugging Face's format for recordings of robots) -> episodes.

Step t has the observation, the action taken in it and, where they were recorded, `next.reward`, `next.done` and
`next.truncated` of that action; the observation after the last action is not recorded. Videos and images are not read.
Needs `pip install 'ringrl[lerobot]'`. Which episodes there are, and where: `ringrl.formats.lerobot_index`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Shaped

from ringrl.episode import Episode, refuse_pixels
from ringrl.errors import UserError
from ringrl.formats.imported import Bounds, to_unit
from ringrl.formats.lerobot_index import LeRobotData
from ringrl.formats.parquet import read_columns

STATE, ACTION, REWARD, DONE, TRUNCATED = "observation.state", "action", "next.reward", "next.done", "next.truncated"
_AGAIN = "fetch the data set again"
_WIDEST = 2**20  # numbers in a step, of a damaged or hostile description


@dataclass(frozen=True)
class StepFeatures:
    """The names of what is read of a step.

    Attributes:
        observation: joined in this order.
        action: likewise.
        reward: None: every reward is 0.
        done: set where an episode ended; None: nothing says so.
        truncated: set where a time limit ended it; None: nothing says so.
    """

    observation: tuple[str, ...]
    action: tuple[str, ...]
    reward: str | None
    done: str | None
    truncated: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, each once."""
        more = (self.reward, self.done, self.truncated)
        return tuple(dict.fromkeys((*self.observation, *self.action, *filter(None, more))))

    def action_width(self, data: LeRobotData) -> int:
        """Numbers in an action, as `meta/info.json` says."""
        return sum(math.prod(data.info["features"][name]["shape"]) for name in self.action)


def choose_features(
    data: LeRobotData,
    observation: Sequence[str] = (STATE,),
    action: Sequence[str] = (ACTION,),
    reward: str | None = None,
    *,
    done: bool = True,
) -> StepFeatures:
    """The features to read.

    Args:
        data: the data set.
        observation: names of those that make an observation.
        action: of those that make an action.
        reward: of the reward; None: `next.reward`, where there is one.
        done: whether `next.done` ends an episode for good, where `next.truncated` is not set.

    Raises:
        UserError: if there is no feature of that name, or it is a picture or text; it lists those there are; if one
            that is a single number is several.
    """
    there = data.info["features"]
    numeric = {name for name, each in there.items() if each["dtype"] not in ("image", "video", "string", "language")}
    for name in (*observation, *action, *([reward] if reward else [])):
        if name in there and name not in numeric:
            raise UserError(f"{data.folder}: {name} is {there[name]['dtype']}, and nothing here learns from that")
        if name not in numeric:
            raise UserError(f"{data.folder}: has no feature {name}; it has {', '.join(sorted(numeric)) or 'none'}")
        if not 0 < math.prod(there[name]["shape"]) <= _WIDEST:
            raise UserError(f"{data.folder}: {name} has shape {there[name]['shape']}; a vector is needed")
    paid, *ends = (name if name in numeric else None for name in (reward or REWARD, DONE, TRUNCATED))
    features = StepFeatures(tuple(observation), tuple(action), paid, *(ends if done else (None, None)))
    for name in filter(None, (features.reward, features.done, features.truncated)):
        if math.prod(there[name]["shape"]) != 1:
            raise UserError(f"{data.folder}: {name} has shape {there[name]['shape']} a step; a single number is needed")
    return features


def action_span(data: Sequence[tuple[LeRobotData, StepFeatures]]) -> Bounds:
    """The least and the greatest finite value of every number of an action, over all files of the data sets.

    A number that never changes becomes 0: its bounds are 1 below and above it.

    Raises:
        UserError: as `read_lerobot`; if actions of two data sets are of different widths.
    """
    least, greatest = None, None
    for each, features in data:
        for path in dict.fromkeys(episode.path for episode in each.episodes):
            actions = _flat(_read_steps(each, path, features.action), features.action)
            finite = np.isfinite(actions)
            low = np.where(finite, actions, np.inf).min(axis=0, initial=np.inf)
            high = np.where(finite, actions, -np.inf).max(axis=0, initial=-np.inf)
            if least is not None and least.shape != low.shape:
                raise UserError(f"{path}: an action has {len(low)} numbers, one of the files before {len(least)}")
            least = low if least is None else np.minimum(least, low)
            greatest = high if greatest is None else np.maximum(greatest, high)
    assert least is not None and greatest is not None  # a data set has an episode
    middle = np.where(np.isfinite(least), least, 0).astype(np.float64)
    constant = least >= greatest
    return np.where(constant, middle - 1, least), np.where(constant, middle + 1, greatest)


def read_lerobot(data: LeRobotData, features: StepFeatures, bounds: Bounds, *, clip: bool = False) -> Iterator[Episode]:
    """The episodes of a data set, one at a time; the last observation is repeated for the one after the last action.

    Args:
        data: the data set.
        features: what is read of a step.
        bounds: the actions that become -1 and 1.
        clip: as for `Episode.from_arrays`.

    Raises:
        UserError: naming the file and the episode, if a file is missing or damaged, has not the steps that
            `meta/episodes` says, a feature is missing, of another shape than `meta/info.json` says or not numbers, or
            what is stored is no `Episode`.
    """
    for path, episodes in groupby(data.episodes, key=lambda each: each.path):
        steps = _read_steps(data, path, ("episode_index", "frame_index", *features.names))
        blocks = _blocks(steps["episode_index"], path)
        for each in episodes:
            where = f"{path}, episode {each.index}"
            rows = blocks.get(each.index, slice(0, 0))
            counted = steps["frame_index"][rows]
            if len(counted) != each.length or not np.array_equal(counted, np.arange(len(counted))):
                raise UserError(f"{where}: has {len(counted)} steps, not 0 to {each.length - 1} in order; {_AGAIN}")
            try:
                yield _to_episode({name: steps[name][rows] for name in features.names}, features, bounds, clip)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error


def _read_steps(data: LeRobotData, path: Path, names: Sequence[str]) -> dict[str, Shaped[np.ndarray, "steps ..."]]:
    """Features of all steps of a file, each of the shape that `meta/info.json` says; of shape [1]: [steps]."""
    found = read_columns(path, names)
    for name in names:
        shape = tuple(data.info["features"][name]["shape"]) if name in data.info["features"] else (1,)
        rows = len(found[name])
        if found[name].size != rows * math.prod(shape):
            raise UserError(f"{path}: {name} has shape {found[name].shape[1:]} a step, meta/info.json says {shape}")
        found[name] = found[name].reshape(rows, *(() if shape == (1,) else shape))
    return found


def _blocks(index: Shaped[np.ndarray, " steps"], path: Path) -> dict[int, slice]:
    """Where in a file the steps of each episode are."""
    if index.dtype.kind not in "iu":
        raise UserError(f"{path}: episode_index is {index.dtype}, no whole numbers; {_AGAIN}")
    starts = np.flatnonzero(np.diff(index, prepend=index[:1] - 1)).tolist()
    spans = zip(starts, [*starts[1:], len(index)], strict=True)
    blocks = {int(index[start]): slice(start, stop) for start, stop in spans}
    if len(blocks) < len(starts):
        raise UserError(f"{path}: the steps of an episode are not together; {_AGAIN}")
    return blocks


def _flat(steps: dict[str, Any], names: Sequence[str]) -> Float32[np.ndarray, "steps width"]:
    """Features side by side, in order."""
    parts = []
    for name in names:
        if steps[name].ndim > 2:  # a vector of bytes is no picture
            refuse_pixels(steps[name], most_axes=3)
        with np.errstate(over="ignore"):  # what float32 cannot hold is reported as infinite
            parts.append(steps[name].reshape(len(steps[name]), -1).astype(np.float32))
    return np.concatenate(parts, axis=1)


def _flag(steps: dict[str, Any], name: str | None) -> Bool[np.ndarray, " steps"] | bool:
    return False if name is None else steps[name].reshape(-1).astype(np.bool_)


def _to_episode(steps: dict[str, Any], features: StepFeatures, bounds: Bounds, clip: bool) -> Episode:
    observation, action = (_flat(steps, names) for names in (features.observation, features.action))
    truncated = _flag(steps, features.truncated)
    return Episode.from_arrays(
        observation,
        to_unit(action, bounds),
        np.zeros(len(action)) if features.reward is None else steps[features.reward].reshape(-1),
        terminated=_flag(steps, features.done) & np.logical_not(truncated),
        truncated=truncated,
        clip=clip,
    )
