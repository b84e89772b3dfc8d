"""The lean stepping of vectors against dm_control's own loop: every reward, end, observation and state, bit for bit."""

import numpy as np
import pytest
from dm_control.rl.control import PhysicsError

from ringrl import envs
from ringrl.errors import UserError

# A task of every domain, with Euler and Runge-Kutta integrators, one substep and many, and early ends.
TASKS = [envs.tasks(domain)[0] for domain in envs.domains()]
HEAVY = {"dog", "stacker", "humanoid_CMU", "quadruped"}


@pytest.mark.parametrize("task", [each for each in TASKS if envs.split_task(each)[0] not in HEAVY])
@pytest.mark.parametrize("action_repeat", [1, 3])
def test_advancing_gives_the_bits_of_stepping(task, action_repeat):
    try:
        lean, whole = (envs.make_env(task, seed=5, action_repeat=action_repeat, time_limit=20) for _ in range(2))
    except UserError:
        pytest.skip("Gymnasium cannot make it with this MuJoCo")
    rng, seen = np.random.default_rng(0), np.empty(lean.observation_space.shape, np.float32)
    for _ in range(2):
        lean.start(seen)
        np.testing.assert_array_equal(seen, whole.reset()[0])
        ended = False
        while not ended:
            action = rng.uniform(-1, 1, lean.action_space.shape).astype(np.float32)
            *lean_step, length = lean.advance(lean.control(action), seen)
            observation, *step, info = whole.step(action)
            assert (lean_step, length) == (step, len(info["rows"]["reward"]))
            np.testing.assert_array_equal(seen, observation)
            np.testing.assert_array_equal(lean.physics.get_state(), info["physics"])
            ended = step[1] or step[2]


def test_a_simulation_that_diverges_is_an_error():
    env = envs.make_env("cheetah_run")
    seen = np.empty(17, np.float32)
    env.start(seen)
    env.physics.data.qvel[:] = 1e12
    with pytest.raises(PhysicsError, match="mjWARN_BADQVEL|mjWARN_BADQACC|mjWARN_BADQPOS"):
        env.advance(np.zeros(6), seen)
