"""The types that rooms hand to each other. Everything here is NumPy on the host, and frozen.

Time index: step t of an episode observes `observation[t]`, takes `action[t]`, and is paid `reward[t]` for the state
that it reaches. ExoRL's files hold the same facts in rows shifted by one (see `Episode`); after the store all is steps.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64


@dataclass(frozen=True)
class Episode:
    """One trajectory of T transitions as ExoRL stores it: T + 1 rows, of which row 0 is a dummy.

    Row 0 has action 0, reward 0 and discount 1; transition i >= 1 is
    (observation[i-1], action[i], reward[i], discount[i], observation[i]) (ExoRL, replay_buffer.py).
    """

    observation: Float32[np.ndarray, "rows observation"]
    action: Float32[np.ndarray, "rows action"]  # in [-1, 1]
    reward: Float32[np.ndarray, "rows tasks"]  # one column a task
    discount: Float32[np.ndarray, " rows"]  # 0 only where the episode really ended, 1 at a time limit
    physics: Float64[np.ndarray, "rows state"]  # MuJoCo's [qpos, qvel, act] after the row's action

    @property
    def length(self) -> int:
        """T, the number of transitions: one less than the rows."""
        return len(self.observation) - 1
