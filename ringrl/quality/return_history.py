"""What a collector's history says of its data: whether returns rise, and whether they are the policy's or luck's."""

from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float64


def monotonicity(returns: Float64[np.ndarray, " history"]) -> float:
    """Spearman's rank correlation of return with position in a history: 1 rises always, -1 falls always.

    It is 0 where no return differs from another, since there is no order.
    """
    return _rank_correlation(np.arange(len(returns), dtype=np.float64), returns)


def persistence(returns: Float64[np.ndarray, " history"]) -> float:
    """Spearman's rank correlation of each episode's return with that of the one before, in one collector's history.

    Neighbours are of nearly the same policy, so what does not carry over from one to the next is the initial state's
    luck, or chance. Where it is near 0, choosing episodes by their return chooses lucky ones, whose policies are no
    better than others, and asking for a high return asks for luck (Paster et al. 2022). A policy that changes much
    between neighbours lowers it too. It is 0 where no return differs from another.
    """
    return _rank_correlation(returns[:-1], returns[1:])


def regressed(returns: Float64[np.ndarray, " history"]) -> Float64[np.ndarray, " history"]:
    """What a clone of each episode can expect to earn: the history's mean, and what persists of the distance from it.

    Of a lead over the mean, the share that `persistence` says is the policy's comes again, and luck does not: that is
    regression to the mean (Galton 1886), with the rank correlation as the line's slope. docs/results.md has it beside
    what clones of the best episodes earned.
    """
    mean = returns.mean()
    return mean + max(persistence(returns), 0.0) * (returns - mean)


def _rank_correlation(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    found: Any = scipy.stats.spearmanr(x, y)  # SciPy's stubs do not name its fields
    return float(found.statistic)
