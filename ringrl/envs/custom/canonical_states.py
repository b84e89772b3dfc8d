"""Members that are a canonical task in substance: who does it is paid by them, and the more the nearer to doing it.

Bounds alone do not tell. Who is still and upright has solved walker stand, and also what asks for a speed of about
0 and an upright torso; who runs at 8 m/s has solved what asks for 5 m/s, and 10. So of each canonical task there are
some states, from doing nothing to doing it, in which a member's rewards are compared with the task's.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64

_DONE = 0.7  # a member pays at least as much to who does the task,
_GAIN = 0.4  # and so much more than to who does nothing,
_ALONG = 0.9  # and on the way there its rewards rise with the task's: the least correlation


def paid_by_doing(
    pay: Callable[[np.ndarray, np.ndarray], np.ndarray],
    members: Float64[np.ndarray, "n parameters"],
    canonical: Float64[np.ndarray, " parameters"],
    states: Float64[np.ndarray, "states features"],
) -> Bool[np.ndarray, " n"]:
    """Whether who learns a member learns the canonical task, as far as some states tell.

    Args:
        pay: features [..., F] and parameters [..., P] -> rewards [...], as of a family.
        members: of the family.
        canonical: the task's parameter.
        states: from doing nothing, the first, to doing the task, the last.
    """
    found = pay(states[-1:], members) >= _DONE
    paid, wanted = pay(states, members[found][:, None]), pay(states, canonical[None])
    paid_above, wanted_above = paid - paid.mean(axis=1, keepdims=True), wanted - wanted.mean()
    size = np.sqrt(np.square(paid_above).sum(axis=1) * np.square(wanted_above).sum())
    rises = paid_above @ wanted_above >= _ALONG * size
    found[found] = rises & (paid[:, -1] - paid[:, 0] >= _GAIN)
    return found
