"""Families of tasks that differ in something the agent is not shown: what it is must be found out in context.

Each domain is a family; the seed of an environment draws its hidden parameter once and for all, so the trials of one
environment are of one task. Seeds below `HELD_OUT` are for training data, those from it on for evaluation; no task is
in both. Every family has a twin `visible_...` whose observation ends with the hidden parameter, for oracles that learn.

| family | hidden | reward |
|---|---|---|
| `hidden_point_mass_goal` | where the goal is | nearness to it, the suite's with a wider margin |
| `hidden_point_mass_actuators` | each motor's direction, as in `point_mass_hard` | the same, goal at the origin |
| `hidden_reacher_target` | where the target is | nearness of the finger to it |
| `hidden_cheetah_velocity` | how fast to run, in either direction | nearness to that speed |

The trials are short (2.5 or 5 s), so that many of them fit into a context.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import numpy as np
from dm_control.rl.control import Environment
from dm_control.suite import base, cheetah, point_mass, reacher
from dm_control.utils import rewards
from jaxtyping import Float64

_ARENA = 0.1  # m, half the side of the square in which a point mass starts
_REACH = (0.1, 0.25)  # m, how far from the origin a point mass's goal lies
_RADIUS, _MARGIN = 0.02, 0.15  # m, of the goal, and beyond it to where the reward has fallen to a tenth
_TARGET_RADIUS, _TARGET_MARGIN = 0.03, 0.12  # m, the reacher's
_TARGET_REACH = (0.05, 0.20)  # m, as in the suite
_LINK = 0.12  # m, of each of the reacher's two
_SPEED = 4.0  # m/s, the cheetah's fastest target
_SPEED_MARGIN = 2.0  # m/s


class _Hidden(base.Task):
    """A task with a hidden parameter, drawn once.

    It is the first draw of `default_rng(seed)`: actions for such a task must come from another stream, or they tell it.
    """

    def __init__(self, seed: int, visible: bool):
        """`seed`: of the hidden parameter and, independently, of the initial states."""
        super().__init__(random=seed)
        self.hidden = self._draw(np.random.default_rng(seed))
        self._visible = visible

    def _draw(self, rng: np.random.Generator) -> Float64[np.ndarray, " hidden"]:
        raise NotImplementedError

    def _seen(self, physics: Any) -> dict[str, Any]:
        return {"position": physics.position(), "velocity": physics.velocity()}

    def get_observation(self, physics: Any) -> OrderedDict[str, Any]:
        """What is seen; the twin's ends with the hidden parameter."""
        return OrderedDict(self._seen(physics) | ({"hidden": self.hidden} if self._visible else {}))


class PointMassGoal(_Hidden):
    """Stay at a hidden goal, starting near the origin."""

    def _draw(self, rng: np.random.Generator) -> Float64[np.ndarray, " hidden"]:
        return _on_ring(rng, _REACH)

    @property
    def _goal(self) -> Float64[np.ndarray, "2"]:
        return self.hidden

    def initialize_episode(self, physics: Any) -> None:
        """At rest, near the origin."""
        physics.named.model.geom_pos["target", :2] = self._goal
        physics.data.qpos[:] = self.random.uniform(-_ARENA, _ARENA, 2)
        super().initialize_episode(physics)

    def get_reward(self, physics: Any) -> Any:
        """The suite's, with a margin from which the goal can be felt."""
        near = rewards.tolerance(physics.mass_to_target_dist(), bounds=(0, _RADIUS), margin=_MARGIN)
        ease = np.mean(rewards.tolerance(physics.control(), margin=1, value_at_margin=0, sigmoid="quadratic"))
        return near * (ease + 4) / 5

    def expert(self, physics: Any) -> Float64[np.ndarray, "2"]:
        """The action in [-1, 1] of a controller that knows the hidden parameter: push there, brake in time."""
        force = 15 * (self._goal - physics.position()) - 3 * physics.velocity()
        return np.clip(force, -1, 1)


class PointMassActuators(PointMassGoal):
    """Stay at the origin, starting away from it, with motors that push in hidden directions (`point_mass_hard`)."""

    def _draw(self, rng: np.random.Generator) -> Float64[np.ndarray, " hidden"]:
        while True:
            first, second = (_unit(rng.normal(size=2)) for _ in range(2))
            if abs(first @ second) <= 0.9:  # as in the suite: not too parallel
                return np.concatenate([first, second])

    @property
    def _goal(self) -> Float64[np.ndarray, "2"]:
        return np.zeros(2)

    def initialize_episode(self, physics: Any) -> None:
        """At rest, anywhere on the ring where the other family's goals are."""
        super().initialize_episode(physics)
        physics.model.wrap_prm[:] = self.hidden
        physics.data.qpos[:] = _on_ring(self.random, _REACH)

    def expert(self, physics: Any) -> Float64[np.ndarray, "2"]:
        """As the parent's, through the inverse of the motors' directions, scaled into the bounds."""
        control = np.linalg.solve(self.hidden.reshape(2, 2).T, super().expert(physics))
        return control / max(1.0, np.abs(control).max())


class ReacherTarget(_Hidden):
    """Keep the finger at a hidden target in front of the arm; the finger's place is seen, not the way to the target.

    The suite puts targets all around. In front (x > 0), with the arm starting there, no way round is the longer one.
    """

    def _draw(self, rng: np.random.Generator) -> Float64[np.ndarray, " hidden"]:
        x, y = _on_ring(rng, _TARGET_REACH)
        return np.array([abs(x), y])

    def _seen(self, physics: Any) -> dict[str, Any]:
        finger = physics.named.data.geom_xpos["finger", :2].copy()
        return {"position": physics.position(), "finger": finger, "velocity": physics.velocity()}

    def initialize_episode(self, physics: Any) -> None:
        """At rest, the shoulder within a quarter turn of straight ahead, the wrist bent to the left."""
        physics.named.model.geom_pos["target", :2] = self.hidden
        physics.data.qpos[:] = self.random.uniform((-np.pi / 2, np.pi / 4), (np.pi / 2, 3 * np.pi / 4))
        super().initialize_episode(physics)

    def get_reward(self, physics: Any) -> Any:
        """Nearness of the finger to the target."""
        return rewards.tolerance(physics.finger_to_target_dist(), bounds=(0, _TARGET_RADIUS), margin=_TARGET_MARGIN)

    def expert(self, physics: Any) -> Float64[np.ndarray, "2"]:
        """The action in [-1, 1] of a controller that knows the target: the arm is turned to where it reaches it."""
        bend = 2 * np.arccos(np.linalg.norm(self.hidden) / (2 * _LINK))
        ahead = np.arctan2(self.hidden[1], self.hidden[0]) - bend / 2
        error = np.array([ahead, bend]) - physics.position()
        return np.clip(0.5 * error - 0.15 * physics.velocity(), -1, 1)


class CheetahVelocity(_Hidden, cheetah.Cheetah):
    """Run at a hidden speed, forwards or backwards (Finn et al. 2017, section 5.3, with the suite's cheetah)."""

    def _draw(self, rng: np.random.Generator) -> Float64[np.ndarray, " hidden"]:
        return rng.uniform(-_SPEED, _SPEED, 1)

    def _seen(self, physics: Any) -> dict[str, Any]:
        return {"position": physics.data.qpos[1:].copy(), "velocity": physics.velocity()}

    def get_reward(self, physics: Any) -> Any:
        """1 at the hidden speed, falling linearly to 0 at 2 m/s from it."""
        return rewards.tolerance(
            physics.speed() - self.hidden[0], margin=_SPEED_MARGIN, value_at_margin=0, sigmoid="linear"
        )


def _on_ring(rng: Any, radii: tuple[float, float]) -> Float64[np.ndarray, "2"]:
    """A place whose distance from the origin lies between `radii`, every area alike."""
    radius, angle = np.sqrt(rng.uniform(radii[0] ** 2, radii[1] ** 2)), rng.uniform(0, 2 * np.pi)
    return radius * np.array([np.cos(angle), np.sin(angle)])


def _unit(x: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return x / np.linalg.norm(x)


def _make(suite: Any, task: type[_Hidden], seconds: float, visible: bool, seed: int) -> Environment:
    physics = suite.Physics.from_xml_string(*suite.get_model_and_assets())
    return Environment(physics, task(seed, visible), time_limit=seconds)


def _tasks(visible: bool) -> dict[str, dict[str, Any]]:
    kind = "visible" if visible else "hidden"
    return {
        f"{kind}_point_mass": {
            "goal": partial(_make, point_mass, PointMassGoal, 5.0, visible),
            "actuators": partial(_make, point_mass, PointMassActuators, 5.0, visible),
        },
        f"{kind}_reacher": {"target": partial(_make, reacher, ReacherTarget, 2.5, visible)},
        f"{kind}_cheetah": {"velocity": partial(_make, cheetah, CheetahVelocity, 2.5, visible)},
    }


DOMAINS = _tasks(visible=False) | _tasks(visible=True)
"""Domain -> task name -> environment of a seed."""
