"""How a transformer learns: batches of rows on the mesh, and a compiled gradient step for each."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int32

from ringrl.agent import Decoder, TrainingData
from ringrl.attention import compiler_options
from ringrl.config import RunConfig
from ringrl.training.mesh import make_mesh, place_batch
from ringrl.training.processes import LocalShard, local_shard
from ringrl.training.soundness import largest_number
from ringrl.training.state import TrainState, init_state, make_loss, make_train_step
from ringrl.training.tracker import Clock

_VALIDATED = 8  # batches


class BatchData(TrainingData, Protocol):
    """Training data that come as batches of rows."""

    def batches(self, start_step: int, shard: LocalShard) -> Iterator[dict[str, np.ndarray]]:
        """This process's part of every batch from `start_step` on, without end: arrays [rows, steps, ...] by name."""
        ...

    def validation_batches(self, shard: LocalShard) -> Iterator[dict[str, np.ndarray]] | None:
        """As `batches`, of held-out episodes and from the first on; None: none are held out."""
        ...

    def segments(self, rows: int) -> Int32[np.ndarray, "rows steps"]:
        """Segment ids of the first rows of the first batch, in the order of the sequence; 0 is padding."""
        ...

    def name_batch(self, index: int) -> str:
        """What the whole batch of an index is made of, such as `episodes 3, 17 of data.store`; for messages."""
        ...


class SequenceTrainer:
    """A `ringrl.agent.Trainer`. A checkpoint keeps the whole `TrainState`, sharded.

    Attributes:
        data: what it is trained on.
        mesh: where parameters and batches are.
        step_sizes: the setting to lower where learning diverges.
    """

    step_sizes = "optimizer.learning_rate"

    def __init__(self, config: RunConfig, decoder: Decoder, data: BatchData):
        """Raises UserError where there are too few devices, or this process would have no regular part of the rows."""
        self.data, self.mesh = data, make_mesh(config.mesh)
        self._config, self._decoder = config, decoder
        self._shard = local_shard(self.mesh, config.training.batch, config.training.row_steps)
        self._graph: nnx.GraphDef | None = None
        self._clock: Clock | None = None
        self._loss: Callable[[dict, dict], jax.Array] | None = None
        self._start = 0

    def init(self) -> TrainState:
        """The state at step 0."""
        self._graph, state = init_state(self._config, self._decoder, self.data.sizes, self.mesh)
        return state

    def pack(self, state: TrainState) -> TrainState:
        """The state itself."""
        return state

    def unpack(self, packed: TrainState, like: TrainState) -> TrainState:
        """The state itself."""
        return packed

    def updates(self, state: TrainState, start: int) -> Iterator[tuple[int, TrainState, dict[str, jax.Array]]]:
        """See `Trainer`; a compiled call is one gradient step."""
        batches = self.data.batches(start, self._shard)
        first, held_out = next(batches), self.data.validation_batches(self._shard)
        if held_out is not None:
            next(held_out)  # so that settings which do not fit them are found now
        return self._steps(state, start, first, batches)

    def _steps(
        self, state: TrainState, start: int, first: dict[str, np.ndarray], batches: Iterator[dict[str, np.ndarray]]
    ) -> Iterator[tuple[int, TrainState, dict[str, jax.Array]]]:
        assert self._graph is not None, "`init` comes first"
        shardings = jax.tree.map(lambda x: x.sharding, state)
        train_step = make_train_step(self._config, self._decoder, self._graph, self.mesh, shardings)
        tokens_per_step = self._decoder.tokens.tokens_per_step
        clock = self._clock = Clock(self._config, tokens_per_step, state.params, self.mesh.size)
        self._start, values = start, {}
        for step in range(start + 1, self._config.training.steps + 1):
            with clock.waiting(values):
                batch = first if step == start + 1 else next(batches)
                placed = place_batch(batch, self.mesh, self._shard)
            clock.count(batch)
            state, values = train_step(state, placed)
            yield step, state, values

    def validate(self, state: TrainState) -> dict[str, float]:
        """`validation_loss`: the mean loss of the steps in the first `_VALIDATED` batches of held-out episodes."""
        batches = self.data.validation_batches(self._shard)
        if batches is None:
            return {}
        assert self._graph is not None, "`init` comes first"
        if self._loss is None:
            options = compiler_options(self.mesh.devices.flat[0].platform)
            self._loss = jax.jit(
                make_loss(self._config, self._decoder, self._graph, self.mesh), compiler_options=options
            )
        total = weight = 0.0
        for batch in islice(batches, _VALIDATED):
            placed = place_batch(batch, self.mesh, self._shard)
            total += float(self._loss(state.params, placed))
            weight += float(jnp.sum(placed["weight"]))
        return {"validation_loss": total / max(weight, 1.0)}

    def explain(self, step: int, found: str) -> tuple[str, str]:
        """See `Trainer`. The batch is read again, this process's part of it."""
        batch = next(self.data.batches(step - 1, self._shard))
        return f"{found} at step {step}", f"{self.data.name_batch(step - 1)}, {largest_number(batch)}"

    def rates(self, step: int) -> dict[str, float]:
        """Tokens, tokens per second, model FLOPs utilisation and more, see `ringrl.training.tracker.Clock`."""
        assert self._clock is not None, "`updates` comes first"
        return self._clock.lap(step, step - self._start)
