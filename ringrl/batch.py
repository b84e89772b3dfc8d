"""From contexts to training batches: the plan of a context, its steps, and the one schema that all batches follow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

Values = TypeVar("Values", bound=np.ndarray)


@dataclass(frozen=True)
class ContextPlan:
    """Which steps of which episodes make up one context, in order, and the target returns of each.

    Piece j is the environment steps `start[j]:stop[j]` of episode `episode[j]` of the store.

    Attributes:
        episode: index in the store.
        start: first environment step of the piece.
        stop: the environment step after its last.
        target: return-to-go at the *episode's* step 0. At step t it is `target` less the rewards of the episode's steps
            before t. Not used with a `horizon`.
        completed: whether the completion token of the episode's last step is 1 (Liu & Abbeel 2023, section 3).
        horizon: agent steps over which returns-to-go are mean rewards (`ringrl.sampling.chains.reward_rates`); None:
            they are the rewards up to the episode's end.
        parameter: of each piece, the member of a family of rewards that pays it (`ringrl.envs.RewardFamily`); None: its
            rewards are those of the task.
    """

    episode: Int64[np.ndarray, " pieces"]
    start: Int64[np.ndarray, " pieces"]
    stop: Int64[np.ndarray, " pieces"]
    target: Float64[np.ndarray, " pieces"]
    completed: Bool[np.ndarray, " pieces"]
    horizon: int | None = None
    parameter: Float32[np.ndarray, "pieces parameters"] | None = None


@dataclass(frozen=True)
class Chain:
    """The trajectories of a `ContextPlan` read from a store and joined along time. A step is an agent step."""

    observation: Float32[np.ndarray, "steps observation"]
    action: Float32[np.ndarray, "steps action"]
    reward: Float32[np.ndarray, " steps"]
    return_to_go: Float32[np.ndarray, " steps"]
    completion: Float32[np.ndarray, " steps"]  # 1 at the last step of an episode that reached the chain's maximum
    step: Int32[np.ndarray, " steps"]  # index of the agent step within the episode
    trial: Int32[np.ndarray, " steps"]  # index of the trajectory within the chain
    demonstrator: Float32[np.ndarray, "steps action"] | None = None  # what one would have done; None: not asked for

    @property
    def length(self) -> int:
        """Number of agent steps."""
        return len(self.step)


StepLabels = Callable[[Chain, Float32[np.ndarray, "steps parameters"] | None], Float32[np.ndarray, "steps action"]]
"""(chain, the member that pays each step where members do) -> the action that a policy would take at each step."""

LabelSource = StepLabels | Literal["demonstrator"]
"""Where the labels of steps come from: a policy that is asked, or the demonstrator's actions in the store."""


@dataclass(frozen=True)
class _Arrays:
    """Arrays by name."""

    def asdict(self) -> dict[str, np.ndarray]:
        """The fields by name, without copies: the pytree that jitted functions take."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True)
class Batch(_Arrays):
    """What a training step of a sequence agent reads: rows of agent steps, normalised and padded.

    A step becomes one token or several in `ringrl.model.tokens`. Steps attend only to steps of equal `segment_ids`;
    0 is padding. `previous_*` are the values of the step before in the same trial (`previous_in_trial`): at a trial's
    first step they are 0, for beside its observation the last reward of another trial would be of the wrong state. So
    the fused layout does not see a trial's last reward, nor its completion.

    `BATCH_SCHEMA` is read off these annotations; nothing else lists the fields.
    """

    observation: Float32[np.ndarray, "batch steps observation"]
    action: Float32[np.ndarray, "batch steps action"]
    reward: Float32[np.ndarray, "batch steps"]
    return_to_go: Float32[np.ndarray, "batch steps"]
    completion: Float32[np.ndarray, "batch steps"]
    previous_action: Float32[np.ndarray, "batch steps action"] = field(metadata={"previous_of": "action"})
    previous_reward: Float32[np.ndarray, "batch steps"] = field(metadata={"previous_of": "reward"})
    previous_completion: Float32[np.ndarray, "batch steps"] = field(metadata={"previous_of": "completion"})
    step: Int32[np.ndarray, "batch steps"]  # index of the agent step within its episode
    trial: Int32[np.ndarray, "batch steps"]  # index of the trajectory within its chain
    position: Int32[np.ndarray, "batch steps"]  # index of the step within its segment
    segment_ids: Int32[np.ndarray, "batch steps"]
    weight: Float32[np.ndarray, "batch steps"]  # loss weight of the step's action; 0 on padding


@dataclass(frozen=True)
class LabelledBatch(Batch):
    """A `Batch` whose steps also have the action that another policy would take there: what is learned, not seen."""

    label: Float32[np.ndarray, "batch steps action"]


@dataclass(frozen=True)
class MemberBatch(LabelledBatch):
    """A `LabelledBatch` that also says which member of a family of rewards pays each step: for the loss, not seen."""

    parameter: Float32[np.ndarray, "batch steps parameter"]


@dataclass(frozen=True)
class TokenBatch(_Arrays):
    """What a training step of a language model reads: rows of token ids."""

    token: Int32[np.ndarray, "batch steps"]
    target: Int32[np.ndarray, "batch steps"]  # the token after each
    position: Int32[np.ndarray, "batch steps"]  # index of the token within its segment
    segment_ids: Int32[np.ndarray, "batch steps"]
    weight: Float32[np.ndarray, "batch steps"]  # loss weight of the prediction


@dataclass(frozen=True)
class PrecededTokenBatch(TokenBatch):
    """A `TokenBatch` whose tokens also come with the ids before them: entry k - 1 is the k-th before, 0 if none is."""

    previous: Int32[np.ndarray, "batch steps previous"]


@dataclass(frozen=True)
class BatchField:
    """One array of a batch.

    Attributes:
        width: the data size that is its last axis, such as "observation" or "action"; None: a scalar a step.
        dtype: its type.
        previous_of: the field whose value at the step before it is; None: it is no such field.
    """

    width: str | None
    dtype: np.dtype
    previous_of: str | None

    def shape(self, leading: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """`leading`, as (rows, steps), and the width if it has one, of those in `sizes`."""
        return leading if self.width is None else (*leading, sizes[self.width])

    def zeros(self, leading: tuple[int, ...], sizes: Mapping[str, int]) -> np.ndarray:
        """An array of that shape and of the field's type."""
        return np.zeros(self.shape(leading, sizes), self.dtype)


def _schema(batch: type) -> dict[str, BatchField]:
    """The fields of a batch class by name, from its annotations."""
    found = {}
    for each in fields(batch):
        annotation: Any = each.type
        width = (*annotation.dim_str.split()[2:], None)[0]
        found[each.name] = BatchField(width, np.dtype(annotation.dtypes[0]), each.metadata.get("previous_of"))
    return found


BATCH_SCHEMA = _schema(Batch)
LABELLED_BATCH_SCHEMA = _schema(LabelledBatch)
MEMBER_BATCH_SCHEMA = _schema(MemberBatch)
TOKEN_BATCH_SCHEMA = _schema(TokenBatch)
PRECEDED_TOKEN_BATCH_SCHEMA = _schema(PrecededTokenBatch)
TOKENS = 1
"""Version of what fused tokens hold: since 1 all `previous_*` are 0 at a trial's first step; runs and exports before it
have none.
"""
PREVIOUS = {each.previous_of: name for name, each in BATCH_SCHEMA.items() if each.previous_of}
"""Field -> the field with its value at the step before: action -> previous_action, and so on."""


def same_trial(steps: Mapping[str, np.ndarray]) -> Bool[np.ndarray, "rows steps"]:
    """Whether the step before each is of the same trial: False at a trial's first step and in padding.

    Args:
        steps: of the fields of `Batch` by name, `segment_ids`, `trial` and `step`, [rows, steps].
    """
    ids, trial = steps["segment_ids"], steps["trial"]
    same = np.zeros(ids.shape, bool)
    same[:, 1:] = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] > 0) & (trial[:, 1:] == trial[:, :-1])
    return same & (steps["step"] > 0)


def previous_in_trial(x: Values, same: Bool[np.ndarray, "rows steps"]) -> Values:
    """The value at the step before in the same trial: y_t = x_{t-1}, and 0 where there is none.

    Args:
        x: [rows, steps, ...].
        same: whether there is one (`same_trial`).

    Returns:
        y, shaped and typed as x.
    """
    y = np.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    y[~same] = 0
    return y


def link_previous(arrays: dict[str, Values]) -> dict[str, Values]:
    """`arrays`, fields of `Batch` by name, with all `previous_*` of them, computed from the others."""
    same = same_trial(arrays)
    return arrays | {previous: previous_in_trial(arrays[name], same) for name, previous in PREVIOUS.items()}
