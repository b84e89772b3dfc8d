"""A trained model as files that need no ringrl to read: `model.safetensors`, `config.json`, and a model card."""

import json
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired

import jax
import numpy as np
from jaxtyping import Float32
from pydantic import with_config
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from typing_extensions import TypedDict

from ringrl.agent import make_decoder
from ringrl.agent_record import AgentRecord, verify_source
from ringrl.batch import TOKENS
from ringrl.config import RunConfig, parse_config
from ringrl.errors import UserError, unwritable
from ringrl.files import atomic_folder, check_folder
from ringrl.manifest import MANIFEST, check, require, seal
from ringrl.model.transformer import Transformer
from ringrl.model_config import read_earlier
from ringrl.readers import RECORD, Count, Text, read_json
from ringrl.returns import TrialReturn
from ringrl.run import RunDirectory
from ringrl.run_records import TrainedOnRecord
from ringrl.sampling.normalizer import NormalizerRecord
from ringrl.training.mesh import make_mesh
from ringrl.training.model_card import CARD, model_card
from ringrl.training.state import abstract_state, merge_model, split_model
from ringrl.training.trained_model import refuse_earlier_tokens
from ringrl.trust import require_trusted_config

WEIGHTS, ABOUT, AGENT = "model.safetensors", "config.json", "agent.py"
FORMAT = "ringrl export"

_AGAIN = "not a whole export: make one with `ringrl export RUN`"


@with_config(RECORD)
class _NamedAgent(TypedDict):
    name: Text


@with_config(RECORD)
class _ExportedConfig(TypedDict):
    agent: _NamedAgent


@with_config(RECORD)
class ExportRecord(TypedDict):
    """config.json."""

    format: str
    step: Count
    config: _ExportedConfig
    dataset: TrainedOnRecord
    normalizer: NotRequired[NormalizerRecord]
    agent: NotRequired[AgentRecord | None]
    tokens: NotRequired[Count]


def export(model: Transformer, config: RunConfig, step: int, run: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the folder `out`: complete or not at all. Returns it.

    `model.safetensors` holds the parameters, float32, named by their path in the model, such as
    `layers.before.query.kernel`; those of layers are stacked along the first axis. `config.json` holds the resolved
    `config`, `step` (optimiser steps done), `tokens` (`ringrl.batch.TOKENS`), `versions`, the run's
    `agent`, and its `normalizer` and `dataset` where it has them. `agent.py` is the run's copy of the agent's source,
    `README.md` a model card (`ringrl.training.model_card`). docs/export.md has the forward pass in NumPy.

    Args:
        model: what the run trained.
        config: the run's configuration.
        step: optimiser steps that made the model.
        run: the run directory.
        out: the folder to be.
        overwrite: replace `out` if it is an export.

    Raises:
        UserError: `out` is there already, or cannot be written.
    """
    source, agent = RunDirectory(run), RunDirectory(run).agent()
    about: dict[str, Any] = {
        "format": FORMAT,
        "manifest": MANIFEST,
        "step": step,
        "tokens": TOKENS,
        "agent": asdict(agent) if agent else None,
        "config": config.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("ringrl", "jax", "flax", "safetensors")},
    }
    if agent:
        about["config"]["agent"]["name"] = agent.name
    if source.normalizer_file.exists():
        about["normalizer"] = read_json(source.normalizer_file, NormalizerRecord, "train again")
    about["dataset"] = source.dataset()
    arrays = {name: np.asarray(x, np.float32) for name, x in _named(split_model(model)[1]).items()}
    check_export(out, overwrite=overwrite)
    with atomic_folder(out, marker=ABOUT, overwrite=overwrite) as partial:
        try:
            save_file(arrays, partial / WEIGHTS)
        except SafetensorError as error:
            raise unwritable(out, error) from error
        (partial / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        card = model_card(config, source.label(), step, about["dataset"], _evaluated(source), _count(arrays))
        (partial / CARD).write_text(card, encoding="utf-8")
        if agent and agent.sha256:
            shutil.copyfile(verify_source(source.agent_file, agent), partial / AGENT)
        (partial / WEIGHTS).chmod((partial / ABOUT).stat().st_mode)  # safetensors lets nobody else read it
        seal(partial)
    return out


def _evaluated(run: RunDirectory) -> tuple[TrialReturn, ...]:
    return run.read_table() if run.table().is_file() else ()


def _count(arrays: dict[str, np.ndarray]) -> int:
    return sum(each.size for each in arrays.values())


def check_export(out: Path, *, overwrite: bool) -> None:
    """See whether `export` can make `out`. Raises UserError as that does, also where it would replace no export."""
    check_folder(out, marker=ABOUT, overwrite=overwrite)
    if out.exists():
        read_json(out / ABOUT, ExportRecord, "it is no export that may be replaced; choose another name")


def is_export(path: Path) -> bool:
    """Whether there is an exported model in the folder."""
    return (path / ABOUT).exists() and (path / WEIGHTS).exists()


def load_export(path: Path) -> tuple[Transformer, RunConfig, ExportRecord]:
    """The model on one device, its run's configuration, and all that config.json says.

    Raises UserError where there is no whole export, its agent is not trusted (`ringrl.trust`), the agent's file makes
    another model now, or its fused tokens are of an earlier ringrl.
    """
    sealed = check(path)
    about = read_json(path / ABOUT, ExportRecord, _AGAIN)
    if not sealed:
        require(path, promised="manifest" in about)
    if about["format"] != FORMAT:
        raise UserError(f"{path}: its {ABOUT} is of another kind; {_AGAIN}")
    values, agent = read_earlier(dict(about["config"])), about.get("agent")
    if agent and agent.sha256:
        values |= {"agent": values["agent"] | {"name": str(verify_source(path / AGENT, agent))}}
    require_trusted_config(values)
    config = parse_config(values, str(path / ABOUT))
    alone = config.model_copy(update={"mesh": type(config.mesh)()})
    decoder = make_decoder(config.agent)
    refuse_earlier_tokens(decoder, about.get("tokens", 0), path)
    graph, state = abstract_state(alone, decoder, about["dataset"]["sizes"], make_mesh(alone.mesh))
    arrays, expected = _read_arrays(path / WEIGHTS), _named(state.params)
    if {name: x.shape for name, x in expected.items()} != {name: x.shape for name, x in arrays.items()}:
        raise UserError(f"{path}: its parameters are not those of the model that its {ABOUT} describes; export again")
    names, tree = list(expected), jax.tree.structure(state.params)
    return (
        merge_model(graph, jax.tree.unflatten(tree, [jax.numpy.asarray(arrays[name]) for name in names])),
        config,
        about,
    )


def _read_arrays(path: Path) -> dict[str, Float32[np.ndarray, "..."]]:
    """The parameters by name. Raises UserError where they cannot be read, or are not finite float32 numbers."""
    try:
        arrays = load_file(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    for name, x in arrays.items():
        if x.dtype != np.float32 or not np.isfinite(x).all():
            raise UserError(f"{path}: {name} is not of finite float32 numbers; {_AGAIN}")
    return arrays


def _named(params: dict) -> dict[str, Any]:
    """The leaves of nested dicts, in JAX's order, by their keys joined with dots."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(str(part.key) for part in path): leaf for path, leaf in leaves}
