"""`ringrl plan`: what the TPU or the CUDA compiler says of a config. The planner is imported when the verb runs."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from tyro.conf import Positional

from ringrl.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from ringrl.config import RunConfig


@dataclass(frozen=True)
class PlanVerb:
    """Ask the real TPU or CUDA compiler whether a config's training step, or its agent's step in a rollout, fits on a
    slice of TPUs or on GPUs; needs neither."""

    config: Positional[str | None] = None
    """A path, or a name from `ringrl ls`."""
    overrides: Positional[tuple[str, ...]] = ()
    """Settings as a.b=c, for example training.row_steps=64000."""
    topology: str | None = None
    """generation:chips, for example v5e:4x8, v4:4x4x4; of GPUs their number, or hosts x GPUs: h100:8, h100:4x8."""
    find_max_context: bool = False
    """Find the longest row that fits instead, by changing training.row_steps; with --decode, the longest cache."""
    precision: float = 0.125
    """Of --find-max-context: stop when a row longer by this share does not fit."""
    decode: bool = False
    """Compile a rollout's agent step instead, with a full context in the KV cache."""
    envs: int = 1
    """With --decode: environments that act at once."""
    context: int | None = None
    """With --decode: tokens of an environment that the cache has room for; the config's row if not given."""
    cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None
    """With --decode: the cache's type; the model's compute_dtype if not given."""
    exchanges: bool = False
    """Compare the ways to spread a sequence instead: ring, hybrid and all-gather, for one layer's attention."""
    tables: bool = False
    """Print the paper's tables instead, for CONFIG's shape or LLaMA 7B's; compiles nothing."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Compile, and print what the compiler says. Raises UserError where options are missing or contradict."""
        import jax

        jax.config.update("jax_platforms", "cpu")  # the accelerators of this machine stay free
        from ringrl.config import load_config

        if sum((self.find_max_context or self.decode, self.exchanges, self.tables)) > 1:
            raise UserError("plan takes one of --find-max-context (or --decode), --exchanges and --tables")
        if not self.decode and (self.envs != 1 or self.context is not None or self.cache_dtype is not None):
            raise UserError("plan: --envs, --context and --cache-dtype are of --decode; give that too")
        config = None if self.config is None else load_config(self.config, self.overrides)
        if self.tables:
            return self._print_tables(config)
        if config is None or self.topology is None:
            raise UserError("plan needs a CONFIG (see `ringrl ls`) and a --topology such as v5e:2x4, or --tables")
        if self.exchanges:
            return self._print_exchanges(config, self.topology)
        if self.decode:
            return self._print_decode(config, self.topology)
        if self.find_max_context:
            return self._print_max_context(config, self.topology)
        from ringrl.planner import plan_table, plan_training_step

        waiting = f"compiling the training step of {self.config} for {self.topology}; large models take minutes"
        with Console(stderr=True).status(waiting):
            plan = plan_training_step(config, self.topology)
        self._print(plan, plan_table.to_table(plan, f"{self.config} on {self.topology}"))

    def _print_tables(self, config: "RunConfig | None") -> None:
        from ringrl.agent import make_decoder
        from ringrl.planner import paper_tables

        shape = paper_tables.Shape()
        if config is not None:
            tokens_per_step = make_decoder(config.agent).tokens.tokens_per_step
            shape = paper_tables.shape_of(config, config.training.row_steps * tokens_per_step)
        self._print(paper_tables.rows_of(shape), *paper_tables.to_tables(shape))

    def _print_exchanges(self, config: "RunConfig", topology: str) -> None:
        from ringrl.planner import exchanges

        with Console(stderr=True).status(f"compiling attention for {topology} each way"):
            plans = exchanges.plan_exchanges(config, topology)
        title = f"one layer's attention of {self.config} on {topology}, forward and backward, a device"
        self._print(plans, exchanges.to_table(plans, title))

    def _print_decode(self, config: "RunConfig", topology: str) -> None:
        from ringrl.planner import find_max_cache, plan_decode, plan_table

        asked: Any = {"environments": self.envs, "context": self.context, "cache_dtype": self.cache_dtype}
        progress, title = Console(stderr=True), f"an agent step of {self.config} on {topology}"
        with progress.status(f"compiling {title}"):
            if self.find_max_context:
                report = lambda attempt: progress.print(plan_table.attempt_line(attempt), highlight=False)  # noqa: E731
                found = find_max_cache(config, topology, **asked, precision=self.precision, on_attempt=report)
                return self._print(found, plan_table.to_max_cache_table(found, title))
            plan = plan_decode(config, topology, **asked)
        self._print(plan, plan_table.to_decode_table(plan, title))

    def _print_max_context(self, config: "RunConfig", topology: str) -> None:
        from ringrl.planner import find_max_context, plan_table

        progress = Console(stderr=True)
        with progress.status(f"compiling the training step of {self.config} for {topology}, a longer row each time"):
            report = lambda attempt: progress.print(plan_table.attempt_line(attempt), highlight=False)  # noqa: E731
            found = find_max_context(config, topology, precision=self.precision, on_attempt=report)
        self._print(found, plan_table.to_max_context_table(found, f"{self.config} on {topology}"))

    def _print(self, result: Any, *tables: "Table") -> None:
        if self.json:
            print(json.dumps(result, default=asdict))  # a plan is an object of its fields
        else:
            Console().print(*tables)
