"""A teacher's critics: what an action is worth to one that sees which member pays, as a function inside a loss.

The critics are frozen. They are no part of the student: its checkpoints and its rollouts do without them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32

from ringrl.config import RunConfig
from ringrl.errors import UserError
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.relabelled import Episodes
from ringrl.training.teacher import find_teacher


@runtime_checkable
class StateSource(Protocol):
    """An agent with networks of its own, as `agents/td3.py`; the critics are an attribute of its state."""

    def load_state(self, run: Path, config: RunConfig, sizes: Mapping[str, int], checkpoint: str) -> tuple[Any, int]:
        """The state of a run's checkpoint, and its gradient steps."""
        ...


@dataclass(frozen=True, eq=False)
class TeacherCritics:
    """The first critic of a teacher, on the fields of a `ringrl.batch.MemberBatch`.

    Attributes:
        graph: the structure of the critics (`ringrl.collect.networks.Critics`, or what is called alike).
        weights: their arrays, of NumPy: constants of a compiled loss, on whichever devices it runs.
        normalizer: the scales of what they see.
        sees_member: whether the parameter comes after the observation.
        cue: numbers at the end of the observation, and the beginning of the parameter, that they do not see.
    """

    graph: Any
    weights: Any
    normalizer: Normalizer
    sees_member: bool
    cue: int = 0

    def values(
        self, batch: Mapping[str, jax.Array], action: Float[jax.Array, "*rows action"], scales: Normalizer
    ) -> Float32[jax.Array, "*rows"]:
        """Q1 of an action at each step, for the member that pays it.

        Args:
            batch: of its arrays `observation`, which `scales` normalised, and `parameter` are read.
            action: in [-1, 1].
            scales: of the batch.
        """
        flat = action.astype(jnp.float32).reshape(-1, action.shape[-1])
        q1, _ = nnx.merge(self.graph, self.weights)(self._seen(batch, scales), flat)
        return q1.reshape(action.shape[:-1])

    def _seen(self, batch: Mapping[str, jax.Array], scales: Normalizer) -> Float32[jax.Array, "n seen"]:
        """What the teacher would see at each step, normalised as in its own training."""
        width, mean, std = len(scales.observation_mean) - self.cue, *self._scales
        observation = _rows(batch["observation"]) * scales.observation_std[None] + scales.observation_mean[None]
        parts = [(observation[:, :width] - mean[:, :width]) / std[:, :width]]
        if self.sees_member:
            parts.append((_rows(batch["parameter"])[:, self.cue :] - mean[:, width:]) / std[:, width:])
        return jnp.concatenate(parts, axis=-1)

    @property
    def _scales(self) -> tuple[np.ndarray, np.ndarray]:
        return self.normalizer.observation_mean[None], self.normalizer.observation_std[None]


def _rows(x: jax.Array) -> Float32[jax.Array, "n width"]:
    return x.astype(jnp.float32).reshape(-1, x.shape[-1])


def teacher_critics(run: Path, config: RunConfig, episodes: Episodes) -> TeacherCritics:
    """The critics of a teacher; arguments and errors are those of `find_teacher`, and UserError where it has none."""
    teacher = find_teacher(run, config, episodes)
    agent, critics = teacher.agent, None
    if isinstance(agent, StateSource):
        critics = getattr(agent.load_state(run, teacher.config, teacher.sizes, "latest")[0], "critics", None)
    if critics is None:
        raise UserError(f"{run}: {teacher.run.label()} has no critics; give the run of an agent that has, as td3")
    graph, weights = nnx.split(critics)
    return TeacherCritics(
        graph, jax.tree.map(np.asarray, weights), teacher.run.normalizer(), teacher.sees_member, teacher.cue
    )
