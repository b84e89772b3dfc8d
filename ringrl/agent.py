"""What a loaded agent can do: the one interface behind which training, rollout, planner and report see all agents.

An agent is a file in `agents/` with two names: `Config`, its hyper-parameters, and `Agent`, a class that extends one of
the base classes in `ringrl.sequence_agent` (transformers on episodes or on token ids) and `ringrl.transition_agent`
(networks on single transitions). Nothing here imports those files or the base classes.

What only some agents have is an attribute that is None in the others: `decoder` (a sequence model, which `ringrl plan`
and `ringrl export` need) and `policy` (which `ringrl evaluate` needs).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float64

from ringrl import recipes
from ringrl.batch import BatchField
from ringrl.config import AgentConfig, RunConfig
from ringrl.errors import UserError
from ringrl.model.output_heads import OutputHead
from ringrl.model.token_ids import TokenIds
from ringrl.model.tokens import TokenLayout
from ringrl.policy import RolloutSpec, TrainedPolicy
from ringrl.sampling.normalizer import Normalizer


@dataclass(frozen=True)
class AgentDescription:
    """What a run and its report say of an agent. A copy of the agent's file under another name says the same.

    Attributes:
        display_name: what pages call it, such as "Agentic Transformer".
        across_trials: whether its context continues from one trial to the next (Agentic Transformer, Algorithm
            Distillation), so that a gain over trials can be learning in context; else a trial sees only itself.
    """

    display_name: str
    across_trials: bool


LossFunction = Callable[[OutputHead, jax.Array, Mapping[str, jax.Array]], jax.Array]
"""(output head, prediction, batch) -> the loss of each step, float32 [batch, steps]."""

Widths = Mapping[str, int]
"""Widths of the data's `observation` and `action`; of token ids, of `previous` or none."""


@dataclass(frozen=True)
class Decoder:
    """An agent's sequence model, as far as the agent decides it; its shape is `RunConfig.model`'s.

    Attributes:
        tokens: what a step is to the transformer.
        loss: of each step. It must come from that step alone: what it is given are some steps of some rows, in any
            order, for a long row is computed block by block and spread over devices.
        schema: the arrays of a training batch.
    """

    tokens: TokenLayout | TokenIds
    loss: LossFunction
    schema: Mapping[str, BatchField]


@runtime_checkable
class TrainingData(Protocol):
    """What a run is trained on, as the training loop and the run directory see it."""

    @property
    def sizes(self) -> dict[str, int]:
        """The data's `Widths`."""
        ...

    @property
    def card(self) -> dict:
        """What dataset.json says of the data; only what JSON gives back as it was."""
        ...

    def prepare(self, run: Path) -> None:
        """Measure the data, or read what the run in `run` measured; process 0 reads, and all processes call this.

        Raises UserError where the run's data were others.
        """
        ...

    @property
    def normalizer(self) -> Normalizer | None:
        """The scales of observations, returns and rewards, once prepared; None where data are not normalised."""
        ...


@runtime_checkable
class Trainer(Protocol):
    """How an agent learns in one run; `ringrl.training.loop` drives it. A state is a pytree of arrays."""

    data: TrainingData
    mesh: Mesh
    step_sizes: str  # the settings to lower where learning diverges

    def init(self) -> Any:
        """The state at step 0, on its devices; after `data.prepare`."""
        ...

    def pack(self, state: Any) -> Any:
        """What a checkpoint keeps of a state: a pytree of numeric arrays, with their shardings."""
        ...

    def unpack(self, packed: Any, like: Any) -> Any:
        """The state of the structure of `like` that `pack` made `packed` of."""
        ...

    def updates(self, state: Any, start: int) -> Iterator[tuple[int, Any, dict[str, jax.Array]]]:
        """Train from `start` gradient steps to the run's last: after each compiled call the gradient steps done, the
        new state, and float32 scalars, `loss` and `grad_norm` among them, and `weight_max` of that
        state (`ringrl.training.soundness`). A state is donated to the next call.

        A call ends at every step that is logged or kept. The first batch is read before this returns.

        Raises UserError where the settings do not fit the data.
        """
        ...

    def validate(self, state: Any) -> dict[str, float]:
        """`validation_loss` of a state on the held-out episodes; empty where none are held out."""
        ...

    def explain(self, step: int, found: str) -> tuple[str, str]:
        """For a message on the call that ended at `step`, one of the last two, with metrics of which `found` is said:
        what is to be said of the step at fault, such as `loss is nan at step 12`, and what its batch was."""
        ...

    def rates(self, step: int) -> dict[str, float]:
        """`tokens` so far, `tokens_per_s` since the last call of this, and more; for a line of metrics.jsonl."""
        ...


@runtime_checkable
class PolicySource(Protocol):
    """How an agent acts once it is trained."""

    def rollout_spec(self, row_steps: int, returns: Float64[np.ndarray, " episodes"]) -> RolloutSpec:
        """How to roll it out, given the steps of a training row and the data set's returns."""
        ...

    def load_policy(self, run: Path, config: RunConfig, sizes: Widths, checkpoint: str) -> TrainedPolicy:
        """The policy of a run's checkpoint: `latest`, `best`, or the number of a step.

        Raises UserError where there is no such checkpoint, or it is damaged or of another model.
        """
        ...


@runtime_checkable
class Agent(Protocol):
    """An agent under one setting of its hyper-parameters."""

    config: AgentConfig
    description: AgentDescription

    @property
    def decoder(self) -> Decoder | None:
        """Its sequence model; None: it has none."""
        ...

    @property
    def policy(self) -> PolicySource | None:
        """How it acts; None: it cannot be rolled out."""
        ...

    def make_trainer(self, config: RunConfig) -> Trainer:
        """How it learns in a run: opens the data. Raises UserError where a setting does not fit."""
        ...


def make_agent(agent: AgentConfig | str) -> Agent:
    """The agent in the file that `agent.name` names; for a name alone, under the default hyper-parameters.

    Args:
        agent: its configuration; or its name, in `agents/`, or the path of a file.

    Raises UserError, in one line, where there is no such file or it is not an agent.
    """
    module = recipes.load("agents", agent if isinstance(agent, str) else agent.name)
    made, config_type = getattr(module, "Agent", None), getattr(module, "Config", None)
    if not (isinstance(made, type) and isinstance(config_type, type) and issubclass(config_type, AgentConfig)):
        raise UserError(f"{module.__file__}: {_explain(module)}")
    if missing := sorted(getattr(made, "__abstractmethods__", ())) or _missing(made):
        raise UserError(f"{module.__file__}: not an agent, for its class Agent has no {', '.join(missing)}; {_EXAMPLE}")
    return made(config_type(name=agent) if isinstance(agent, str) else agent)


def make_decoder(agent: AgentConfig | str) -> Decoder:
    """The sequence model of an agent that has one. Raises UserError as `make_agent`, and where it has none."""
    loaded = make_agent(agent)
    if loaded.decoder is None:
        raise UserError(
            f"{loaded.config.name}: this agent has no sequence model: it can be trained, resumed and evaluated only"
        )
    return loaded.decoder


_EXAMPLE = "`ringrl cp decision_transformer PATH` copies one to start from"
# The functions that made a module an agent before agents were classes.
_EARLIER = (("planner", "tokens", "loss", "acting"), ("init", "make_replay", "update", "act"))


def _explain(module: ModuleType) -> str:
    """What is wrong with a module that has not both names of an agent."""
    for names, base in zip(_EARLIER, ("SequenceAgent", "TransitionAgent"), strict=True):
        if not hasattr(module, "Agent") and all(hasattr(module, name) for name in names):
            return (
                f"an agent of an earlier ringrl, made of the functions {', '.join(names)}; an agent is a class now: "
                f"make them methods of a `class Agent({base})`; {_EXAMPLE}"
            )
    missing = [name for name in ("Config", "Agent") if not isinstance(getattr(module, name, None), type)]
    if not missing:
        return f"its Config is not an agent's, for it does not extend ringrl.config.AgentConfig; {_EXAMPLE}"
    return f"not an agent, for it has no class {' and no class '.join(missing)}; {_EXAMPLE}"


def _missing(made: type) -> list[str]:
    """The names of `Agent` that a class has not; `config` is given to it."""
    names = [*Agent.__annotations__, *(name for name in vars(Agent) if not name.startswith("_"))]
    return [name for name in dict.fromkeys(names) if name != "config" and not hasattr(made, name)]
