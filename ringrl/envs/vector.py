"""Several environments stepped together, in this process or by all cores, each reset by the caller alone."""

import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float32, Float64

from ringrl.envs.env_batch import EnvBatch, EnvSettings, StepArrays
from ringrl.envs.env_pool import EnvPool, PooledBatch, cores
from ringrl.envs.suite import DMControlEnv
from ringrl.errors import UserError

Stepped = tuple[
    Float32[np.ndarray, "envs observation"],
    Float64[np.ndarray, " envs"],
    Bool[np.ndarray, " envs"],
    Bool[np.ndarray, " envs"],
    dict[str, Any],
]
"""Observation, reward, terminated, truncated, infos; `infos["length"]` int64 [envs]: environment steps done."""

# Below these, processes cost more than they save. A step of all environments: a command and its answer take some 50 us
# in every process; measured on 2 cores, both ways are equal at 400 to 600 us. All trials: what starting takes.
_WORTH_WORKERS_STEP_S, _WORTH_WORKERS_S = 500e-6, 0.5
_TIMED_STEPS = 20


class LocalBatch(EnvBatch):
    """A batch in this process: what is begun is done at once."""

    def __init__(self, settings: EnvSettings, seeds: Sequence[int], widths: tuple[int, int]):
        """An environment for each of `seeds`; `widths` of observation and action."""
        size = StepArrays.layout(len(seeds), *widths)[1]
        self.arrays = StepArrays.over(bytearray(size), len(seeds), *widths)
        super().__init__(settings, seeds, self.arrays)

    def wait(self) -> None:
        """All is done."""


class VectorEnv(gymnasium.vector.VectorEnv):
    """Environments of one task under Gymnasium's vector API, which are never reset by themselves.

    `step` is `step_async` and `step_wait`; between them the caller can compute something else, such as the actions of
    another `VectorEnv` that shares the worker processes. Arrays that are returned are the caller's own.

    Attributes:
        first: index of its first environment among those of `make_groups`; 0 otherwise.
        time_limit_steps: environment steps in a whole episode, regardless of the action repeat.
        agent_steps: agent steps in the longest episode.
        envs: the environments, where they are in this process; empty where workers have them.
        pool: the worker processes that step them; None: this process does.
    """

    def __init__(self, batch: LocalBatch | PooledBatch, example: DMControlEnv, first: int, pool: EnvPool | None):
        """`example`: an environment as those of `batch`; `pool`: to be closed with the last that was given it."""
        self._batch, self._pool = batch, pool
        self.pool = batch.pool if isinstance(batch, PooledBatch) else None
        if pool is not None:
            pool.users += 1
        self.first, self.num_envs = first, len(batch.arrays.reward)
        self.time_limit_steps = example.time_limit_steps
        self.agent_steps = example.agent_steps
        self.single_observation_space, self.single_action_space = example.observation_space, example.action_space
        self.observation_space = batch_space(example.observation_space, self.num_envs)
        self.action_space = batch_space(example.action_space, self.num_envs)
        self.render_mode = example.render_mode
        self.metadata = {**example.metadata, "autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}

    @property
    def envs(self) -> Sequence[DMControlEnv]:
        """See the class."""
        return self._batch.envs

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32[np.ndarray, "envs observation"], dict[str, Any]]:
        """Start episodes: of all environments, or of those in `options["reset_mask"]`, bool [envs].

        With a seed, environment i starts as from `seed + i`; else each continues its own draws.

        Returns:
            The observation of every environment, of those that are not reset the last one; and no infos.

        Raises:
            UserError: as `DMControlEnv.reset`, and if a worker has died.
        """
        self._batch.arrays.which[:] = True if options is None else options.get("reset_mask", True)
        self._batch.reset([None if seed is None else seed + index for index in range(self.num_envs)])
        self._batch.wait()
        return self._batch.arrays.observation.copy(), {}

    def step_async(
        self,
        actions: Float32[np.ndarray, "envs action"],
        which: Bool[np.ndarray, " envs"] | None = None,
        *,
        restart: bool = False,
    ) -> None:
        """Begin an agent step of all environments, or of those in `which`; `step_wait` gives what came of it.

        With `restart`, an environment whose episode ends in this step begins its next one at once: the observation is
        then the new episode's first, while reward, ends and length are those of the last step.

        Raises:
            UserError: if the actions are not [envs, A], or a worker has died.
            gymnasium.error.ResetNeeded: in this process, if an episode has ended and was not reset.
        """
        arrays = self._batch.arrays
        if actions.shape != arrays.action.shape:
            raise UserError(f"actions have the shape {actions.shape}; give {arrays.action.shape}: environments, width")
        arrays.action[:] = actions
        arrays.which[:] = True if which is None else which
        self._batch.step(restart)

    def step_wait(self) -> Stepped:
        """Wait for the step; of environments that were not in `which`, reward and length are 0.

        Raises:
            UserError: in one line, if an environment in a worker raised an error or a worker has died.
        """
        self._batch.wait()
        _, _, observation, reward, terminated, truncated, length = self._batch.arrays
        infos = {"length": length.copy()}
        return observation.copy(), reward.copy(), terminated.copy(), truncated.copy(), infos

    def step(self, actions: Float32[np.ndarray, "envs action"]) -> Stepped:
        """One agent step of all environments; errors are those of `step_async` and `step_wait`."""
        self.step_async(actions)
        return self.step_wait()

    def expert(self) -> Float32[np.ndarray, "envs action"]:
        """What the task's own expert does in each environment's present state, in [-1, 1].

        Raises:
            UserError: if the task has none.
        """
        self._batch.expert()
        self._batch.wait()
        return self._batch.arrays.action.copy()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments, and, as the last of its groups, end the worker processes started for them."""
        self._batch.close()
        if self._pool is not None:
            self._pool.users -= 1
            if not self._pool.users:
                self._pool.close()


def make_vector(
    task: str,
    count: int,
    *,
    seed: int = 0,
    action_repeat: int = 1,
    time_limit: int | None = None,
    render_mode: str | None = None,
    workers: int | EnvPool | None = 0,
) -> VectorEnv:
    """`count` environments of one task, environment i seeded with `seed + i`.

    Observations are float32 [count, O], actions float32 [count, A] in [-1, 1].

    >>> from ringrl.envs import make_vector
    >>> with_workers = make_vector("cartpole_swingup", 4, workers=2)
    >>> observation, _ = with_workers.reset(seed=0)
    >>> with_workers.step(with_workers.action_space.sample())[4]["length"].tolist()
    [1, 1, 1, 1]
    >>> with_workers.close()

    Reset those that ended, and only those, with `reset(options={"reset_mask": bool array [count]})`, before the next
    step. Nothing that comes out depends on `workers`.

    Args:
        task: one of `tasks(domain)`.
        count: number of environments, 1 or more.
        seed: of environment 0.
        action_repeat: environment steps per agent step.
        time_limit: environment steps after which an episode is truncated; None: the task's own limit.
        render_mode: `rgb_array` or none.
        workers: processes that step them; 0: this one; None: one a core where that is faster, which is measured; or an
            `EnvPool`, which is not closed with the environments.

    Raises:
        UserError: as `make_env`, and if `count` is below 1.
    """
    settings = EnvSettings(task, action_repeat, time_limit, render_mode)
    return _make(settings, count, 1, seed, workers)[0]


def make_groups(
    task: str,
    count: int,
    groups: int = 2,
    *,
    seed: int = 0,
    action_repeat: int = 1,
    time_limit: int | None = None,
    workers: int | EnvPool | None = None,
    trials: int = 1,
) -> list[VectorEnv]:
    """The environments of `make_vector` in groups that share the worker processes: one steps while another computes.

    Group g has the environments from `first` on, in order, as evenly as it goes; each is seeded as in `make_vector`.
    Close all of them: the last ends the worker processes that were started here.

    Args:
        task: one of `tasks(domain)`.
        count: number of environments in all groups, 1 or more.
        groups: number of groups; as many as environments if those are fewer.
        seed: of environment 0 of all.
        action_repeat: environment steps per agent step.
        time_limit: environment steps after which an episode is truncated; None: the task's own limit.
        workers: as in `make_vector`.
        trials: to come in each environment: a few short ones are over before worker processes have started.

    Raises:
        UserError: as `make_env`, and if `count` or `groups` is below 1.
    """
    if groups < 1:
        raise UserError(f"groups is {groups}: give 1 or more")
    return _make(EnvSettings(task, action_repeat, time_limit), count, groups, seed, workers, trials)


def _make(
    settings: EnvSettings, count: int, groups: int, seed: int, workers: int | EnvPool | None, trials: int = 1
) -> list[VectorEnv]:
    if count < 1:
        raise UserError(f"count is {count}: give 1 environment or more")
    example = settings.make(seed)
    if workers is None:
        workers = 0 if min(count, cores()) < 2 or not _worth_workers(example, count, trials) else min(count, cores())
    pool = EnvPool(workers) if isinstance(workers, int) and workers != 0 else workers or None
    parts = np.array_split(np.arange(count), min(groups, count))
    made = []
    for part in parts:
        seeds, first = (seed + part).tolist(), int(part[0])
        if pool is None:
            batch = LocalBatch(settings, seeds, example.widths)
        else:
            batch = PooledBatch(pool, settings, seeds, first, example.widths)
        made.append(VectorEnv(batch, example, first, None if pool is workers else pool))
    example.close()
    return made


def _worth_workers(example: DMControlEnv, count: int, trials: int) -> bool:
    """Whether steps and trials of all environments take long enough; measured on one that is not used otherwise."""
    out = np.empty(example.widths[0], np.float32)
    control = example.control(np.zeros(example.widths[1], np.float32))
    example.start(out)
    began, done, ended = time.perf_counter(), 0, False
    while done < _TIMED_STEPS and not ended:
        _, terminated, truncated, _ = example.advance(control, out)
        done, ended = done + 1, terminated or truncated
    step = (time.perf_counter() - began) / done * count
    whole = step * example.agent_steps * trials
    return step > _WORTH_WORKERS_STEP_S and whole > _WORTH_WORKERS_S
