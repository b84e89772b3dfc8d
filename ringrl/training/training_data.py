"""Training data: where batches come from, what a run directory keeps of them, and whether they are still the same."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from ringrl.attention.layout import to_ring_order
from ringrl.config import DataConfig, RunConfig
from ringrl.envs import family_of, is_task, is_visible, members_in
from ringrl.errors import UserError
from ringrl.run import RunDirectory
from ringrl.sampling.held_out import split_episodes
from ringrl.sampling.loader import batch_episodes, make_loader, row_segments
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.relabelled import Episodes, RelabelledEpisodes
from ringrl.sampling.samplers import ContextSampler
from ringrl.store.episode_store import Store, open_store
from ringrl.training.processes import LocalShard, from_first
from ringrl.training.same_data import refuse_changed
from ringrl.training.soundness import listed
from ringrl.training.teacher import Labels

_CONTEXTS = 16  # that are looked at, to know how many trajectories they have

SampleContexts = Callable[[Episodes, str, int], ContextSampler]
"""(episodes, task, action repeat) -> the sampler of an agent's contexts."""

LabelContexts = Callable[[RunConfig, Episodes], Labels]
"""(config, episodes) -> what the steps of an agent's contexts are labelled with."""


def open_episodes(config: DataConfig, memory_limit: int = 2**29, *, held_out: bool = False) -> Episodes:
    """The store's episodes, with the rewards of members where the task is of a family.

    They are those to train on, or those that are `held_out` (`ringrl.sampling.held_out`).

    Raises UserError where there is no store, it has neither rewards of the task nor features of its family, or numbers
    of members are given for a task that is no library.
    """
    members = members_in(config.task)
    if config.library is not None and members is None:
        raise UserError(f"data.library: {config.task} is no library, such as library8_point_mass_field; leave it out")
    store = open_store(config.store, memory_limit=memory_limit)
    if config.validation_share:
        store = store.part(split_episodes(store.source, config.validation_share)[held_out])
    family = family_of(config.task) if config.task not in store.tasks and is_task(config.task) else None
    if family is None:
        return store
    library = config.library or (members or 1,)
    options = {"visible": is_visible(config.task), "hindsight_share": config.hindsight}
    return RelabelledEpisodes(store, family, **options, library=library)


def refuse_held_out(config: RunConfig, why: str) -> None:
    """Raise UserError where episodes are to be held out though no loss of theirs is measured."""
    if config.data.validation_share:
        raise UserError(f"data.validation_share: {why}; leave it out")


class EpisodeData:
    """The episodes of a store: what a run knows of them, and their scales.

    Attributes:
        episodes: the store's.
        sizes: widths of `observation` and `action`.
        card: what a report says of the data, so that it needs no store.
    """

    def __init__(self, config: RunConfig):
        """Open the store. Raises UserError where there is none, or it has no rewards of the task."""
        self._config = config
        self.episodes = open_episodes(config.data)
        self.sizes = self.episodes.sizes
        self.card = _card(config, self.episodes)
        self.normalizer: Normalizer | None = None

    def prepare(self, run: Path) -> None:
        """The scales of the run if it exists, else those of the store. Raises UserError where the data are others."""
        if from_first("card", lambda: self.card) != self.card:
            raise UserError(f"{self._config.data.store}: not the store that process 0 reads; give all hosts the same")
        scales = from_first(
            "scales", lambda: {k: np.asarray(v).tolist() for k, v in asdict(self._measure(run)).items()}
        )
        mean, std = (np.array(scales[f"observation_{name}"], np.float32) for name in ("mean", "std"))
        self.normalizer = Normalizer(mean, std, scales["return_scale"], scales["reward_scale"])

    def _measure(self, run: Path) -> Normalizer:
        data = self._config.data
        if not RunDirectory(run).exists:
            once = open_episodes(data, memory_limit=0)  # what it reads does not stay in memory
            found = Normalizer.fit(once, data.task, action_repeat=data.action_repeat)
            return found.of_members(once.family, once.visible) if isinstance(once, RelabelledEpisodes) else found
        drawn = isinstance(self.episodes, RelabelledEpisodes)
        refuse_changed(self.card, run, str(data.store), but=("store", "returns") if drawn else ("store",))
        # Those of the members that the run began with; how members are drawn may change.
        self.card["returns"] = RunDirectory(run).dataset()["returns"]
        return RunDirectory(run).normalizer()

    def name_episodes(self, indices: Int64[np.ndarray, " some"]) -> str:
        """Episodes by their index in the store, and which sources they are from; for messages."""
        store = _store_of(self.episodes)
        names = [store.sources[each].name for each in np.unique(store.source[indices])]
        return f"episodes {listed(store.numbers[indices])} of {self._config.data.store} (from {listed(names)})"

    @property
    def scales(self) -> Normalizer:
        """What `prepare` found."""
        if self.normalizer is None:
            raise RuntimeError("prepare the data first")
        return self.normalizer


class ContextData(EpisodeData):
    """Contexts that an agent draws from the episodes of a store, normalised."""

    def __init__(
        self,
        config: RunConfig,
        sample_contexts: SampleContexts,
        label: LabelContexts | None = None,
        members: bool = False,
    ):
        """Open the store; its steps are read when batches are.

        With `label`, all of them are labelled then; with `members`, batches also say which member pays each.
        """
        super().__init__(config)
        self._sample_contexts, self._members = sample_contexts, members
        self._labels = None if label is None else label(config, self.episodes)
        if self._labels is not None:
            self.card |= {"labels": self._labels.about}

    def batches(self, start_step: int, shard: LocalShard) -> Iterator[dict[str, np.ndarray]]:
        """See `BatchData`; the fields of `ringrl.batch.Batch`, or of its `LabelledBatch`, steps in ring order."""
        # Where processes share a row, each reads its slice of it and keeps nothing in memory.
        whole = len(shard.columns) == self._config.training.row_steps
        episodes = self.episodes if whole else open_episodes(self._config.data, memory_limit=0)
        return self._read(episodes, self._sampler(self.episodes), self._config.seed, start_step, shard)

    def validation_batches(self, shard: LocalShard) -> Iterator[dict[str, np.ndarray]] | None:
        """See `BatchData`: the same for all runs that hold out the same share of a store, of any seed.

        Raises UserError where the held-out episodes are too few for a context.
        """
        if not self._config.data.validation_share:
            return None
        held_out = open_episodes(self._config.data, memory_limit=0, held_out=True)
        try:
            sampler = self._sampler(held_out)
        except UserError as error:
            raise UserError(
                f"data.validation_share: of the {len(held_out.lengths)} held-out episodes {error}"
            ) from None
        return self._read(held_out, sampler, 0, 0, shard)

    def _sampler(self, episodes: Episodes) -> ContextSampler:
        return self._sample_contexts(episodes, self._config.data.task, self._config.data.action_repeat)

    def _read(
        self, episodes: Episodes, sampler: ContextSampler, seed: int, start_step: int, shard: LocalShard
    ) -> Iterator[dict[str, np.ndarray]]:
        config, data, training = self._config, self._config.data, self._config.training
        loader = make_loader(
            episodes,
            sampler,
            data.task,
            self.scales,
            batch=training.batch,
            steps=training.row_steps,
            seed=seed,
            start_step=start_step,
            action_repeat=data.action_repeat,
            packing=training.packing,
            rows=shard.rows,
            positions=local_positions(config, shard),
            labels=None if self._labels is None else self._labels.of,
            members=self._members,
            prefetch=data.prefetch,
        )
        return (batch.asdict() for batch in loader)

    def most_trajectories(self) -> int:
        """The most trajectories in the first of the contexts that it draws."""
        rng, sampler = np.random.default_rng(self._config.seed), self._sampler(self.episodes)
        return max(len(sampler.sample(rng).episode) for _ in range(_CONTEXTS))

    def segments(self, rows: int) -> Int32[np.ndarray, "rows steps"]:
        """See `BatchData`."""
        config, training = self._config, self._config.training
        return row_segments(
            self._sampler(self.episodes),
            seed=config.seed,
            batch=training.batch,
            rows=rows,
            steps=training.row_steps,
            action_repeat=config.data.action_repeat,
            packing=training.packing,
        )

    def name_batch(self, index: int) -> str:
        """See `BatchData`: the episodes in the contexts, of which the batch may have the beginnings alone."""
        config, data, training = self._config, self._config.data, self._config.training
        episodes = batch_episodes(
            self._sampler(self.episodes),
            seed=config.seed,
            step=index,
            batch=training.batch,
            steps=training.row_steps,
            action_repeat=data.action_repeat,
            packing=training.packing,
        )
        return self.name_episodes(episodes)


def local_positions(config: RunConfig, shard: LocalShard) -> Int64[np.ndarray, " local"]:
    """The positions of a row whose steps are on this process's devices, in the order in which they are stored there."""
    steps, mesh = np.arange(config.training.row_steps, dtype=np.int64), config.mesh
    return to_ring_order(steps, mesh.seq, mesh.ring_layout, axis=0, stripe=mesh.stripe or 1)[shard.columns]


def _card(config: RunConfig, episodes: Episodes) -> dict:
    store = _store_of(episodes)
    more: dict[str, Any] = {"features": episodes.checksum()} if isinstance(episodes, RelabelledEpisodes) else {}
    if share := config.data.validation_share:
        more["validation_share"] = share
    counts = np.bincount(store.source, minlength=len(store.sources)).tolist()
    return more | {
        "task": config.data.task,
        "domain": store.domain,
        "store": str(config.data.store),
        "episodes": store.episodes,
        "steps": int(store.lengths.sum()),
        "lengths": [int(store.lengths.min()), int(store.lengths.max())],
        "collected": _collected(store),
        "action_bounds": _action_bounds(store),
        "relabel": _relabel_mode(store) if store is episodes else "members",
        "sources": [
            {"name": source.name, "collector": source.collector, "episodes": count}
            for source, count in zip(store.sources, counts, strict=True)
        ],
        "returns": episodes.returns(config.data.task).tolist(),
        "source": store.source.tolist(),
        "sizes": episodes.sizes,
        "content": {name: store.content[name] for name in _read_arrays(config, store) if name in store.content},
    }


def _store_of(episodes: Episodes) -> Store:
    return episodes.store if isinstance(episodes, RelabelledEpisodes) else episodes


def _collected(store: Store) -> dict[str, Any]:
    """In which environment the sources were collected, as far as they say and a run could be in another."""
    said = {source.name: source.collected for source in store.sources}
    about = [*said.values(), store.provenance.get("histories")]
    repeats = [each.get("action_repeat") for each in about if isinstance(each, dict)]
    settings = {name: each["changed_settings"] for name, each in said.items() if each.get("changed_settings")}
    changed = {name: {k: str(v) for k, v in each.items()} for name, each in settings.items() if isinstance(each, dict)}
    return {
        "action_repeat": sorted({each for each in repeats if type(each) is int and each > 0}),
        "changed_settings": changed,
    }


def _action_bounds(store: Store) -> Any:
    """What the actuators got for actions of -1 and of 1, [[low ...], [high ...]]; None where sources differ."""
    said = [source.collected.get("action_bounds") for source in store.sources]
    return said[0] if all(each == said[0] for each in said) else None


def _read_arrays(config: RunConfig, store: Store) -> tuple[str, ...]:
    """Those that every run on the store reads; what it reads of a family has a checksum of its own."""
    return "transition", f"reward/{config.data.task}"


def _relabel_mode(store: Store) -> str | None:
    """How the rewards were computed: by the store's build, or before it by `ringrl data relabel`."""
    mode = store.provenance.get("relabel")
    before = {source.relabelled for source in store.sources}
    return before.pop() or mode if mode == "recorded" and len(before) == 1 else mode
