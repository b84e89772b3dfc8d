"""Typed, frozen configurations: YAML, then `a.b=c` overrides; an unknown key or wrong type is named in the error."""

import copy
import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from ringrl import recipes
from ringrl.choices import WhenFull
from ringrl.config_section import ConfigSection
from ringrl.errors import UserError
from ringrl.mesh_config import MeshConfig
from ringrl.model_config import ModelConfig
from ringrl.readers import first_complaint, parse_yaml, read_yaml
from ringrl.trackers import check_tracker_name


class DataConfig(ConfigSection):
    """Where the episodes come from."""

    store: str  # an episode store (`ringrl data build_store`): its folder, or a URL such as gs://bucket/walker
    task: str  # "walker_run": rewards of this column train the agent, and this environment evaluates it
    # Environment steps per agent step, in the data and in the rollout.
    action_repeat: int = Field(default=1, ge=1)
    prefetch: int = Field(default=4, ge=0)  # batches read ahead in the background
    # Share of the episodes, or of ten sources and more of the sources, that is held out of training; at each checkpoint
    # their loss is logged as validation_loss. 0: none.
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    # Of a family of rewards: share of the drawn members that pay at a state of the data; the rest as tasks are drawn.
    hindsight: float = Field(default=0.5, ge=0, le=1)
    # Of a library: how many members a context has, one of these numbers, drawn for it; None: as many as the task says.
    library: tuple[Annotated[int, Field(ge=1, le=999)], ...] | None = Field(default=None, min_length=1)
    # Of td3 on a family's visible task: whether members' rewards are scaled to one average in the data.
    scale_members: bool = False

    @field_validator("store", mode="before")
    @classmethod
    def _write_out_path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value


class AgentConfig(ConfigSection):
    """What every agent file's `Config` extends with hyper-parameters of its own."""

    name: str  # a file in agents/, or a path to one's own
    fused: bool = False  # True: one token a step (previous action, previous reward, observation); False: one a modality
    head: Literal["tanh_mse", "gaussian", "categorical"] = "tanh_mse"  # how an action is predicted
    bins: int = Field(default=32, ge=2)  # values an action dimension can take (categorical head)
    sample: bool = False  # act by drawing from the head's distribution instead of taking its mode


ConfigSectionT = TypeVar("ConfigSectionT", bound=ConfigSection)


class ScheduleLeg(ConfigSection):
    """Learning rates from a step on: linearly to `peak`, then a cosine to `end` (`ringrl.training.learning_rate`)."""

    begin: int = Field(ge=0)  # the step
    rate: float = Field(ge=0)  # with which it begins
    peak: float = Field(ge=0)
    warmup: int = Field(ge=0)  # steps to the peak
    end: float = Field(ge=0)
    steps: int = Field(ge=1)  # of the run, at which `end` is reached


class OptimizerConfig(ConfigSection):
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up and cosine decay."""

    learning_rate: float = Field(default=1e-3, gt=0)  # the highest, after the warm-up
    final_fraction: float = Field(default=0.1, ge=0, le=1)  # of the learning rate, at the last step
    warmup_steps: int = Field(default=50, ge=0)  # in which the learning rate rises linearly from 0
    weight_decay: float = Field(default=1e-4, ge=0)  # matrices only
    beta2: float = Field(default=0.99, gt=0, lt=1)  # decay of the second moment, a step; beta1 is 0.9
    clip_norm: float = Field(default=1.0, gt=0)  # global gradient norm
    accumulation: int = Field(default=1, ge=1)  # micro-batches a step; the result is that of the whole batch
    legs: tuple[ScheduleLeg, ...] = ()  # set by `--resume` where rates or steps change


class TrainingConfig(ConfigSection):
    """How long, how much at once, and what is kept."""

    steps: int = Field(default=1000, ge=1)  # optimiser steps
    batch: int = Field(default=16, ge=1)  # rows a step, over all devices
    row_steps: int = Field(default=1000, ge=1)  # agent steps in a row
    packing: bool = False  # True: a row holds as many chains as fit, kept apart by segment ids; False: one
    log_every: int = Field(default=20, ge=1)  # steps between two lines of metrics.jsonl
    checkpoint_every: int = Field(default=500, ge=1)  # steps between two checkpoints; the last step is one too
    keep_checkpoints: int = Field(default=2, ge=1)  # the newest
    keep_best: int = Field(default=1, ge=0)  # beside them, those of the lowest validation loss, or loss
    # To which the lines of metrics.jsonl are shown too: tensorboard, wandb, or one of your own, my_module:MyTracker.
    trackers: tuple[Annotated[str, AfterValidator(check_tracker_name)], ...] = ("tensorboard",)


class EvaluationConfig(ConfigSection):
    """Rollouts after training; `ringrl evaluate` can override each."""

    trials: int = Field(default=4, ge=1)  # episodes, all in one context where the agent reads earlier ones
    envs: int = Field(default=16, ge=1)  # environments, each with trials and a context of its own
    context: int | None = Field(default=None, ge=1)  # tokens the agent may look back on; None: what it was trained on
    # Environment i has seed + i. Tasks hidden_* and visible_* take 1000000 or more, which no training data are of, and
    # those of families of rewards also 500000 or more, to choose settings by.
    seed: int = Field(default=1000, ge=0, lt=2**62)
    target: float | None = None  # return to ask for; None: the best return of the data set
    when_full: WhenFull = "newest"  # what is kept of a full context: the newest or best whole trials; or stop there
    cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None  # of keys and values; None: compute_dtype's
    # The first so many trials act at random, as reward-free data are made; what they find is in the context after them.
    explore: int = Field(default=0, ge=0)
    # Of an action of these and the next: 0 draws them uniform and independent (`ringrl data collect --policy random`).
    explore_correlation: float = Field(default=0.0, ge=0, lt=1)
    mesh: MeshConfig | None = (
        None  # over which rollouts are spread; None: the run's, or one device where there are fewer
    )


class RunConfig(ConfigSection):
    """Everything that a run depends on."""

    seed: int = Field(default=0, ge=0, lt=2**62)  # of parameters, batches and drawn actions
    label: str | None = Field(default=None, min_length=1)  # what tables and figures call it; None: the agent's file
    data: DataConfig
    agent: SerializeAsAny[AgentConfig]
    model: ModelConfig = ModelConfig()
    mesh: MeshConfig = MeshConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("label")
    @classmethod
    def _refuse_references(cls, label: str | None) -> str | None:
        if label in ("random", "expert"):
            raise ValueError(f"{label!r} is what tables call a reference; choose another name")
        return label

    @field_validator("agent", mode="before")
    @classmethod
    def _type_agent(cls, agent: Any) -> Any:
        """Let the agent's own file say which hyper-parameters it has."""
        if not isinstance(agent, dict) or not isinstance(agent.get("name"), str):
            return agent
        config = getattr(recipes.load("agents", agent["name"]), "Config", None)
        if not (isinstance(config, type) and issubclass(config, AgentConfig)):
            raise ValueError(f"{agent['name']} has no `Config` that extends AgentConfig: not an agent to train here")
        return config.model_validate(agent)

    @model_validator(mode="after")
    def _check_divisions(self) -> "RunConfig":
        rows = self.mesh.data * self.mesh.fsdp * self.optimizer.accumulation
        if self.training.batch % rows:
            raise ValueError(
                f"training.batch {self.training.batch} must be a multiple of data x fsdp x accumulation = {rows}"
            )
        if self.training.row_steps % self.mesh.pieces:
            raise ValueError(
                f"training.row_steps {self.training.row_steps} must be a multiple of {self.mesh.pieces} for "
                f"mesh.seq={self.mesh.seq} in the {self.mesh.ring_layout} layout"
            )
        if self.training.row_steps % (self.mesh.seq * self.mesh.heads):
            raise ValueError(
                f"training.row_steps {self.training.row_steps} must be a multiple of mesh.seq x mesh.heads = "
                f"{self.mesh.seq * self.mesh.heads}"
            )
        groups = self.model.head_groups * self.mesh.tensor
        if self.model.kv_heads % groups:
            raise ValueError(
                f"model.kv_heads {self.model.kv_heads} must be a multiple of model.head_groups x mesh.tensor = {groups}"
            )
        if self.model.heads % (groups * self.mesh.heads):
            raise ValueError(
                f"model.heads {self.model.heads} must be a multiple of model.head_groups x mesh.tensor x mesh.heads = "
                f"{groups * self.mesh.heads}"
            )
        if (self.model.hidden or 4 * self.model.width) % self.mesh.tensor:
            raise ValueError(f"the feed-forward's hidden width must be a multiple of mesh.tensor {self.mesh.tensor}")
        return self


SECTIONS: dict[str, type[ConfigSection]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "mesh": MeshConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}
"""All but the agent's, whose type is that of its file."""

AnyConfig = str | os.PathLike[str] | Mapping[str, Any] | RunConfig


def load_config(source: AnyConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """A YAML file's configuration (a path or a shipped name), or that of plain values, changed by `a.b=c` (c is YAML).

    Raises UserError in one line that names the key, when it is unknown or its value has the wrong type.
    """
    return parse_config(*_merged(source, overrides))


def _merged(source: AnyConfig, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Plain values, with the overrides, and what messages call their source."""
    if isinstance(source, RunConfig):
        source = source.model_dump(mode="json")
    values, where = (copy.deepcopy(dict(source)), "config") if isinstance(source, Mapping) else _read(source)
    for override in overrides:
        _override(values, override)
    return values, where


def _read(source: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    path = recipes.find("configs", source)
    return read_yaml(path), str(path)


def check_sections(source: AnyConfig, overrides: Sequence[str] = ()) -> None:
    """Raise the UserError that `load_config` would for all but the agent's section and what depends on several.

    It takes no time, where loading an agent imports JAX.
    """
    if isinstance(source, RunConfig):
        return
    values, where = _merged(source, overrides)
    if unknown := [key for key in values if key not in RunConfig.model_fields]:
        raise UserError(f"{where}: `{unknown[0]}`: {_unknown(unknown[0], RunConfig.model_fields)}")
    for name, section in SECTIONS.items():
        if name in values:
            try:
                section.model_validate(values[name])
            except ValidationError as error:
                raise UserError(f"{where}: {_complaint(error, section, name)}") from error


def parse_config(values: dict[str, Any], where: str) -> RunConfig:
    """Validate plain values; `where` names their source in the UserError that a wrong one raises."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {_complaint(error, RunConfig)}") from error


def _complaint(error: ValidationError, model: type[ConfigSection], section: str = "") -> str:
    """Pydantic's first complaint; of a key that is not known with what it may mean."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    *parents, key = [str(part) for part in first["loc"]] or [""]
    if first["type"] != "extra_forbidden" or len(parents) > 1:
        return first_complaint(error, section)
    known = SECTIONS[parents[0]] if parents and parents[0] in SECTIONS else None if parents else model
    advice = _unknown(key, known.model_fields) if known else "unknown key; the agent's file has all that there are"
    return f"`{'.'.join(filter(None, (section, *parents, key)))}`: {advice}"


def _unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known, n=2, cutoff=0.6)
    return f"unknown key; did you mean {' or '.join(near)}?" if near else f"unknown key; there are {', '.join(known)}"


def change_section(section: ConfigSectionT, values: dict[str, Any], where: str) -> ConfigSectionT:
    """`section` with some fields changed, validated as if they had been in the file. Raises UserError as that does."""
    try:
        return type(section).model_validate(section.model_dump() | values)
    except ValidationError as error:
        raise UserError(f"{where}: {first_complaint(error)}") from error


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override `{override}`: write it as a.b=c, for example training.steps=100")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"override `{override}`: `{parent}` is a value, not a section")
    node[last] = parse_yaml(text, f"override `{override}`")
