"""What an agent's file in `agents/` provides, and how an agent acts once trained; nothing here imports those files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from ringrl import recipes
from ringrl.config import AgentConfig
from ringrl.errors import UserError
from ringrl.experience.chain import Planner
from ringrl.experience.store import Store
from ringrl.model.heads import Head
from ringrl.model.text import TokenIds
from ringrl.model.tokens import TokenLayout


@dataclass(frozen=True)
class Acting:
    """How a trained agent is rolled out.

    Where `target` is a number, every trial starts with it as its return-to-go, less each reward as it comes (Decision
    Transformer, section 3). `across_trials`: the context goes on from one trial to the next (Agentic Transformer,
    Algorithm Distillation); otherwise a trial sees only itself. `context_steps` is the longest context, in steps, that
    training has shown the agent.
    """

    context_steps: int
    across_trials: bool
    target: float | None = None
    sample: bool = False  # draw actions from the head's distribution instead of taking its mode


@runtime_checkable
class Agent(Protocol):
    """The module that `agents/NAME.py` is: one agent, whole. Any module with these names is an agent."""

    Config: type[AgentConfig]

    def planner(self, config: AgentConfig, store: Store, task: str, action_repeat: int) -> Planner:
        """Which trajectories stand in a context, in which order, with which target returns."""
        ...

    def tokens(self, config: AgentConfig) -> TokenLayout | TokenIds:
        """What a step looks like to the transformer."""
        ...

    def loss(self, config: AgentConfig, head: Head, prediction: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Loss of each step, float32 [batch, steps]; the training loop weights and averages it.

        Each step's must come from that step alone: what is given are some steps of some rows, in any order, for a long
        row is computed block by block and spread over devices.
        """
        ...

    def acting(self, config: AgentConfig, row_steps: int, returns: np.ndarray) -> Acting:
        """How to roll it out, given the steps of a training row and the data set's returns, float64 [episodes]."""
        ...


def load_agent(name: str) -> Agent:
    """The agent in `agents/NAME.py`, or in a file of the user's own (a path). Raises UserError when it is not one."""
    module = recipes.load("agents", name)
    missing = [part for part in ("Config", "planner", "tokens", "loss", "acting") if not hasattr(module, part)]
    if missing:
        raise UserError(f"{module.__file__}: not an agent, for it has no {', '.join(missing)}; see `ringrl cp` for one")
    return module  # pyright: ignore[reportReturnType]  # a module that has the protocol's names
