"""Training data of a language model: windows of a file of token ids."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from ringrl.config import RunConfig
from ringrl.errors import UserError
from ringrl.formats.token_file import TokenFile
from ringrl.model.token_ids import TokenIds
from ringrl.run import RunDirectory
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.token_windows import row_starts, token_batches
from ringrl.training.processes import LocalShard, from_first
from ringrl.training.same_data import refuse_changed
from ringrl.training.soundness import listed
from ringrl.training.training_data import local_positions, refuse_held_out


class TokenData:
    """Windows of a file of token ids.

    Attributes:
        sizes: of the batch's field `previous`, if the agent has one; it sets the vocabulary too.
        card: what a report says of the data.
    """

    def __init__(self, config: RunConfig, tokens: TokenIds):
        """Open the file; it is read when batches are. Raises UserError where episodes are to be held out."""
        refuse_held_out(config, "a text has no episodes")
        self._config, self._text = config, TokenFile(Path(config.data.store).expanduser(), tokens.vocabulary)
        self._previous, self.sizes = tokens.previous, tokens.sizes
        self.normalizer: Normalizer | None = None
        about = {"task": config.data.task, "store": str(config.data.store)}
        self.card = about | {"tokens": len(self._text.ids), "sum": self._text.checksum()}
        self.card |= {"sizes": self.sizes, "returns": []}

    def prepare(self, run: Path) -> None:
        """Nothing is measured. A run may go on with a file of another name, such as one of longer documents.

        Raises UserError where the file of the same name is another than the run's.
        """
        if from_first("card", lambda: self.card) != self.card:
            raise UserError(f"{self._text.path}: not the file that process 0 reads; give all hosts the same")
        known = RunDirectory(run).dataset() if RunDirectory(run).exists else None
        if known is not None and Path(known["store"]).name == self._text.path.name:
            refuse_changed(self.card, run, str(self._text.path), but=("store",))

    def batches(self, start_step: int, shard: LocalShard) -> Iterator[dict[str, np.ndarray]]:
        """See `BatchData`; the fields of the agent's batch of token ids, in ring order."""
        c = self._config
        loader = token_batches(
            self._text,
            rows=shard.rows,
            steps=c.training.row_steps,
            positions=local_positions(c, shard),
            seed=c.seed,
            start_step=start_step,
            previous=self._previous,
            prefetch=c.data.prefetch,
        )
        return (batch.asdict() for batch in loader)

    def validation_batches(self, shard: LocalShard) -> None:
        """None: a text has no episodes to hold out."""

    def segments(self, rows: int) -> Int32[np.ndarray, "rows steps"]:
        """See `BatchData`: one segment a row."""
        return np.ones((rows, self._config.training.row_steps), np.int32)

    def name_batch(self, index: int) -> str:
        """See `BatchData`: the tokens at which its rows begin."""
        training = self._config.training
        rows = np.arange(training.batch, dtype=np.int64)
        starts = row_starts(self._text, rows, training.row_steps, self._config.seed, index)
        return f"rows from tokens {listed(starts)} of {self._text.path}"
