"""What is trained on: where batches come from, what a run directory keeps of it, and whether it is still the same."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from ringrl.agent import Agent
from ringrl.attention.layout import to_ring_order
from ringrl.config import RunConfig
from ringrl.errors import UserError
from ringrl.formats.token_file import TokenFile
from ringrl.model.token_ids import TokenIds
from ringrl.run import RunDirectory
from ringrl.sampling.loader import make_loader
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.token_windows import token_batches
from ringrl.store.episode_store import Store, open_store
from ringrl.training.processes import LocalShard, from_first


@runtime_checkable
class TrainingData(Protocol):
    """All that the training loop asks of its data."""

    @property
    def sizes(self) -> dict[str, int]:
        """Widths or counts that decide the model's shape; what `build_model` takes."""
        ...

    @property
    def card(self) -> dict:
        """What dataset.json says of the data; only what JSON gives back as it was."""
        ...

    def prepare(self, run: Path) -> None:
        """Measure the data, or read what the run in `run` measured. UserError where its data were others.

        All processes call this; process 0 does the reading.
        """
        ...

    @property
    def normalizer(self) -> Normalizer | None:
        """The scales of observations, returns and rewards, once prepared; None where data are not normalised."""
        ...

    def batches(self, start_step: int, held: LocalShard) -> Iterator[dict[str, np.ndarray]]:
        """This process's part of every batch from `start_step` on, for ever: arrays [rows, steps, ...] by name."""
        ...


def open_data(config: RunConfig, agent: Agent) -> TrainingData:
    """The data that `config` names. Raises UserError where there are none."""
    tokens = agent.tokens(config.agent)
    return TokenData(config, tokens.vocabulary) if isinstance(tokens, TokenIds) else EpisodeData(config, agent)


class EpisodeData:
    """Chains of trajectories that the agent draws from an episode store, normalised.

    Attributes:
        sizes: widths of `observation` and `action`.
        card: what a report says of the data, so that it needs no store.
    """

    def __init__(self, config: RunConfig, agent: Agent | None):
        """Open the store; rows are read when batches are. Without an agent that draws chains there are no batches."""
        self._config, self._agent = config, agent
        self._store = open_store(config.data.store)
        self.sizes = {"observation": self._store.dims.observation, "action": self._store.dims.action}
        self.card = _card(config, self._store, self.sizes)
        self.normalizer: Normalizer | None = None

    def prepare(self, run: Path) -> None:
        """The scales of a run that there is already, if its data are what they were; else those of the store."""
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
            once = open_store(data.store, memory_limit=0)  # what it reads is not to stay in memory
            return Normalizer.fit(once, data.task, action_repeat=data.action_repeat)
        refuse_changed(self.card, run, str(data.store), but=("store",))
        return RunDirectory(run).normalizer()

    def batches(self, start_step: int, held: LocalShard) -> Iterator[dict[str, np.ndarray]]:
        """See `TrainingData`; the fields of `ringrl.batch.Batch`, the steps in ring order."""
        if self._agent is None:
            raise RuntimeError("there is no agent to draw chains")
        config, data, training = self._config, self._config.data, self._config.training
        # Where processes share a row, each reads its slice of it and keeps nothing, not even of a store that would fit.
        store = self._store if len(held.columns) == training.row_steps else open_store(data.store, memory_limit=0)
        loader = make_loader(
            store,
            self._agent.planner(config.agent, self._store, data.task, data.action_repeat),
            data.task,
            self.scales,
            batch=training.batch,
            steps=training.row_steps,
            seed=config.seed,
            start_step=start_step,
            action_repeat=data.action_repeat,
            packing=training.packing,
            rows=held.rows,
            positions=local_positions(config, held),
            prefetch=data.prefetch,
        )
        return (batch.asdict() for batch in loader)

    @property
    def scales(self) -> Normalizer:
        """What `prepare` found."""
        if self.normalizer is None:
            raise RuntimeError("prepare the source first")
        return self.normalizer


class TokenData:
    """Windows of a file of token ids.

    Attributes:
        sizes: empty: the vocabulary is the agent's to say.
        card: what a report says of the data.
    """

    def __init__(self, config: RunConfig, vocabulary: int):
        """Open the file; it is read when batches are."""
        self._config, self._text = config, TokenFile(Path(config.data.store), vocabulary)
        self.sizes: dict[str, int] = {}
        self.normalizer: Normalizer | None = None
        about = {"task": config.data.task, "store": str(config.data.store)}
        self.card = about | {"tokens": len(self._text.ids), "sum": self._text.checksum()}
        self.card |= {"sizes": self.sizes, "returns": []}

    def prepare(self, run: Path) -> None:
        """Nothing is measured."""
        if from_first("card", lambda: self.card) != self.card:
            raise UserError(f"{self._text.path}: not the file that process 0 reads; give all hosts the same")
        if RunDirectory(run).exists:
            refuse_changed(self.card, run, str(self._text.path), but=("store",))

    def batches(self, start_step: int, held: LocalShard) -> Iterator[dict[str, np.ndarray]]:
        """See `TrainingData`; the fields of `ringrl.batch.TokenBatch`, in ring order."""
        c = self._config
        loader = token_batches(
            self._text,
            rows=held.rows,
            steps=c.training.row_steps,
            positions=local_positions(c, held),
            seed=c.seed,
            start_step=start_step,
            prefetch=c.data.prefetch,
        )
        return (batch.asdict() for batch in loader)


def local_positions(config: RunConfig, held: LocalShard) -> Int64[np.ndarray, " local"]:
    """The positions of a row whose steps are on this process's devices, in the order in which they are stored there."""
    steps, mesh = config.training.row_steps, config.mesh
    return to_ring_order(np.arange(steps, dtype=np.int64), mesh.seq, mesh.layout, axis=0)[held.columns]


def refuse_changed(card: dict, run: Path, where: str, but: tuple[str, ...] = ()) -> None:
    """Raise UserError where `card` is not what `run` began with, in any entry but those named `but`."""
    known = RunDirectory(run).dataset()
    changed = [name for name, value in card.items() if name not in but and known.get(name) != value]
    if changed:
        raise UserError(
            f"{where}: not the data that {run} began with ({', '.join(changed)} changed); "
            "give them back, or train a new run"
        )


def _card(config: RunConfig, store: Store, sizes: dict[str, int]) -> dict:
    return {
        "task": config.data.task,
        "domain": store.domain,
        "store": str(config.data.store),
        "episodes": store.episodes,
        "steps": int(store.lengths.sum()),
        "relabel": _relabel_mode(store),
        "sources": [{"name": s.name, "collector": s.collector, "episodes": s.episodes} for s in store.sources],
        "returns": store.returns(config.data.task).tolist(),
        "source": store.source.tolist(),
        "sizes": sizes,
    }


def _relabel_mode(store: Store) -> str | None:
    """How the rewards were computed: by the store's build, or before it by `ringrl data relabel`."""
    mode = store.provenance.get("relabel")
    before = {source.relabelled for source in store.sources}
    return before.pop() or mode if mode == "recorded" and len(before) == 1 else mode
