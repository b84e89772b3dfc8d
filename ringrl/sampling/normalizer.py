"""The scales that bring a data set's observations, returns and rewards to order one, kept beside every checkpoint."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from pydantic import Field, with_config
from typing_extensions import TypedDict

from ringrl.envs import RewardFamily
from ringrl.errors import UserError
from ringrl.readers import RECORD, read_json
from ringrl.sampling.chains import EpisodeReader, by_agent_step, rewards_by_agent_step

EPISODES_AT_ONCE = 16
_MEMBERS = 4096  # of a family, of which the scales of what is shown of them are measured


_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_Scale = Annotated[float, Field(ge=_SMALLEST, le=_LARGEST)]


@with_config(RECORD)
class NormalizerRecord(TypedDict):
    """What normalizer.json contains: numbers that float32 has, and scales above 0."""

    observation_mean: list[Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]]
    observation_std: list[_Scale]
    return_scale: _Scale
    reward_scale: _Scale


@dataclass(frozen=True, eq=False)
class Normalizer:
    """How raw data becomes what the model sees: (observation - mean) / std, returns / scale, rewards / scale.

    Attributes:
        observation_mean: of every observation dimension, over agent steps.
        observation_std: its standard deviation + 1e-6 (Decision Transformer's code); 1 where a dimension never varies,
            which would otherwise be magnified a million times as soon as it does.
        return_scale: what returns and returns-to-go are divided by.
        reward_scale: what rewards are divided by.
    """

    observation_mean: Float32[np.ndarray, " observation"]
    observation_std: Float32[np.ndarray, " observation"]
    return_scale: float
    reward_scale: float

    @classmethod
    def fit(
        cls,
        store: EpisodeReader,
        task: str,
        episodes: Int64[np.ndarray, " subset"] | None = None,
        *,
        action_repeat: int = 1,
        max_episodes: int = 1024,
    ) -> "Normalizer":
        """Measures a data set, a few episodes at a time.

        Args:
            store: where the episodes are.
            task: whose rewards and returns.
            episodes: the episodes that training draws from; None is all.
            action_repeat: environment steps in an agent step.
            max_episodes: of more episodes than this, as many evenly spaced ones are read for the observations and the
                rewards. The return scale always counts all.

        Returns:
            Means and deviations over agent steps; the largest absolute return as return scale; the standard deviation
            of the agent steps' rewards as reward scale. A scale that would be 0 is 1.

        Raises:
            UserError: there are no episodes.
        """
        chosen = np.arange(len(store.lengths), dtype=np.int64) if episodes is None else episodes
        if not len(chosen):
            raise UserError("there are no episodes to measure; build the store from at least one episode")
        largest = float(np.abs(store.returns(task)[chosen]).max())
        if len(chosen) > max_episodes:
            chosen = chosen[np.linspace(0, len(chosen) - 1, max_episodes).round().astype(np.int64)]
        mean, std = _moments(_columns(store, task, chosen, action_repeat))
        varies = std > 1e-7 * np.maximum(1.0, np.abs(mean))
        reward_varies = bool(varies[-1])
        return cls(
            observation_mean=mean[:-1].astype(np.float32),
            observation_std=np.where(varies, std + 1e-6, 1.0)[:-1].astype(np.float32),
            return_scale=largest if largest > 0 else 1.0,
            reward_scale=float(std[-1]) if reward_varies else 1.0,
        )

    def of_members(self, family: RewardFamily, visible: bool) -> "Normalizer":
        """The same, but in the last dimensions, where a member or its cue is shown, of many members as tasks are drawn.

        The members that were drawn for episodes are as few as these, and of few a number that is seldom not 0 has no
        scale.
        """
        shown = family.shown(visible)
        if not shown:
            return self
        members = family.members(np.random.default_rng(0), _MEMBERS)[:, :shown].astype(np.float64)
        mean, std, spread = self.observation_mean.copy(), self.observation_std.copy(), members.std(axis=0)
        mean[-shown:], std[-shown:] = members.mean(axis=0), np.where(spread > 1e-7, spread + 1e-6, 1.0)
        return replace(self, observation_mean=mean, observation_std=std)

    def normalize_observation(
        self, observation: Float[np.ndarray, "*batch observation"]
    ) -> Float32[np.ndarray, "*batch observation"]:
        """Observations as the model sees them, float32."""
        return ((observation - self.observation_mean) / self.observation_std).astype(np.float32)

    def to_json(self) -> bytes:
        """The file of the scales, which `load` reads."""
        values = {name: np.asarray(value).tolist() for name, value in asdict(self).items()}
        return f"{json.dumps(values, indent=1)}\n".encode()

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Normalizer":
        """The scales out of plain numbers and lists, by field, as JSON gives them back."""
        return cls(
            observation_mean=np.array(values["observation_mean"], np.float32),
            observation_std=np.array(values["observation_std"], np.float32),
            return_scale=float(values["return_scale"]),
            reward_scale=float(values["reward_scale"]),
        )

    @classmethod
    def load(cls, path: str | Path) -> "Normalizer":
        """Reads what `to_json` made, to the bit.

        Raises:
            UserError: the file is not there, or is not one of `to_json`.
        """
        return cls.from_values(read_json(Path(path), NormalizerRecord, "is this a run that `ringrl train` made?"))

    def require_width(self, width: int | None, where: Path) -> None:
        """Raise UserError where these are not the scales of `width` observations; `where`: what says them."""
        if not len(self.observation_mean) == len(self.observation_std) == width:
            raise UserError(f"{where}: its scales are not those of {width} observations; restore it, or train again")


def _columns(
    store: EpisodeReader, task: str, episodes: Int64[np.ndarray, " subset"], action_repeat: int
) -> Iterator[Float64[np.ndarray, "steps columns"]]:
    """Observations and, as the last column, rewards, of a few episodes at a time."""
    for first in range(0, len(episodes), EPISODES_AT_ONCE):
        group = episodes[first : first + EPISODES_AT_ONCE].tolist()
        spans = [(episode, 0, int(store.lengths[episode])) for episode in group]
        for steps in store.read_many(spans, task):
            observation, _ = by_agent_step(steps, action_repeat)
            reward, _ = rewards_by_agent_step(steps, action_repeat)
            yield np.concatenate([observation.astype(np.float64), reward[:, None]], axis=1)


def _moments(
    parts: Iterator[Float64[np.ndarray, "steps columns"]],
) -> tuple[Float64[np.ndarray, " columns"], Float64[np.ndarray, " columns"]]:
    """Mean and population standard deviation of every column, merged part by part (Chan et al. 1983)."""
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for part in parts:
        size, total = len(part), count + len(part)
        difference = part.mean(axis=0) - mean
        squares = squares + part.var(axis=0) * size + difference**2 * (count * size / total)
        mean = mean + difference * (size / total)
        count = total
    return mean, np.sqrt(squares / count)
