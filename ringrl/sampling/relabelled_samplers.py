"""Context samplers of hidden tasks: trajectories in no order, and contexts all of whose rewards are one member's.

| sampler | a context is | agents |
|---|---|---|
| `TrajectorySampler` | n whole episodes in no order | Decision-Pretrained Transformer |
| `MemberSampler` | another sampler's, paid by a drawn member of a family, or a library | all, on tasks of a family |
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64

from ringrl.batch import ContextPlan
from ringrl.envs import is_hidden, is_task
from ringrl.errors import UserError
from ringrl.sampling.episode_pools import draw_pool, pool_of, pools_of
from ringrl.sampling.relabelled import Episodes, RelabelledEpisodes
from ringrl.sampling.samplers import ContextSampler, jittered, whole_episodes
from ringrl.store.episode_store import Store


@dataclass(frozen=True, eq=False)
class TrajectorySampler:
    """n whole episodes in no order (the in-context data set of Lee et al. 2023, section 3).

        n ~ Uniform{fewest, ..., trajectories},   e_1, ..., e_n ~ episodes without replacement

    The targets are 0, for nothing here is conditioned on a return; no completion token is 1.

    Attributes:
        lengths: environment steps of every episode of the store.
        trajectories: the most episodes in a context.
        fewest: the fewest; None: always as many as `trajectories`.
        source: the source of each episode, where all episodes of a context are to be of one source, as where each
            source has another hidden task; None: any episodes go together. A source is drawn in proportion to its
            episodes.

    Raises:
        UserError: a source has fewer episodes than `trajectories`, or `fewest` is not within 1 and `trajectories`.
    """

    lengths: Int64[np.ndarray, " episodes"]
    trajectories: int
    fewest: int | None = None
    source: Int32[np.ndarray, " episodes"] | None = None

    def __post_init__(self) -> None:
        """Checks that a context can be drawn."""
        there = min(len(pool) for pool in self._pools)
        if not 1 <= self._fewest <= self.trajectories <= there:
            raise UserError(
                f"contexts of {self._fewest} to {self.trajectories} trajectories cannot be drawn from {there} episodes "
                f"{'' if self.source is None else 'of a source'}; ask for 1 to {there}, or collect more episodes"
            )

    @property
    def _fewest(self) -> int:
        return self.trajectories if self.fewest is None else self.fewest

    @cached_property
    def _pools(self) -> list[Int64[np.ndarray, " pool"]]:
        return pools_of(pool_of(self.lengths, None), self.source)

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " pools"]:
        return np.cumsum([len(pool) for pool in self._pools], dtype=np.int64)

    def sample(self, rng: np.random.Generator) -> ContextPlan:
        """Draw a context: a plan of n pieces, each a whole episode."""
        count = int(rng.integers(self._fewest, self.trajectories + 1))
        episode = rng.choice(self._pools[draw_pool(rng, self._ends)], count, replace=False)
        return whole_episodes(episode, self.lengths, np.zeros(count), completed=np.zeros(count, bool))


@dataclass(frozen=True, eq=False)
class MemberSampler:
    """A context of another sampler, all of whose rewards are those of one member of a family, drawn for it.

    With e_1, ..., e_n the episodes of the other's plan and R_e their returns under the member:

        m: at a share of contexts one that pays at a state of an e_j, j uniform, else drawn as tasks are
        order "drawn":      as the other has them; target_j = R_{e_j}, no completion token is 1
        order "ascending":  R_{e_1} <= ... <= R_{e_n}; target_j = R_{e_n}, completed_j = [R_{e_j} = R_{e_n}]

    The second is a chain of hindsight (Liu & Abbeel 2023, section 3). Episodes of equal return keep their order. Of a
    library, each piece is paid by one of the members that are drawn for the context (`RelabelledEpisodes`).

    Attributes:
        inner: draws the episodes; its targets are not used.
        episodes: the episodes, the family, and the share of members by hindsight.
        order: of the pieces.
        conditioned: whether targets are wanted; False: they are the other's, and no return is computed. An ascending
            order has them always.
        target_jitter: j; the targets are scaled by one u ~ Uniform(1 - j, 1 + j) for the context.
    """

    inner: ContextSampler
    episodes: RelabelledEpisodes
    order: Literal["drawn", "ascending"] = "drawn"
    conditioned: bool = True
    target_jitter: float = 0.0

    def sample(self, rng: np.random.Generator) -> ContextPlan:
        """Draw a context and its member."""
        plan = self.inner.sample(rng)
        parameter = self.episodes.draw_context(rng, plan.episode)
        if self.order == "drawn" and not self.conditioned:
            return replace(plan, parameter=parameter)
        returns = self.episodes.returns_under(plan.episode, parameter)
        if self.order == "drawn":
            return replace(plan, target=jittered(returns, self.target_jitter, rng), parameter=parameter)
        rank = np.argsort(returns, kind="stable")
        best = returns.max(keepdims=True)
        return replace(
            plan,
            episode=plan.episode[rank],
            start=plan.start[rank],
            stop=plan.stop[rank],
            target=np.repeat(jittered(best, self.target_jitter, rng), len(rank)),
            completed=returns[rank] == best,
            parameter=parameter[rank],
        )


def sample_one_task(
    episodes: Episodes, task: str, trajectories: int, fewest: int | None, *, within_source: bool
) -> ContextSampler:
    """Whole episodes of one task in no order; on tasks of a family all paid by a member drawn for them.

    Args:
        episodes: what is drawn from.
        task: whose rewards.
        trajectories: as in `TrajectorySampler`.
        fewest: likewise.
        within_source: whether a context is of one source only.

    Raises:
        UserError: as `TrajectorySampler`, and where a context would mix the hidden tasks of several sources.
    """
    recorded = is_task(task) and is_hidden(task)
    if isinstance(episodes, Store) and recorded and not within_source and len(episodes.sources) > 1:
        raise UserError(
            f"agent.within_source is false, and contexts of {task} would mix the tasks of {len(episodes.sources)} "
            "sources; set agent.within_source=true"
        )
    source = episodes.source if within_source else None
    whole = TrajectorySampler(episodes.lengths, trajectories, fewest, source=source)
    return MemberSampler(whole, episodes, conditioned=False) if isinstance(episodes, RelabelledEpisodes) else whole
