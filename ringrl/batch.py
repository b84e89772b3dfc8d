"""Contexts on their way to training: which episodes, their joined steps, and the batch that a training step reads."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64


@dataclass(frozen=True)
class ContextPlan:
    """Which steps of which episodes stand in one context, in order, and the returns that they are told to reach.

    Piece j is steps `start[j]:stop[j]` of episode `episode[j]` of the store. `target[j]` is the return-to-go at that
    *episode's* step 0; the return-to-go at step t is `target[j]` less the rewards of the episode's steps before t, but
    where chains are read with a horizon (`ringrl.sampling.chains.build_chain`).
    `completed[j]`: whether the completion token of the episode's last step is 1 (Agentic Transformer).
    """

    episode: Int64[np.ndarray, " pieces"]
    start: Int64[np.ndarray, " pieces"]
    stop: Int64[np.ndarray, " pieces"]
    target: Float64[np.ndarray, " pieces"]
    completed: Bool[np.ndarray, " pieces"]


@dataclass(frozen=True)
class Chain:
    """The trajectories of a `ContextPlan` read from a store, joined along time; one row of a batch before padding."""

    observation: Float32[np.ndarray, "steps observation"]
    action: Float32[np.ndarray, "steps action"]
    reward: Float32[np.ndarray, " steps"]
    return_to_go: Float32[np.ndarray, " steps"]
    completion: Float32[np.ndarray, " steps"]  # 1 at the last step of an episode that reached the chain's maximum
    step: Int32[np.ndarray, " steps"]  # decision index within the episode; restarts at 0 with every trajectory
    trial: Int32[np.ndarray, " steps"]  # index of the trajectory within the chain

    @property
    def length(self) -> int:
        """Number of steps."""
        return len(self.step)


@dataclass(frozen=True)
class Batch:
    """What a training step sees: rows of steps, normalised, padded, in the order in which the ring holds them.

    A step becomes one token or several in `ringrl.model.tokens`. Steps attend only to steps of the same `segment_ids`;
    0 is padding. `previous_*` are those of the step before in the same segment (0 at a segment's first step), also
    across a trial's end: that is how the fused layout sees the last reward of a trial.
    """

    observation: Float32[np.ndarray, "batch steps observation"]
    action: Float32[np.ndarray, "batch steps action"]
    reward: Float32[np.ndarray, "batch steps"]
    return_to_go: Float32[np.ndarray, "batch steps"]
    completion: Float32[np.ndarray, "batch steps"]
    previous_action: Float32[np.ndarray, "batch steps action"]
    previous_reward: Float32[np.ndarray, "batch steps"]
    previous_completion: Float32[np.ndarray, "batch steps"]
    step: Int32[np.ndarray, "batch steps"]
    trial: Int32[np.ndarray, "batch steps"]
    position: Int32[np.ndarray, "batch steps"]  # index of the step within its segment
    segment_ids: Int32[np.ndarray, "batch steps"]
    weight: Float32[np.ndarray, "batch steps"]  # loss weight of the step's action; 0 on padding

    def asdict(self) -> dict[str, np.ndarray]:
        """The fields by name, without copies: the pytree that jitted functions take."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
