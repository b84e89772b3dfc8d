"""Several environments stepped together, each reset by the caller alone."""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ringrl.envs.suite import make_env
from ringrl.errors import UserError


class VectorEnv(SyncVectorEnv):
    """Gymnasium's `SyncVectorEnv`, whose `infos["rows"]` is an object array [envs] of each environment's own rows.

    Gymnasium would stack them, which fails where an episode's last action is repeated for fewer steps than the others.
    """

    @property
    def time_limit_steps(self) -> int:
        """Environment steps in a whole episode, regardless of the action repeat."""
        return self.get_attr("time_limit_steps")[0]

    @property
    def agent_steps(self) -> int:
        """Agent steps in the longest episode."""
        return -(-self.time_limit_steps // self.get_attr("action_repeat")[0])

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        rest = {key: value for key, value in env_info.items() if key != "rows"}
        infos = super()._add_info(vector_infos, rest, env_num)
        if "rows" in env_info:
            rows = infos.setdefault("rows", np.full(self.num_envs, None, dtype=object))
            rows[env_num] = env_info["rows"]
            infos.setdefault("_rows", np.zeros(self.num_envs, dtype=np.bool_))[env_num] = True
        return infos


def make_vector(
    task: str,
    count: int,
    *,
    seed: int = 0,
    action_repeat: int = 1,
    time_limit: int | None = None,
    render_mode: str | None = None,
) -> VectorEnv:
    """`count` environments of one task in this process, environment i seeded with `seed + i`.

    Observations are float32 [count, O], actions float32 [count, A] in [-1, 1].

    They are never reset by themselves. Reset those that ended, and only those, with
    `reset(options={"reset_mask": bool array [count]})`, before the next step.

    Args:
        task: one of `tasks(domain)`.
        count: number of environments, 1 or more.
        seed: of environment 0.
        action_repeat: environment steps per agent step.
        time_limit: environment steps after which an episode is truncated; None: the task's own limit.
        render_mode: `rgb_array` or none.

    Raises:
        UserError: as `make_env`, and if `count` is below 1.
    """
    if count < 1:
        raise UserError(f"count is {count}: give 1 environment or more")

    def build(index: int) -> Any:
        options = {"action_repeat": action_repeat, "time_limit": time_limit, "render_mode": render_mode}
        return lambda: make_env(task, seed=seed + index, **options)

    return VectorEnv([build(index) for index in range(count)], autoreset_mode=AutoresetMode.DISABLED)
