"""Which episodes a context sampler draws from: all or some of a store's, together or each source by itself."""

import numpy as np
from jaxtyping import Int32, Int64

from ringrl.errors import UserError


def pool_of(
    lengths: Int64[np.ndarray, " episodes"], episodes: Int64[np.ndarray, " subset"] | None
) -> Int64[np.ndarray, " pool"]:
    """The episodes to draw from: all, or `episodes`. Raises UserError where there is none."""
    pool = np.arange(len(lengths), dtype=np.int64) if episodes is None else episodes
    if not len(pool):
        raise UserError("there are no episodes to make chains from; build the store from at least one episode")
    return pool


def pools_of(
    pool: Int64[np.ndarray, " pool"], source: Int32[np.ndarray, " episodes"] | None
) -> list[Int64[np.ndarray, " _part"]]:
    """The episodes of a pool in sets, one for every source; without `source` one of all."""
    if source is None:
        return [pool]
    of = source[pool]
    order = np.argsort(of, kind="stable")
    return np.split(pool[order], np.flatnonzero(np.diff(of[order])) + 1)


def draw_pool(rng: np.random.Generator, ends: Int64[np.ndarray, " pools"]) -> int:
    """The index of one of several pools, in proportion to their sizes, of which `ends` are the running sums."""
    return int(np.searchsorted(ends, rng.integers(ends[-1]), side="right")) if len(ends) > 1 else 0
