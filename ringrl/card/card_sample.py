"""A sample of a store's steps, and what it covers: enough to be seen, few enough to take seconds at any size."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from ringrl.episode import StepSpan
from ringrl.store.episode_store import Store

_EPISODES = 384
_EPISODES_OF_A_GROUP = 24  # at least, where there are as many: small sources are to be seen too
_STEPS_OF_AN_EPISODE = 24
_READ_AT_ONCE = 32
_CELLS = 24  # a side, of the grid on which coverage is counted
_LEVELS = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class Sample:
    """Steps drawn from a store, evenly from every episode that was drawn.

    Attributes:
        episodes: drawn.
        observation: of the steps drawn.
        group: the group of sources that each step belongs to.
        projection: the observations' first two principal components, each dimension scaled to variance 1 before.
        explained: share of that variance on each of the two.
        cells: for every group, the share of the grid cells that any group reaches which this one reaches with as many
            steps as the smallest group has; 0 for a group without steps.
        ranges: minimum, 5%, median, 95%, maximum of every dimension.
        action_at_limit: share of the actions' numbers that are -1 or 1.
        discount_zero: share of the steps that end an episode for real.
        ending: the drawn episodes that end so.
    """

    episodes: int
    observation: Float32[np.ndarray, "steps observation"]
    group: Int64[np.ndarray, " steps"]
    projection: Float64[np.ndarray, "steps 2"]
    explained: Float64[np.ndarray, " 2"]
    cells: tuple[float, ...]
    ranges: Float64[np.ndarray, "5 observation"]
    action_at_limit: float
    discount_zero: float
    ending: int


def draw_sample(
    store: Store, of_episode: Int64[np.ndarray, " episodes"], groups: int, rng: np.random.Generator
) -> Sample:
    """Draw and look.

    Args:
        store: open.
        of_episode: the group of every episode.
        groups: their number.
        rng: decides which episodes and steps.

    Raises:
        UserError: if the store cannot be read.
    """
    chosen = _choose(of_episode, groups, rng)
    observation, limit, ended, group = [], [], [], []
    for start in range(0, len(chosen), _READ_AT_ONCE):
        some = chosen[start : start + _READ_AT_ONCE]
        spans = [(int(episode), 0, int(store.lengths[episode])) for episode in some]
        for episode, steps in zip(some, store.read_many(spans, store.tasks[0]), strict=True):
            at = _thin(steps, rng)
            observation.append(steps.observation[at])
            group += [of_episode[episode]] * len(at)
            limit.append(float((np.abs(steps.action) >= 1).mean()))
            ended.append(float((steps.discount == 0).mean()))
    observed, of_step = np.concatenate(observation), np.asarray(group, np.int64)
    projection, explained = principal_components(observed)
    return Sample(
        episodes=len(chosen),
        observation=observed,
        group=of_step,
        projection=projection,
        explained=explained,
        cells=_cells(projection, of_step, groups, rng),
        ranges=np.quantile(observed.astype(np.float64), _LEVELS, axis=0),
        action_at_limit=float(np.mean(limit)),
        discount_zero=float(np.mean(ended)),
        ending=int(np.count_nonzero(ended)),
    )


def _choose(
    of_episode: Int64[np.ndarray, " episodes"], groups: int, rng: np.random.Generator
) -> Int64[np.ndarray, " chosen"]:
    """Episodes of every group in proportion to its size, or a few more."""
    chosen = []
    for group in range(groups):
        mine = np.flatnonzero(of_episode == group)
        wanted = max(_EPISODES_OF_A_GROUP, round(_EPISODES * len(mine) / len(of_episode)))
        chosen.append(rng.permutation(mine)[:wanted])
    return np.sort(np.concatenate(chosen))


def _thin(steps: StepSpan, rng: np.random.Generator) -> Int64[np.ndarray, " thinned"]:
    length = len(steps.action)
    return np.sort(rng.choice(length, min(length, _STEPS_OF_AN_EPISODE), replace=False))


def principal_components(
    observation: Float32[np.ndarray, "steps observation"],
) -> tuple[Float64[np.ndarray, "steps 2"], Float64[np.ndarray, " 2"]]:
    """The first two principal components and their shares of the variance; zeros where there are fewer.

    Every dimension is scaled to variance 1 first, since an angle and a velocity have no common unit. A component's sign
    is such that its largest weight is positive.
    """
    centred = observation.astype(np.float64) - observation.mean(axis=0, dtype=np.float64)
    scale = centred.std(axis=0)
    moving = scale > 1e-9
    if not moving.any():
        return np.zeros((len(observation), 2)), np.zeros(2)
    scaled = centred[:, moving] / scale[moving]
    variance, axes = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    missing = 2 - axes.shape[1]
    share = np.clip(variance[::-1][:2], 0, None) / variance.sum()
    return np.pad(scaled @ axes, ((0, 0), (0, missing))), np.pad(share, (0, missing))


def _cells(
    projection: Float64[np.ndarray, "steps 2"],
    group: Int64[np.ndarray, " steps"],
    groups: int,
    rng: np.random.Generator,
) -> tuple[float, ...]:
    low, high = projection.min(axis=0), projection.max(axis=0)
    grid = ((projection - low) / np.where(high > low, high - low, 1) * (_CELLS - 1)).round().astype(np.int64)
    cell = grid[:, 0] * _CELLS + grid[:, 1]
    mine = [cell[group == each] for each in range(groups)]
    fewest = min(len(cells) for cells in mine if len(cells))
    reached = [set(rng.permutation(cells)[:fewest].tolist()) for cells in mine]
    everywhere = set().union(*reached)
    return tuple(len(cells) / len(everywhere) for cells in reached)
