"""A run's transformer from its checkpoint, on one device or in shards on a mesh."""

from pathlib import Path

from jax.sharding import Mesh

from ringrl.agent import Decoder, Widths, make_decoder
from ringrl.batch import TOKENS
from ringrl.config import MeshConfig, RunConfig
from ringrl.errors import UserError
from ringrl.model.tokens import TokenLayout
from ringrl.model.transformer import Transformer
from ringrl.run import RunDirectory
from ringrl.training.checkpoint import Checkpoints
from ringrl.training.mesh import make_mesh
from ringrl.training.state import abstract_state, merge_model


def load_model(
    run: Path,
    config: RunConfig,
    sizes: Widths,
    checkpoint: str = "latest",
    decoder: Decoder | None = None,
    mesh: Mesh | None = None,
) -> tuple[Transformer, int]:
    """A checkpoint's model, and the optimiser steps that it was trained for.

    Args:
        run: the run directory.
        config: the run's configuration.
        sizes: the data's widths.
        checkpoint: `latest`, `best`, or the number of a step.
        decoder: the agent's sequence model; None: the one that `config` names.
        mesh: on which the parameters are sharded, of all processes' devices; None: one device.

    Raises UserError where the agent has no sequence model, and as `refuse_earlier_tokens` and `Checkpoints`.
    """
    decoder = make_decoder(config.agent) if decoder is None else decoder
    refuse_earlier_tokens(decoder, RunDirectory(run).tokens, run)
    mesh = make_mesh(MeshConfig()) if mesh is None else mesh
    graph, abstract = abstract_state(config, decoder, sizes, mesh)
    with Checkpoints(run, read_only=True) as checkpoints:
        state, _ = checkpoints.restore(abstract, checkpoint)
    return merge_model(graph, state.params), int(state.step)


def refuse_earlier_tokens(decoder: Decoder, version: int, where: Path) -> None:
    """Raise UserError where a model was trained on fused tokens that meant something else (`ringrl.batch.TOKENS`).

    Args:
        decoder: the agent's sequence model.
        version: of the tokens that it was trained on; 0: of an earlier ringrl, which does not say.
        where: the run or export.
    """
    if isinstance(decoder.tokens, TokenLayout) and decoder.tokens.fused and version != TOKENS:
        raise UserError(
            f"{where}: its fused tokens are of version {version}, and this ringrl's of {TOKENS}, in which a trial's "
            "first step has no previous action and reward; train it anew"
        )
