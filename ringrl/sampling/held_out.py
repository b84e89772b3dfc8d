"""Which episodes of a store are held out of training, so that a loss can be measured on them."""

import numpy as np
from jaxtyping import Int32, Int64

from ringrl.errors import UserError

MANY = 10
"""Sources from which on whole sources are held out."""


def split_episodes(
    source: Int32[np.ndarray, " episodes"], share: float
) -> tuple[Int64[np.ndarray, " _training"], Int64[np.ndarray, " _held_out"]]:
    """The episodes to train on and those held out, each in the store's order; the same for every seed.

    Of `MANY` sources or more, such as histories of hidden tasks, whole ones are held out: of a context that has seen
    another trial of the same task more could be guessed. Of fewer, episodes of each are, spread evenly over its course,
    so that both parts show the whole of a learner's history.

    Args:
        source: of each episode.
        share: of the sources or episodes, above 0 and below 1; at least one is held out, and at least one is not.

    Raises:
        UserError: there are too few episodes.
    """
    sources = np.unique(source)
    if len(sources) >= MANY:
        left_out = np.isin(source, sources[_spread(len(sources), share)])
    else:
        left_out = np.zeros(len(source), bool)
        for each in sources:
            episodes = np.flatnonzero(source == each)
            left_out[episodes[_spread(len(episodes), share)]] = True
    parts = np.flatnonzero(~left_out).astype(np.int64), np.flatnonzero(left_out).astype(np.int64)
    if not all(map(len, parts)):
        raise UserError(
            f"validation_share={share} of {len(source)} episodes leaves none on one side; change it, or collect more"
        )
    return parts


def _spread(count: int, share: float) -> Int64[np.ndarray, " chosen"]:
    """So many of `count` things, at even distances; one at least where there are two or more."""
    chosen = min(max(round(count * share), 1), count - 1)
    return ((np.arange(chosen, dtype=np.int64) * 2 + 1) * count // (2 * max(chosen, 1))).astype(np.int64)
