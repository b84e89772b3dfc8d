"""Families of rewards of one domain: a parameter, what the reward reads of the physics, and the reward, as data.

All members of a family have the same dynamics, the same observations and the same initial states; only what is paid
differs. So one reward-free data set is of all of them at once: with the features kept beside its steps
(`ringrl.store`), its trajectories get the rewards of any member without the simulator, one vectorised call for many
rows. Each family is a pair of tasks: `hidden_NAME`, whose agent must find out in context what is paid, and
`visible_NAME`, whose observation ends with the parameter. Tasks with several members are `ringrl.envs.custom.library`.

The parameter of an environment follows from its seed (`RewardFamily.member`). Seeds below `VALIDATION` are of training,
those between of validation, those from `HELD_OUT` on of evaluation, and no draw of any seed lies in the neighbourhood
of a canonical task of the domain: these are always held out.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from dm_control.rl.control import Environment
from dm_control.suite import base
from jaxtyping import Bool, Float32, Float64

from ringrl.errors import UserError

HELD_OUT = 1_000_000
"""Seeds from here on are of tasks that no training data may hold."""

VALIDATION = 500_000
"""Seeds from here to `HELD_OUT` are of tasks to choose settings by."""

_FITS = 4  # attempts to find a member that pays in a state and is outside all neighbourhoods
_DRAWS = 1000  # attempts to draw a member outside all neighbourhoods, before the family is called badly made


@dataclass(frozen=True, eq=False)
class RewardFamily:
    """A family of rewards. Features and parameters are float32, computed with in float64; a reward is float32.

    Attributes:
        name: the tasks are `hidden_NAME` and `visible_NAME`; it begins with the domain.
        domain: whose physics it is: data of that domain have its features.
        base: the environment of a seed, whose dynamics, observations and initial states all members share.
        features: names of what the reward reads.
        parameters: names of what a member is.
        read: a physics, as after a step -> its features, one number after another; also of the many states at once of
            `ringrl.relabelling`, and to the same bit: so without powers, of which NumPy's and Python's differ.
        pay: features [..., F] and parameters [..., P], float64 -> rewards [...]; elementwise along leading axes.
        draw: a random generator and n -> n members, [n, P].
        fit: a random generator and features [n, F] -> for each, a member that pays there, [n, P]; where none pays, as
            away from all goals, any.
        canonical: tasks of the domain that are members, and their parameters.
        near: members [n, P] and a canonical one [P] -> whether each lies in its neighbourhood, [n].
        cue: how many of a member's first numbers are its cue, which every observation of it ends with; 0: it has none.
    """

    name: str
    domain: str
    base: Callable[[int], Environment]
    features: tuple[str, ...]
    parameters: tuple[str, ...]
    read: Callable[[Any], Any]
    pay: Callable[[Float64[np.ndarray, "*#rows features"], Float64[np.ndarray, "*#rows parameters"]], np.ndarray]
    draw: Callable[[np.random.Generator, int], Float64[np.ndarray, "n parameters"]]
    fit: Callable[[np.random.Generator, Float64[np.ndarray, "n features"]], Float64[np.ndarray, "n parameters"]]
    canonical: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    near: Callable[[np.ndarray, np.ndarray], Bool[np.ndarray, " n"]] | None = None
    cue: int = 0

    def shown(self, visible: bool) -> int:
        """How many of a member's first numbers observations end with: visible all, else those of its cue."""
        return len(self.parameters) if visible else self.cue

    def reward(
        self, features: Float32[np.ndarray, "*#rows features"], parameter: Float32[np.ndarray, "*#rows parameters"]
    ) -> Float32[np.ndarray, "..."]:
        """What members pay in states: leading axes are broadcast against each other."""
        # Contiguous float64 rows, so that one state and many go through the same loops of NumPy, to the same bit.
        seen, member = (np.ascontiguousarray(x, np.float64) for x in (features, parameter))
        paid = np.asarray(self.pay(np.atleast_2d(seen), member)).astype(np.float32)
        return paid.reshape(()) if seen.ndim == member.ndim == 1 else paid

    def members(self, rng: np.random.Generator, count: int) -> Float32[np.ndarray, "count parameters"]:
        """Members outside the neighbourhoods of the canonical tasks."""
        return self._redrawn(rng, self.draw(rng, count))

    def hindsight(
        self, rng: np.random.Generator, features: Float32[np.ndarray, "n features"]
    ) -> Float32[np.ndarray, "n parameters"]:
        """For each state a member that pays there; any one where those that do lie near a canonical task."""
        seen = features.astype(np.float64)
        found = self.fit(rng, seen).astype(np.float32)
        inside = np.flatnonzero(self.held_out(found))
        for _ in range(_FITS):
            if not len(inside):
                return found
            found[inside] = self.fit(rng, seen[inside]).astype(np.float32)
            inside = inside[self.held_out(found[inside])]
        return self._redrawn(rng, found)

    def member(self, seed: int) -> Float32[np.ndarray, " parameters"]:
        """The member of an environment's seed."""
        return self.members(np.random.default_rng((seed, 3)), 1)[0]

    def held_out(self, parameters: Float32[np.ndarray, "n parameters"]) -> Bool[np.ndarray, " n"]:
        """Whether each lies in the neighbourhood of a canonical task."""
        inside = np.zeros(len(parameters), bool)
        for each in self.canonical.values():
            if self.near is not None:
                inside |= self.near(parameters.astype(np.float64), np.asarray(each, np.float64))
        return inside

    def _redrawn(self, rng: np.random.Generator, drawn: np.ndarray) -> Float32[np.ndarray, "n parameters"]:
        found = drawn.astype(np.float32)
        inside = np.flatnonzero(self.held_out(found))
        for _ in range(_DRAWS):
            if not len(inside):
                return found
            found[inside] = self.draw(rng, len(inside)).astype(np.float32)
            inside = inside[self.held_out(found[inside])]
        raise RuntimeError(f"{self.name}: nearly all of its members lie near canonical tasks")


class MemberTask(base.Task):
    """A task of the domain that is paid by a member of a family, and is else as it was.

    Attributes:
        library: float32 [members, P], of which every episode has one, drawn as it starts, each as likely as any.
        active: the index of the present one.
        hidden: float32 [P], the present one.
    """

    def __init__(
        self, inner: Any, family: RewardFamily, library: Float32[np.ndarray, "members parameters"], visible: bool
    ):
        """`inner`: the task whose initial states and observations are taken."""
        super().__init__(random=inner.random)
        self.library, self.active, self.hidden = library, 0, library[0]
        self._inner, self._family, self._shown = inner, family, family.shown(visible)

    def __getattr__(self, name: str) -> Any:
        """What the inner task has and this one has not."""
        if "_inner" not in self.__dict__:  # as copies are asked before they are filled
            raise AttributeError(name)
        return getattr(self._inner, name)

    def initialize_episode(self, physics: Any) -> None:
        """As the inner task, of a member that is drawn where there are several."""
        if len(self.library) > 1:  # of one nothing is drawn, so that initial states are those of the inner task's seed
            self.active = int(self.random.randint(len(self.library)))
            self.hidden = self.library[self.active]
        self._inner.initialize_episode(physics)

    def before_step(self, action: Any, physics: Any) -> None:
        """As the inner task."""
        self._inner.before_step(action, physics)

    def after_step(self, physics: Any) -> None:
        """As the inner task."""
        self._inner.after_step(physics)

    def get_termination(self, physics: Any) -> Any:
        """As the inner task."""
        return self._inner.get_termination(physics)

    def get_observation(self, physics: Any) -> OrderedDict[str, Any]:
        """The inner task's; a visible member's parameter, or a member's cue, is its end."""
        seen = {"hidden": self.hidden[: self._shown]} if self._shown else {}
        return OrderedDict(self._inner.get_observation(physics) | seen)

    def get_reward(self, physics: Any) -> Any:
        """What the member pays; of a physics of many states (`ringrl.relabelling`), in each of them."""
        seen = list(self._family.read(physics))
        many = next((each for each in seen if hasattr(each, "values")), None)
        columns = np.broadcast_arrays(*(getattr(each, "values", each) for each in seen))
        features = np.stack(columns, axis=-1).astype(np.float32)
        if many is not None:
            return type(many)(self._family.reward(features, self.hidden[None]))
        return float(self._family.reward(features, self.hidden))


def check_parameter(family: RewardFamily, parameter: Any, wanted: tuple[int, ...]) -> None:
    """Raise UserError where `parameter` is not of the shape `wanted`, [P] or [members, P], or not finite."""
    try:
        shape = np.shape(parameter)
    except ValueError:  # of NumPy's: rows of several lengths
        shape = None
    if shape != wanted:
        count, found = len(family.parameters), "rows of several lengths" if shape is None else f"shape {shape}"
        names = ", ".join(family.parameters[:8]) + (", ..." if count > 8 else "")
        many = f"; give {wanted[0]} members" if len(wanted) > 1 else ""
        raise UserError(f"parameter of {found}: a member of {family.name} is {count} numbers ({names}){many}")
    if not np.isfinite(np.asarray(parameter, np.float32)).all():
        raise UserError(f"parameter {parameter}: a member of {family.name} is of finite numbers".replace("\n", ""))


def make_member(
    family: RewardFamily, visible: bool, seed: int, parameter: Sequence[float] | np.ndarray | None = None
) -> Environment:
    """The environment of a member: the seed's, or that of `parameter`.

    Raises UserError where `parameter` has not as many numbers as the family's, all finite.
    """
    if parameter is not None:
        check_parameter(family, parameter, (len(family.parameters),))
    member = family.member(seed) if parameter is None else np.asarray(parameter, np.float32)
    environment = family.base(seed)
    environment._task = MemberTask(environment.task, family, member[None], visible)
    return environment
