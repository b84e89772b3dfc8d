"""What tests of several rooms make: episodes, stores, configurations, runs, and the shorter episodes of evaluations.

`from tests.builders import make_episode`.
"""

from functools import partial

import pytest


def limit_evaluation(patch: pytest.MonkeyPatch, time_limit: int) -> None:
    """Evaluations roll out episodes of at most `time_limit` environment steps, until `patch` is undone."""
    from ringrl.envs import make_vector

    patch.setattr("ringrl.rollout.evaluate.make_vector", partial(make_vector, time_limit=time_limit))
