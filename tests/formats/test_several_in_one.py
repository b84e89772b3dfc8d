"""Files in which one episode follows another, as nothing but the second dummy row shows."""

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.formats.exorl import read_episode
from tests.formats.test_exorl import save


def two_in_one(seed, rests=0.0):
    """A walk of small steps, which begins anew at row 101 of 201; of a share of the steps no action was taken."""
    rng = np.random.default_rng(seed)
    walk = np.concatenate([5 * rng.normal(size=3) + 0.1 * rng.normal(size=(rows, 3)).cumsum(0) for rows in (101, 100)])
    action = rng.uniform(-1, 1, (201, 2)) * (rng.random((201, 1)) >= rests)
    action[[0, 101]] = 0
    return {
        "observation": walk.astype(np.float32),
        "action": action.astype(np.float32),
        "reward": np.where(action.any(axis=1, keepdims=True), 0.5, 0).astype(np.float32),
        "discount": np.ones((201, 1), np.float32),
    }


@pytest.mark.parametrize("seed", range(5))
def test_two_episodes_cut_by_time_limits_are_known_by_the_second_dummy_row(tmp_path, seed):
    arrays = two_in_one(seed)
    name = "episode_000000_200.npz"
    with pytest.raises(UserError, match="row 101 begins another episode; write a file for each: rows 0 to 100"):
        read_episode(save(tmp_path, arrays, name))
    without_jump = arrays | {"observation": (0.1 * np.arange(603).reshape(201, 3)).astype(np.float32)}
    assert read_episode(save(tmp_path, without_jump, name)).length == 200
    assert read_episode(save(tmp_path, two_in_one(seed, rests=0.2), name)).length == 200
