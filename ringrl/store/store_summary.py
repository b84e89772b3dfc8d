"""What a data step prints of the store that it has built."""

import numpy as np

from ringrl.store.episode_store import Store


def summary(store: Store, origin: str) -> str:
    """A line of the store's sizes and where its episodes came from, and a line of returns for every task.

    Args:
        store: an open store.
        origin: what it was built from, for people, such as `2 source(s)`.

    Raises:
        UserError: if the store cannot be read.
    """
    lines = [f"{store.path}: {store.episodes} episodes of {store.domain}, {store.lengths.sum()} steps, from {origin}"]
    for task in store.tasks:
        low, middle, high = np.percentile(store.returns(task), [0, 50, 100])
        lines.append(f"  {task}: return {low:.1f} to {high:.1f}, median {middle:.1f}")
    return "\n".join(lines)
