"""A run's transformer from its checkpoint, on one device or in shards on a mesh."""

from pathlib import Path

from jax.sharding import Mesh

from ringrl.agent import Decoder, Widths, make_decoder
from ringrl.config import MeshConfig, RunConfig
from ringrl.model.transformer import Transformer
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

    Raises UserError where the agent has no sequence model, and as `Checkpoints`.
    """
    decoder = make_decoder(config.agent) if decoder is None else decoder
    mesh = make_mesh(MeshConfig()) if mesh is None else mesh
    graph, abstract = abstract_state(config, decoder, sizes, mesh)
    with Checkpoints(run, read_only=True) as checkpoints:
        state, _ = checkpoints.restore(abstract, checkpoint)
    return merge_model(graph, state.params), int(state.step)
