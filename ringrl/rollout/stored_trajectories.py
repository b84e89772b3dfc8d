"""Which trajectories of a store environments are shown, and with whose rewards.

| task | trajectories | rewards |
|---|---|---|
| any with one reward | the same for all, or drawn for each (`apart`) | the store's, or from physics states |
| hidden, of data of other hidden tasks | the same for all environments | of each one's task, from physics states |
| of a family of rewards, on data of its domain | drawn for each environment | of its member, from features |
| a library of such a family | drawn for each environment | of a member of its library, drawn for each trajectory |

Trajectories that are drawn for each environment make their errors independent, so that intervals over environments
mean what they say. The same for all cost one cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from ringrl.choices import TrajectoryOrder
from ringrl.envs import family_of, is_hidden, is_visible, library_of, make_env, members_in, split_task
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.relabelling.rewards import Relabeler
from ringrl.rollout.demonstrations import ContextForm, Demonstrations, EpisodeList, Given
from ringrl.sampling.relabelled import RelabelledEpisodes
from ringrl.store.episode_store import Store

_STREAM, _ACTIVE = 11, 14  # of the trajectories that an environment's seed draws, and of whom each is paid by


@dataclass(frozen=True)
class ContextDraw:
    """Of how many environments, by which seeds, and in which order.

    Attributes:
        count: trajectories in a context.
        environments: of the rollout; environment i has seed `seed` + i.
        seed: of the draw, and of environment 0.
        order: of the trajectories in a context: as they were drawn, or `ascending` by return.
        apart: for each environment by itself, also where all have the same task.
    """

    count: int
    environments: int
    seed: int
    order: TrajectoryOrder
    apart: bool = False

    @property
    def seeds(self) -> range:
        """Of the environments."""
        return range(self.seed, self.seed + self.environments)

    def of(self, episodes: int, seed: int) -> Int64[np.ndarray, " trajectories"]:
        """What is drawn of so many episodes for the environment of a seed alone."""
        rng = np.random.default_rng((seed, _STREAM))
        return rng.permutation(episodes)[: self.count].astype(np.int64)


class StoredTrajectories:
    """Trajectories that are drawn from a store once, with the rewards of the task, or tasks, that are evaluated.

    Attributes:
        steps: agent steps of each of a context's trajectories, in the order in which they were drawn: of one context
            for all environments, or of one for each.
    """

    def __init__(self, store: Store, task: str, form: ContextForm, draw: ContextDraw):
        """Draw different trajectories, and compute their returns under the task.

        Args:
            store: where they are.
            task: that is evaluated.
            form: how the agent is shown them.
            draw: how many, and for whom.

        Raises:
            UserError: more than the store has; a store of other widths or of another domain; or rewards that do not
                follow from what it has.
        """
        count = draw.count
        if not 1 <= count <= store.episodes:
            raise UserError(f"--trajectories {count}: {store.path} has {store.episodes}; give 1 to {store.episodes}")
        self._form, self._task, self._draw = form, task, draw
        family = family_of(task)
        if family is not None and store.domain != split_task(task)[0]:
            self._contexts = self._of_members(RelabelledEpisodes(store, family, visible=is_visible(task)))
        else:
            self._contexts = self._of_tasks(store)
        drawn = np.stack([each.reader.lengths[each.episodes] for each in self._contexts])
        self.steps: Int64[np.ndarray, "contexts trajectories"] = -(-drawn // form.action_repeat)

    def first(self, count: int) -> Demonstrations:
        """The first `count` of those drawn, 1 or more: of two numbers, the fewer are among the more."""
        fewer = [each.picked(np.arange(count)) for each in self._contexts]
        return self._form.demonstrate(fewer, self._task, self._draw.order)

    def _of_members(self, reader: RelabelledEpisodes) -> list[Given]:
        """Of each environment's member, or of one of its library each, drawn for each environment."""
        self._form.check_widths(str(reader.store.path), reader.sizes)
        draw, contexts, members = self._draw, [], members_in(self._task)
        for seed in draw.seeds:
            episodes, family = draw.of(reader.store.episodes, seed), reader.family
            library = family.member(seed)[None] if members is None else library_of(family, seed, members)
            paid_by = library[np.random.default_rng((seed, _ACTIVE)).integers(len(library), size=len(episodes))]
            contexts.append(Given(reader, episodes, reader.returns_under(episodes, paid_by), paid_by))
        return contexts

    def _of_tasks(self, store: Store) -> list[Given]:
        """The same trajectories, under the task or, where each environment has its own, under each."""
        self._form.check_widths(str(store.path), store.sizes)
        draw, task = self._draw, self._task
        if task in store.tasks and not is_hidden(task):
            returns = store.returns(task)
            drawn = [draw.of(store.episodes, seed) for seed in draw.seeds] if draw.apart else [_together(store, draw)]
            return [Given(store, episodes, returns[episodes]) for episodes in drawn]
        if draw.apart:
            raise UserError(f"--apart: {store.path} has no rewards of {task}; build it with them, or leave it out")
        _check_relabelling(store, task)
        hidden = draw.seeds if is_hidden(task) else [None]
        episodes = [store.episode(index, store.tasks[0]) for index in _together(store, draw).tolist()]
        readers = [EpisodeList(_relabelled(episodes, task, seed)) for seed in hidden]
        return [Given(reader, np.arange(draw.count), reader.returns(task)) for reader in readers]


def _together(store: Store, draw: ContextDraw) -> Int64[np.ndarray, " trajectories"]:
    return np.random.default_rng(draw.seed).permutation(store.episodes)[: draw.count].astype(np.int64)


def _check_relabelling(store: Store, task: str) -> None:
    """Raise UserError where rewards of the task cannot be the only thing that the store's trajectories lack."""
    domain = split_task(task)[0]
    if store.domain != domain:
        raise UserError(f"{store.path} is of {store.domain}, and {task} of {domain}: give a store of {domain}")
    if not store.dims.physics:
        raise UserError(
            f"{store.path} has no rewards of {task}, and no physics states to compute them from; build it from files "
            "that have physics states"
        )
    if is_hidden(task) and (obstacle := _beyond_rewards(task)):
        raise UserError(f"--demonstrations: trajectories of other tasks cannot demonstrate {task}: {obstacle}")


def _beyond_rewards(task: str) -> str | None:
    """In what, other than rewards, trajectories of two tasks of a family differ; None: in nothing.

    Two environments take the same actions from the same first state. What is hidden may be seen, or turn their motors.
    """
    first, second = make_env(task, seed=0), make_env(task, seed=1)
    observed, other = (env.reset(seed=0)[0] for env in (first, second))
    if not np.allclose(observed, other):
        return "their observations show the task"
    rng = np.random.default_rng(0)
    for _ in range(8):
        action = rng.uniform(-1, 1, first.action_space.shape).astype(np.float32)
        reached, there = (env.step(action)[4]["physics"] for env in (first, second))
        if not np.allclose(reached, there, atol=1e-6):
            return "the same action does not lead to the same state in them"
    return None


def _relabelled(episodes: Sequence[Episode], task: str, seed: int | None) -> list[Episode]:
    relabel = Relabeler((task,), seed=seed)
    return [replace(episode, reward=relabel(episode)) for episode in episodes]
