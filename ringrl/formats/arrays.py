"""Steps as most people record them -> an `Episode`, whose rows ExoRL shifts by one; and whole episodes from a store."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Shaped

from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.formats.exorl import ACTION_LIMIT
from ringrl.store.episode_store import Store
from ringrl.store.zarr import open_array, open_context


def make_episode(
    observation: Shaped[np.ndarray, "_rows observation"],
    action: Shaped[np.ndarray, "_steps action"],
    reward: Shaped[np.ndarray, "*_steps_tasks"],
    *,
    terminated: Shaped[np.ndarray, "*_steps"] | np.bool_ | int,
    physics: Shaped[np.ndarray, "_rows state"] | None = None,
) -> Episode:
    """An episode of T steps: step t observes `observation[t]`, takes `action[t]` and is paid `reward[t]`.

    Args:
        observation: T + 1 of them. The last follows the last action and is not trained on; where there are only T, the
            last is repeated.
        action: in [-1, 1].
        reward: [steps], of one task, or [steps, tasks], a column a task.
        terminated: [steps], truth values or numbers that stand for them: where the episode really ended, not at a time
            limit; a single value is that of the last step.
        physics: the simulator's state at every one of the T + 1 observations, if it is known.

    Raises:
        UserError: if there is no step, the shapes disagree, a number is NaN or infinite in float32, or an action is
            outside [-1, 1].
    """
    steps = len(action)
    ends = np.asarray(terminated).astype(np.bool_)
    ends = (np.arange(1, steps + 1) == steps) & ends if ends.ndim == 0 else ends
    if np.ndim(reward) not in (1, 2):
        raise UserError(f"reward has shape {np.shape(reward)}: give it as [steps], or as [steps, tasks]")
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported as infinite
        observed, taken, paid = (np.asarray(each).astype(np.float32) for each in (observation, action, reward))
    observed = np.concatenate([observed, observed[-1:]]) if len(observed) == steps else observed
    states = np.zeros((steps + 1, 0)) if physics is None else physics.astype(np.float64)
    _check_lengths(steps, {"reward": paid, "terminated": ends}, {"observation": observed, "physics": states})
    _check_values({"observation": observed, "action": taken, "reward": paid, "physics": states})
    return Episode(
        observation=observed,
        action=_after_dummy(np.clip(taken, -1.0, 1.0), 0.0),
        reward=_after_dummy(paid.reshape(steps, -1), 0.0),
        discount=_after_dummy(np.where(ends, 0.0, 1.0), 1.0),
        physics=states,
    )


def _check_lengths(steps: int, of_steps: dict[str, np.ndarray], with_last: dict[str, np.ndarray]) -> None:
    wanted = dict.fromkeys(of_steps, steps) | dict.fromkeys(with_last, steps + 1)
    found = {name: len(values) for name, values in (of_steps | with_last).items()}
    wrong = [f"{count} of {name} for {wanted[name]}" for name, count in found.items() if count != wanted[name]]
    if wrong or not steps:
        raise UserError(f"an episode of {steps} actions has {', '.join(wrong) or 'no steps'}")


def _check_values(arrays: dict[str, np.ndarray]) -> None:
    for name, values in arrays.items():
        if values.ndim != 2 and name != "reward":
            raise UserError(f"{name} has shape {values.shape}: give it as [steps, width]")
        if not np.isfinite(values).all():
            raise UserError(f"{name} is NaN or infinite in step {int(np.argwhere(~np.isfinite(values))[0, 0])}")
    largest = float(np.abs(arrays["action"]).max(initial=0.0))
    if largest > ACTION_LIMIT:
        raise UserError(f"an action is {largest:g} where 1 is the actuators' bound; clip the actions, or scale them")


def _after_dummy(values: np.ndarray, first: float) -> Float32[np.ndarray, "rows *width"]:
    """Rows of an `Episode`: row 0 belongs to no action."""
    return np.concatenate([np.full((1, *values.shape[1:]), first, np.float32), values.astype(np.float32)])


def stored_episodes(store: Store, indices: Sequence[int], task: str) -> Iterator[Episode]:
    """Whole episodes of a store, one at a time, with the rewards of one task.

    Raises:
        UserError: as `Store.read`, and where a discount is neither 0 nor 1.
        IndexError: if there is no such episode.
    """
    rows = open_array(store.path, "transition", open_context(0)).result()
    ends = np.cumsum(store.lengths + 1)
    for index in indices:
        steps = store.read(index, 0, int(store.lengths[index]), task)
        if not np.isin(steps.discount, (0.0, 1.0)).all():
            raise UserError(f"{store.path}: episode {index} has discounts besides 0 and 1; only a store can hold them")
        # Steps have no observation after the last action: training does not need it.
        last = rows[int(ends[index]) - 1, : store.dims.observation].read().result()
        yield make_episode(
            np.concatenate([steps.observation, last[None]]),
            steps.action,
            steps.reward,
            terminated=steps.discount == 0.0,
            physics=store.physics(index) if store.dims.physics else None,
        )
