"""What is printed of a store."""

import numpy as np

from ringrl.episode import Episode
from ringrl.store.builder import build
from ringrl.store.episode_store import open_store
from ringrl.store.store_summary import summary


def test_a_summary_has_the_sizes_and_every_tasks_returns(tmp_path):
    rewards = (np.full((4, 2), [1.0, 0.5]), np.full((4, 2), [2.0, 0.5]), np.full((4, 2), [4.0, 0.5]))
    episodes = [Episode.from_arrays(np.zeros((5, 3)), np.zeros((4, 1)), each, terminated=False) for each in rewards]
    store = open_store(build(tmp_path / "s", episodes, domain="rig", tasks=["rig_run", "rig_walk"]))
    assert summary(store, "1 source(s)").splitlines() == [
        f"{tmp_path / 's'}: 3 episodes of rig, 12 steps, from 1 source(s)",
        "  rig_run: return 4.0 to 16.0, median 8.0",
        "  rig_walk: return 2.0 to 2.0, median 2.0",
    ]
