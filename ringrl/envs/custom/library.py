"""Libraries: several members of a family of rewards in one context, of which every trial has one, and a cue says which.

A member of a library is that of its family and a cue, `CUE` numbers of -1 or 1, which end every observation of the
member's trials. Cues are drawn with the library, each as likely as any, so that they tell nothing but which trials are
of one member; no two of a library are equal. The task `libraryM_NAME` has M members of the family NAME, drawn by the
seed of an environment; which of them a trial is of is drawn as it starts, each as likely as any.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from dm_control.rl.control import Environment
from jaxtyping import Float32, Float64

from ringrl.envs.custom.reward_family import MemberTask, RewardFamily, check_parameter

CUE = 16
"""Numbers in a cue: so many that in seven libraries of 32 out of eight no two cues differ in one of them alone."""


@cache
def with_cues(family: RewardFamily) -> RewardFamily:
    """The family whose members are a cue and a member of `family`; it pays by the latter alone, and as `family` to the
    bit."""

    def pay(features: np.ndarray, parameter: np.ndarray) -> np.ndarray:
        return family.pay(features, np.ascontiguousarray(parameter[..., CUE:]))

    def near(members: np.ndarray, canonical: np.ndarray) -> np.ndarray:
        assert family.near is not None
        return family.near(members[:, CUE:], canonical[CUE:])

    return replace(
        family,
        parameters=(*(f"cue_{index}" for index in range(CUE)), *family.parameters),
        cue=CUE,
        pay=pay,
        draw=lambda rng, count: _joined(family.draw(rng, count), rng),
        fit=lambda rng, features: _joined(family.fit(rng, features), rng),
        canonical={task: (0.0,) * CUE + tuple(member) for task, member in family.canonical.items()},
        near=None if family.near is None else near,
    )


def _joined(members: Float64[np.ndarray, "n parameters"], rng: np.random.Generator) -> Float64[np.ndarray, "n _more"]:
    """The members, each after a cue of its own."""
    cues = _bits(rng.integers(2**CUE, size=len(members)))
    return np.concatenate([cues, members], axis=1)


def _bits(numbers: np.ndarray) -> Float64[np.ndarray, "n _cue"]:
    return 2.0 * (numbers[:, None] >> np.arange(CUE) & 1) - 1.0


def with_different_cues(
    rng: np.random.Generator, members: Float32[np.ndarray, "n parameters"]
) -> Float32[np.ndarray, "n parameters"]:
    """Members of a family with cues, those drawn anew so that no two are equal."""
    found = members.copy()
    found[:, :CUE] = _bits(rng.choice(2**CUE, len(members), replace=False))
    return found


def library_of(family: RewardFamily, seed: int, members: int) -> Float32[np.ndarray, "members parameters"]:
    """The library of an environment's seed, of a family with cues."""
    rng = np.random.default_rng((seed, 3))
    return with_different_cues(rng, family.members(rng, members))


def make_library(family: RewardFamily, members: int, seed: int, parameter: Any = None) -> Environment:
    """The environment of a library: the seed's, or that of `parameter`, [members, CUE + P].

    Args:
        family: one with cues (`with_cues`).
        members: how many it has.
        seed: of the library, of the initial states, and of which member each trial is of.
        parameter: the members, each after its cue, as nested sequences or an array; None: the seed's.

    Raises UserError where `parameter` is of another shape, or not finite.
    """
    if parameter is not None:
        check_parameter(family, parameter, (members, len(family.parameters)))
    library = library_of(family, seed, members) if parameter is None else np.asarray(parameter, np.float32)
    environment = family.base(seed)
    environment._task = MemberTask(environment.task, family, library, visible=False)
    return environment
