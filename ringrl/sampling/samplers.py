"""Which trajectories stand in one context, in which order, and with which target returns; and how they are read.

A planner is built once from the store's `lengths`, `returns(task)` and `source`, and then draws any number of
`ContextPlan`s; a plan is a few integers and no data. `build_chain` (in `reader.py`) reads a plan from the store.

| planner | a chain is | agents |
|---|---|---|
| `WindowSampler` | a window of one episode, or the whole of it | behavior cloning, Decision Transformer |
| `HindsightSampler` | n episodes sorted by return, all told to reach the best one's | Agentic Transformer |
| `HistorySampler` | n episodes from one learner's history, in the order of learning | Algorithm Distillation |

Lengths, starts and stops count environment steps. With an action repeat of k a *decision* is k steps, and starts are
multiples of k.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from ringrl.batch import ContextPlan
from ringrl.errors import UserError
from ringrl.sampling.chains import build_chain, decisions

__all__ = [
    "HindsightSampler",
    "HistorySampler",
    "ContextSampler",
    "WindowSampler",
    "build_chain",
    "decisions",
    "top_fraction",
]


@runtime_checkable
class ContextSampler(Protocol):
    """Draws chains: the one thing that the loader asks of any planner, the user's own included."""

    def sample(self, rng: np.random.Generator) -> ContextPlan:
        """One chain, all of its randomness from `rng`."""
        ...


@dataclass(frozen=True, eq=False)
class WindowSampler:
    """Windows of single episodes: the episode drawn in proportion to its length, the start uniformly.

    The window ends where the episode ends, so a late start makes a shorter one (Decision Transformer, section 4 and its
    `get_batch`). The target is the episode's own return, and the completion token is never set.

    Attributes:
        lengths: environment steps of every episode of the store.
        returns: undiscounted return of every episode.
        window: decisions in a window; None, or at least as many as the episode has, gives whole episodes.
        episodes: the episodes to draw from, such as those of `top_fraction`; None is all.
        action_repeat: environment steps in a decision.
        target_jitter: see `_jittered`.
        horizon: decisions over which returns-to-go are counted, as rates (`build_chain`); None: to the episode's end.
    """

    lengths: Int64[np.ndarray, " episodes"]
    returns: Float64[np.ndarray, " episodes"]
    window: int | None = None
    episodes: Int64[np.ndarray, " subset"] | None = None
    action_repeat: int = 1
    target_jitter: float = 0.0
    horizon: int | None = None

    @cached_property
    def _pool(self) -> Int64[np.ndarray, " pool"]:
        return _pool(self.lengths, self.episodes)

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " pool"]:
        return np.cumsum(self.lengths[self._pool])

    def sample(self, rng: np.random.Generator) -> ContextPlan:
        """One window."""
        # The episode that holds a uniformly drawn step is an episode drawn in proportion to its length.
        episode = self._pool[np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right")]
        length, repeat = int(self.lengths[episode]), self.action_repeat
        start, stop, decisions = 0, length, -(-length // repeat)
        if self.window is not None and self.window < decisions:
            start = int(rng.integers(decisions)) * repeat
            stop = min(start + self.window * repeat, length)
        return ContextPlan(
            episode=np.array([episode], np.int64),
            start=np.array([start], np.int64),
            stop=np.array([stop], np.int64),
            target=_jittered(self.returns[[episode]], self.target_jitter, rng),
            completed=np.zeros(1, bool),
        )


@dataclass(frozen=True, eq=False)
class HindsightSampler:
    """Chains of hindsight: whole episodes, worst return first, each told to reach the best (Liu & Abbeel 2023, sec. 3).

    The target of every trajectory is the chain's largest return; a trajectory is completed if it reached it. Episodes
    of equal return keep the order in which they were drawn.

    Attributes:
        lengths: environment steps of every episode of the store.
        returns: undiscounted return of every episode.
        trajectories: n, the episodes in a chain, drawn without replacement.
        episodes: the episodes to draw from; None is all.
        draw: "uniform" draws n of all episodes; "stratified" cuts the episodes, ranked by return, into n equal bands
            and draws one of each, so that every chain climbs through the whole range of returns.
        target_jitter: see `_jittered`.
        source: which source each episode belongs to, where a chain must not cross from one into another, as where
            each is of another hidden task; None: they are all alike. A source is drawn in proportion to its episodes.
    """

    lengths: Int64[np.ndarray, " episodes"]
    returns: Float64[np.ndarray, " episodes"]
    trajectories: int
    episodes: Int64[np.ndarray, " subset"] | None = None
    draw: Literal["uniform", "stratified"] = "uniform"
    target_jitter: float = 0.0
    source: Int32[np.ndarray, " episodes"] | None = None

    def __post_init__(self) -> None:
        """Checks that a chain can be drawn."""
        fewest = min(len(pool) for pool in self._pools)
        if not 1 <= self.trajectories <= fewest:
            raise UserError(
                f"a chain of {self.trajectories} trajectories cannot be drawn from {fewest} episodes; "
                f"ask for 1 to {fewest} trajectories or collect more episodes"
            )

    @cached_property
    def _pool(self) -> Int64[np.ndarray, " pool"]:
        return _pool(self.lengths, self.episodes)

    @cached_property
    def _pools(self) -> list[Int64[np.ndarray, " pool"]]:
        """The episodes that may stand in one chain together: all, or those of a source."""
        if self.source is None:
            return [self._pool]
        of = self.source[self._pool]
        order = np.argsort(of, kind="stable")
        return np.split(self._pool[order], np.flatnonzero(np.diff(of[order])) + 1)

    @cached_property
    def _bands(self) -> list[list[Int64[np.ndarray, " band"]]]:
        """Of every pool, its n parts by return."""
        ranked = [pool[np.argsort(self.returns[pool], kind="stable")] for pool in self._pools]
        return [np.array_split(pool, self.trajectories) for pool in ranked]

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " pools"]:
        return np.cumsum([len(pool) for pool in self._pools], dtype=np.int64)

    def sample(self, rng: np.random.Generator) -> ContextPlan:
        """One chain."""
        several = len(self._pools) > 1
        index = int(np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right")) if several else 0
        if self.draw == "stratified":
            drawn = np.array([rng.choice(band) for band in self._bands[index]], np.int64)
        else:
            drawn = rng.choice(self._pools[index], self.trajectories, replace=False)
        episode = drawn[np.argsort(self.returns[drawn], kind="stable")]
        best = self.returns[episode].max(keepdims=True)
        target = np.repeat(_jittered(best, self.target_jitter, rng), len(episode))
        return _whole_episodes(episode, self.lengths, target, completed=self.returns[episode] == best)


@dataclass(frozen=True, eq=False)
class HistorySampler:
    """Stretches of one learner's history, thinned, in the order of learning (Laskin et al. 2022, section 3).

    A chain is n whole episodes of *one* source, every k-th of a stretch that starts anywhere (so with a random phase).
    It never crosses from one source into another. Sources are drawn in proportion to the stretches that they hold. The
    targets are the episodes' own returns, which agents of this kind do not look at.

    Attributes:
        lengths: environment steps of every episode of the store.
        returns: undiscounted return of every episode.
        source: which history each episode belongs to.
        trajectories: n, the episodes in a chain.
        every: k, of how many episodes of the history one is kept.
        order: "file" takes a history as it was written; "sorted" ranks it by return first, for data whose order does
            not follow the return (ExoRL's follows an intrinsic reward). `history.monotonicity` tells which is needed.
    """

    lengths: Int64[np.ndarray, " episodes"]
    returns: Float64[np.ndarray, " episodes"]
    source: Int32[np.ndarray, " episodes"]
    trajectories: int
    every: int = 1
    order: Literal["file", "sorted"] = "file"

    def __post_init__(self) -> None:
        """Checks that every history is long enough."""
        _pool(self.lengths, None)
        if self.trajectories < 1 or self.every < 1:
            raise UserError(f"trajectories={self.trajectories}, every={self.every}: both must be at least 1")
        for history in self._histories:
            if len(history) < self._span:
                raise UserError(
                    f"the history of source {self.source[history[0]]} has {len(history)} episodes, and "
                    f"{self.trajectories} trajectories of every {self.every} span {self._span}; "
                    "lower trajectories or every, or drop that source from the store"
                )

    @property
    def _span(self) -> int:
        return (self.trajectories - 1) * self.every + 1

    @cached_property
    def _histories(self) -> list[Int64[np.ndarray, " history"]]:
        histories = [np.flatnonzero(self.source == each).astype(np.int64) for each in np.unique(self.source)]
        if self.order == "sorted":
            return [history[np.argsort(self.returns[history], kind="stable")] for history in histories]
        return histories

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " histories"]:
        """Running count of the stretches that the histories hold."""
        return np.cumsum([len(history) - self._span + 1 for history in self._histories], dtype=np.int64)

    def sample(self, rng: np.random.Generator) -> ContextPlan:
        """One stretch."""
        drawn = rng.integers(self._ends[-1])
        index = int(np.searchsorted(self._ends, drawn, side="right"))
        first = int(drawn) - (int(self._ends[index - 1]) if index else 0)
        episode = self._histories[index][first : first + self._span : self.every]
        return _whole_episodes(episode, self.lengths, self.returns[episode], completed=np.zeros(len(episode), bool))


def top_fraction(
    lengths: Int64[np.ndarray, " episodes"], returns: Float64[np.ndarray, " episodes"], fraction: float = 0.1
) -> Int64[np.ndarray, " best"]:
    """The episodes of highest return, best first, that together hold at most `fraction` of all *time steps*.

    The best episode is always among them. This is the data of "%BC" (Decision Transformer, section 5.1 and its code),
    where the share counts time steps and not episodes.

    Raises:
        UserError: a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction={fraction}: the share of time steps must be above 0 and at most 1")
    ranked = np.argsort(-returns, kind="stable").astype(np.int64)
    fitting = np.cumsum(lengths[ranked]) <= fraction * lengths.sum()
    return ranked[: max(1, int(fitting.sum()))]


def _pool(
    lengths: Int64[np.ndarray, " episodes"], episodes: Int64[np.ndarray, " subset"] | None
) -> Int64[np.ndarray, " pool"]:
    """The episodes to draw from, of which there must be one."""
    pool = np.arange(len(lengths), dtype=np.int64) if episodes is None else episodes
    if not len(pool):
        raise UserError("there are no episodes to make chains from; build the store from at least one episode")
    return pool


def _jittered(
    target: Float64[np.ndarray, " targets"], jitter: float, rng: np.random.Generator
) -> Float64[np.ndarray, " targets"]:
    """Targets scaled by a factor drawn from 1 - jitter to 1 + jitter, so that a policy learns to act well also when it
    is behind.

    In a rollout, whoever earns later than the data did has more return to go than the data ever had at that step;
    without jitter an agent has never seen that, and falls apart.
    """
    return target * rng.uniform(1 - jitter, 1 + jitter) if jitter else target


def _whole_episodes(
    episode: Int64[np.ndarray, " pieces"],
    lengths: Int64[np.ndarray, " episodes"],
    target: Float64[np.ndarray, " pieces"],
    completed: Bool[np.ndarray, " pieces"],
) -> ContextPlan:
    return ContextPlan(episode, np.zeros_like(episode), lengths[episode], target, completed)
