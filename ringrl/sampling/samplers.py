"""Context samplers: which trajectories make a context, in which order, and with which target returns.

A context sampler is built once from the store's `lengths`, `returns(task)` and `source`. `sample(rng)` then draws a
`ContextPlan`, which is a few integers and no data; `ringrl.sampling.chains.build_chain` reads a plan from the store.

| sampler | a context is | agents |
|---|---|---|
| `WindowSampler` | a window of one episode, or the whole of it | behavior cloning, Decision Transformer |
| `HindsightSampler` | n episodes sorted by return, all conditioned on the best one's | Agentic Transformer |
| `HistorySampler` | n episodes of one learner's history, in the order of learning | Algorithm Distillation |

Lengths, starts and stops count environment steps. With an action repeat of k an agent step is k of them, and starts are
multiples of k.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from ringrl.batch import ContextPlan
from ringrl.errors import UserError
from ringrl.sampling.episode_pools import draw_pool, pool_of, pools_of


@runtime_checkable
class ContextSampler(Protocol):
    """Draws contexts. The loader asks nothing else of a sampler, and so any object with this method is one."""

    def sample(self, rng: np.random.Generator) -> ContextPlan:
        """Draw one context: x ~ p(plan), with all randomness from `rng`, so that equal generators give equal plans."""
        ...


@dataclass(frozen=True, eq=False)
class WindowSampler:
    """One window of one episode (Chen et al. 2021, section 4 and `get_batch` of its code).

    With T_e the length of episode e and W the window, both in agent steps:

        e ~ T_e / sum(T),   t ~ Uniform{0, ..., T_e - 1},   plan = steps t, ..., min(t + W, T_e) - 1 of e

    and t = 0 where W >= T_e. So a late start makes a shorter window. T_e in the first distribution is counted in
    environment steps. The target is the episode's own return; no completion token is 1.

    Attributes:
        lengths: environment steps of every episode of the store.
        returns: undiscounted return of every episode.
        window: W, agent steps; None: whole episodes.
        episodes: the episodes to draw from, such as those of `top_fraction`; None: all.
        action_repeat: environment steps in an agent step.
        target_jitter: j; the target is scaled by u ~ Uniform(1 - j, 1 + j), see `jittered`.
        horizon: of the plans, see `ContextPlan`.
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
        return pool_of(self.lengths, self.episodes)

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " pool"]:
        return np.cumsum(self.lengths[self._pool])

    def sample(self, rng: np.random.Generator) -> ContextPlan:
        """Draw a window: a plan of one piece."""
        # The episode of a uniformly drawn environment step is an episode drawn in proportion to its length.
        episode = self._pool[np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right")]
        length, repeat = int(self.lengths[episode]), self.action_repeat
        start, stop, steps = 0, length, -(-length // repeat)
        if self.window is not None and self.window < steps:
            start = int(rng.integers(steps)) * repeat
            stop = min(start + self.window * repeat, length)
        return ContextPlan(
            episode=np.array([episode], np.int64),
            start=np.array([start], np.int64),
            stop=np.array([stop], np.int64),
            target=jittered(self.returns[[episode]], self.target_jitter, rng),
            completed=np.zeros(1, bool),
            horizon=self.horizon,
        )


@dataclass(frozen=True, eq=False)
class HindsightSampler:
    """A chain of hindsight: n whole episodes, worst return first (Liu & Abbeel 2023, section 3, algorithm 1).

    With R_e the return of episode e:

        e_1, ..., e_n ~ episodes without replacement, ordered so that R_{e_1} <= ... <= R_{e_n}
        target_j = R_{e_n} for all j,   completed_j = [R_{e_j} = R_{e_n}]

    Episodes of equal return keep the order in which they were drawn.

    Attributes:
        lengths: environment steps of every episode of the store.
        returns: R, undiscounted return of every episode.
        trajectories: n, the episodes in a chain.
        episodes: the episodes to draw from; None: all.
        draw: "uniform" draws n of all episodes; "stratified" cuts the episodes, ranked by return, into n equal bands
            and draws one of each, so that every chain climbs through the whole range of returns.
        target_jitter: j; the target is scaled by one u ~ Uniform(1 - j, 1 + j) for the chain, see `jittered`.
        source: the source of each episode, where all episodes of a chain are to be of one source, as where each source
            has another hidden task; None: any episodes go together. A source is drawn in proportion to its episodes.

    Raises:
        UserError: a source has fewer than n episodes.
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
        return pool_of(self.lengths, self.episodes)

    @cached_property
    def _pools(self) -> list[Int64[np.ndarray, " pool"]]:
        """The sets of episodes of which a chain may be drawn: one of all episodes, or one for every source."""
        return pools_of(self._pool, self.source)

    @cached_property
    def _bands(self) -> list[list[Int64[np.ndarray, " band"]]]:
        """Every pool in n parts by return."""
        ranked = [pool[np.argsort(self.returns[pool], kind="stable")] for pool in self._pools]
        return [np.array_split(pool, self.trajectories) for pool in ranked]

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " pools"]:
        return np.cumsum([len(pool) for pool in self._pools], dtype=np.int64)

    def sample(self, rng: np.random.Generator) -> ContextPlan:
        """Draw a chain: a plan of n pieces, each a whole episode."""
        index = draw_pool(rng, self._ends)
        if self.draw == "stratified":
            drawn = np.array([rng.choice(band) for band in self._bands[index]], np.int64)
        else:
            drawn = rng.choice(self._pools[index], self.trajectories, replace=False)
        episode = drawn[np.argsort(self.returns[drawn], kind="stable")]
        best = self.returns[episode].max(keepdims=True)
        target = np.repeat(jittered(best, self.target_jitter, rng), len(episode))
        return whole_episodes(episode, self.lengths, target, completed=self.returns[episode] == best)


@dataclass(frozen=True, eq=False)
class HistorySampler:
    """n whole episodes of one learner's history, in the order of learning (Laskin et al. 2022, section 3).

    With h_1, ..., h_m the episodes of one source and k the thinning, a context is

        h_i, h_{i+k}, ..., h_{i+(n-1)k},   (source, i) ~ Uniform over all pairs for which i + (n - 1) k <= m

    so a source is drawn in proportion to its starts i. The targets are the episodes' own returns, which Algorithm
    Distillation does not use; no completion token is 1.

    Attributes:
        lengths: environment steps of every episode of the store.
        returns: undiscounted return of every episode.
        source: the history of each episode.
        trajectories: n, the episodes in a context.
        every: k; one of k episodes of the history is taken.
        order: "file" takes a history as it was written; "sorted" ranks it by return first, for data in an order that
            does not follow the return (ExoRL's follows an intrinsic reward). `ringrl.quality.return_history` says
            which is needed.

    Raises:
        UserError: a history is too short, or `trajectories` or `every` is below 1.
    """

    lengths: Int64[np.ndarray, " episodes"]
    returns: Float64[np.ndarray, " episodes"]
    source: Int32[np.ndarray, " episodes"]
    trajectories: int
    every: int = 1
    order: Literal["file", "sorted"] = "file"

    def __post_init__(self) -> None:
        """Checks that every history is long enough."""
        pool_of(self.lengths, None)
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
        """Running count of the starts that the histories have."""
        return np.cumsum([len(history) - self._span + 1 for history in self._histories], dtype=np.int64)

    def sample(self, rng: np.random.Generator) -> ContextPlan:
        """Draw a part of a history: a plan of n pieces, each a whole episode."""
        drawn = rng.integers(self._ends[-1])
        index = int(np.searchsorted(self._ends, drawn, side="right"))
        first = int(drawn) - (int(self._ends[index - 1]) if index else 0)
        episode = self._histories[index][first : first + self._span : self.every]
        return whole_episodes(episode, self.lengths, self.returns[episode], completed=np.zeros(len(episode), bool))


def top_fraction(
    lengths: Int64[np.ndarray, " episodes"], returns: Float64[np.ndarray, " episodes"], fraction: float = 0.1
) -> Int64[np.ndarray, " best"]:
    """The episodes of highest return, best first, that together have at most `fraction` of all *environment steps*.

    The best episode is always among them. This is the data of "%BC" (Decision Transformer, section 5.1 and its code),
    where the share counts steps and not episodes.

    Returns:
        Their indices in the store.

    Raises:
        UserError: a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction={fraction}: the share of environment steps must be above 0 and at most 1")
    ranked = np.argsort(-returns, kind="stable").astype(np.int64)
    fitting = np.cumsum(lengths[ranked]) <= fraction * lengths.sum()
    return ranked[: max(1, int(fitting.sum()))]


def jittered(
    target: Float64[np.ndarray, " targets"], jitter: float, rng: np.random.Generator
) -> Float64[np.ndarray, " targets"]:
    """Targets times one factor u ~ Uniform(1 - jitter, 1 + jitter).

    In a rollout, an agent that earns later than the episodes of the data has more return to go than any of them had at
    that step. With jitter training shows the agent such returns-to-go.
    """
    return target * rng.uniform(1 - jitter, 1 + jitter) if jitter else target


def whole_episodes(
    episode: Int64[np.ndarray, " pieces"],
    lengths: Int64[np.ndarray, " episodes"],
    target: Float64[np.ndarray, " pieces"],
    completed: Bool[np.ndarray, " pieces"],
) -> ContextPlan:
    """The plan of whole episodes, in this order, with these targets."""
    return ContextPlan(episode, np.zeros_like(episode), lengths[episode], target, completed)
