"""What an agent's file in `agents/` provides, and how an agent acts once trained; nothing here imports those files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from ringrl import recipes
from ringrl.collect.replay import Replay, Transitions
from ringrl.config import AgentConfig, RunConfig
from ringrl.errors import UserError
from ringrl.model.output_heads import OutputHead
from ringrl.model.token_ids import TokenIds
from ringrl.model.tokens import TokenLayout
from ringrl.sampling.samplers import ContextSampler
from ringrl.store.episode_store import Store


@dataclass(frozen=True)
class RolloutSpec:
    """How a trained agent is rolled out.

    Where `target` is a number, every trial starts with it as its return-to-go, less each reward as it comes (Decision
    Transformer, section 3); a rate stays as it is (`shrinks`). `across_trials`: the context goes on from one trial to
    the next (Agentic Transformer, Algorithm Distillation); otherwise a trial sees only itself. `context_steps` is the
    longest context, in steps, that training has shown the agent.
    """

    context_steps: int
    across_trials: bool
    target: float | None = None
    shrinks: bool = True  # whether the target is what is left of a return; else it is a rate, the same at every step
    sample: bool = False  # draw actions from the head's distribution instead of taking its mode


@runtime_checkable
class Agent(Protocol):
    """The module that `agents/NAME.py` is: one agent, whole. Any module with these names is an agent."""

    Config: type[AgentConfig]

    def planner(self, config: AgentConfig, store: Store, task: str, action_repeat: int) -> ContextSampler:
        """Which trajectories stand in a context, in which order, with which target returns."""
        ...

    def tokens(self, config: AgentConfig) -> TokenLayout | TokenIds:
        """What a step looks like to the transformer."""
        ...

    def loss(
        self, config: AgentConfig, head: OutputHead, prediction: jax.Array, batch: Mapping[str, jax.Array]
    ) -> jax.Array:
        """Loss of each step, float32 [batch, steps]; the training loop weights and averages it.

        Each step's must come from that step alone: what is given are some steps of some rows, in any order, for a long
        row is computed block by block and spread over devices.
        """
        ...

    def acting(self, config: AgentConfig, row_steps: int, returns: np.ndarray) -> RolloutSpec:
        """How to roll it out, given the steps of a training row and the data set's returns, float64 [episodes]."""
        ...


@runtime_checkable
class Learner(Protocol):
    """The other kind of module: an agent that learns from single transitions and sees no context.

    It has networks and optimisers of its own; its state is a pytree of arrays.
    """

    Config: type[AgentConfig]

    def init(self, config: Any, observation_size: int, action_size: int, seed: int) -> Any:
        """The state at step 0."""
        ...

    def make_replay(self, config: Any, capacity: int, observation_size: int, action_size: int) -> Replay:
        """An empty replay of `capacity` transitions, which gives minibatches as `update` takes them."""
        ...

    def update(self, config: Any, state: Any, batches: Transitions) -> tuple[Any, dict[str, jax.Array]]:
        """A gradient step for each minibatch: the new state, and float32 scalars, `loss` and `grad_norm` among them."""
        ...

    def act(self, state: Any, observation: np.ndarray) -> np.ndarray:
        """Actions in [-1, 1], float32 [batch, A], for normalised observations, float32 [batch, O]."""
        ...


def load_agent(name: str) -> Agent:
    """The agent in `agents/NAME.py`, or in a file of the user's own (a path).

    Raises UserError when it is not one, or one that sees no context and so has no sequence model.
    """
    module = recipes.load("agents", name)
    if not _missing(Learner, module):
        raise UserError(f"{module.__file__}: has no sequence model: it can be trained, resumed and evaluated only")
    if missing := _missing(Agent, module):
        raise UserError(f"{module.__file__}: not an agent, for it has no {', '.join(missing)}; see `ringrl cp` for one")
    return module  # pyright: ignore[reportReturnType]  # a module that has the protocol's names


def find_learner(name: str) -> Learner | None:
    """The agent of that name if it is a `Learner`; None says that it is to be loaded with `load_agent`."""
    module = recipes.load("agents", name)
    return None if _missing(Learner, module) else module  # pyright: ignore[reportReturnType]


def display_name(module: Any) -> str:
    """What tables and figures call an agent: how its docstring begins, up to a bracket or a colon."""
    title = re.split(r"\s*[(:.\n]", (module.__doc__ or "").strip(), maxsplit=1)[0]
    return title or Path(module.__file__).stem


def looks_across_trials(agent: Agent, config: RunConfig, returns: Sequence[float]) -> bool:
    """Whether the agent's context continues from one trial to the next; False where it cannot be rolled out."""
    try:
        spec = agent.acting(config.agent, config.training.row_steps, np.asarray(returns, np.float64))
    except UserError:
        return False
    return spec.across_trials


def _missing(protocol: type, module: ModuleType) -> list[str]:
    """The names of the protocol that the module does not have, in the protocol's order."""
    names = [*protocol.__annotations__, *(name for name in vars(protocol) if not name.startswith("_"))]
    return [name for name in dict.fromkeys(names) if not hasattr(module, name)]
