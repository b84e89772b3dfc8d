"""The verbs of the command line: what each one takes, and which room does its work."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from ringrl import recipes
from ringrl.errors import UserError
from ringrl.rollout import Ablation

if TYPE_CHECKING:
    from rich.table import Table

    from ringrl.config import RunConfig

# Rooms are imported by the verb that needs them: `ringrl ls` should not wait for JAX and MuJoCo.


@dataclass(frozen=True)
class DemoVerb:
    """Collect, relabel, store, train, evaluate and report on dm_control's cartpole swingup."""

    out: Path = Path(".")
    """Folder in which datasets/demo and runs/demo are made."""
    scale: float = 1.0
    """Share of the full demo's episodes and training steps; 1.0 is what the README shows."""
    fresh: bool = False
    """Start over, instead of going on where an earlier demo was interrupted."""

    def run(self) -> None:
        """Run every stage."""
        from ringrl.cli.demo import demo

        if not 0 < self.scale <= 1:
            raise UserError(f"--scale {self.scale}: give a share above 0 and at most 1")
        print(f"report: {demo(self.out, self.scale, self.fresh)}")


@dataclass(frozen=True)
class TrainVerb:
    """Train a config (a YAML file, or the name of a shipped one) in a run directory, or go on with a run."""

    config: Positional[str | None] = None
    """A path, or a name from `ringrl ls`."""
    overrides: Positional[tuple[str, ...]] = ()
    """Settings as a.b=c, for example training.steps=100."""
    out: Path | None = None
    """The run directory; default runs/NAME-seedN."""
    resume: Path | None = None
    """Continue this run from its newest checkpoint, under its own configuration."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where many processes train together and no launcher that JAX knows has started them."""
    processes: int | None = None
    """How many processes train together; 1 trains alone whatever the launcher says."""
    process: int | None = None
    """Which of them this is, from 0."""
    silence: float = 60.0
    """Seconds without a sign of life after which a process is taken for dead, and the run ends."""

    def run(self) -> None:
        """TrainVerb."""
        from ringrl.training.processes import from_first, is_first, joined

        if self.resume is not None and (self.config is not None or self.overrides):
            raise UserError("--resume RUN goes on under the run's own config: give it no CONFIG and no overrides")
        if self.resume is None and self.config is None:
            raise UserError("train needs a CONFIG (see `ringrl ls`) or --resume RUN")
        with joined(self.coordinator, self.processes, self.process, self.silence):
            from ringrl.config import parse_config
            from ringrl.training.loop import train

            values, run = from_first("config", self._settings)
            train(parse_config(values, str(run)), Path(run))
            if is_first():
                print(f"run: {run}")

    def _settings(self) -> tuple[dict, str]:
        """The configuration, as plain values, and the run directory; read by process 0 for all."""
        from ringrl.config import load_config
        from ringrl.training.loop import find_run

        if self.resume is not None:
            return find_run(self.resume).model_dump(mode="json"), str(self.resume)
        config = load_config(self.config or "", self.overrides)
        run = self.out or Path("runs") / f"{Path(self.config or '').stem}-seed{config.seed}"
        if (run / "config.yaml").exists():
            raise UserError(
                f"{run}: there is a run already; continue it with --resume {run}, or name another with --out"
            )
        return config.model_dump(mode="json"), str(run)


@dataclass(frozen=True)
class EvaluateVerb:
    """Roll a trained run out in its task over many trials; writes evaluation/returns.csv."""

    run_directory: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """What `ringrl train` made."""
    trials: int | None = None
    """Trials in one context, in each environment."""
    envs: int | None = None
    """Environments, stepped as one batch."""
    context: int | None = None
    """Tokens the agent may look back on."""
    target: float | None = None
    """Return to ask for, of agents that are told one; default the config's evaluation.target, or the data's best."""
    targets: tuple[float, ...] = ()
    """Several returns to ask for in turn: writes evaluation/targets.csv, and leaves returns.csv alone."""
    probe: tuple[Ablation, ...] = ()
    """Remove, reorder or swap the earlier trials, or hide all rewards: writes evaluation/probe-NAME.csv each."""
    seed: int | None = None
    """Of the environments and the drawn actions."""
    checkpoint: str = "latest"
    """latest, best (the lowest training loss of those that are kept), or the number of a step."""
    reference: bool = True
    """Also roll out the random policy and the task's expert, into the same table; of several runs one needs them."""
    video: Path | None = None
    """Also film the first environment's trials, for example film.mp4 (ringrl[video]; needs EGL or a display)."""

    def run(self) -> None:
        """EvaluateVerb."""
        from ringrl.rollout.evaluate import evaluate, repeat

        names = ("trials", "envs", "context", "target", "seed", "checkpoint")
        settings = {name: getattr(self, name) for name in names}
        if not self.targets and not self.probe:
            print(f"returns: {evaluate(self.run_directory, reference=self.reference, video=self.video, **settings)}")
            return
        if self.video is not None:
            raise UserError("--video films the evaluation itself: leave out --targets and --probe")
        if self.targets and self.target is not None:
            raise UserError("give --target or --targets, not both")
        for table in repeat(self.run_directory, self.targets, self.probe, **settings):
            print(f"returns: {table}")


@dataclass(frozen=True)
class ExportVerb:
    """Write a trained model as model.safetensors and config.json, which need no ringrl to read."""

    run_directory: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """What `ringrl train` made."""
    out: Path | None = None
    """The folder; default RUN/export."""
    step: str = "latest"
    """The checkpoint: latest, best (the lowest training loss of those that are kept), or the number of a step."""
    overwrite: bool = False
    """Replace an earlier export."""

    def run(self) -> None:
        """ExportVerb."""
        from ringrl.rollout.evaluate import load_model, read_run
        from ringrl.training.export import export

        run = self.run_directory
        config, card = read_run(run)
        model, step = load_model(run, config, card, self.step)
        print(f"export: {export(model, config, step, run, self.out or run / 'export', overwrite=self.overwrite)}")


@dataclass(frozen=True)
class ReportVerb:
    """Compare evaluated runs on one self-contained page: index.html, figures, summary.json."""

    runs: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Run directories, evaluated before."""
    out: Path | None = None
    """Folder of the report; default RUN/report, or runs/report for several."""

    def run(self) -> None:
        """Write the report."""
        from ringrl.reporting import write_report

        if not self.runs:
            raise UserError("report needs one RUN or more")
        print(f"report: {write_report(self.runs, self.out)}")


@dataclass(frozen=True)
class PlanVerb:
    """Ask the real TPU compiler whether a config's training step fits on a slice of TPUs; needs no TPU."""

    config: Positional[str | None] = None
    """A path, or a name from `ringrl ls`."""
    overrides: Positional[tuple[str, ...]] = ()
    """Settings as a.b=c, for example training.row_steps=64000."""
    topology: str | None = None
    """The slice: generation:chips, for example v5e:4x8, v4:4x4x4, v3:16x16."""
    find_max_context: bool = False
    """Find the longest row that fits instead, by changing training.row_steps."""
    precision: float = 0.125
    """Of --find-max-context: stop when a row longer by this share does not fit."""
    exchanges: bool = False
    """Compare the ways to spread a sequence instead: ring, hybrid and all-gather, for one layer's attention."""
    tables: bool = False
    """Print the paper's tables instead, for CONFIG's shape or LLaMA 7B's; compiles nothing."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Compile, and print what the compiler says."""
        import jax

        jax.config.update("jax_platforms", "cpu")  # whatever accelerators this machine has stay free
        from ringrl.config import load_config

        if sum((self.find_max_context, self.exchanges, self.tables)) > 1:
            raise UserError("plan takes one of --find-max-context, --exchanges and --tables")
        config = None if self.config is None else load_config(self.config, self.overrides)
        if self.tables:
            return self._print_tables(config)
        if config is None or self.topology is None:
            raise UserError("plan needs a CONFIG (see `ringrl ls`) and a --topology such as v5e:2x4, or --tables")
        if self.exchanges:
            return self._print_exchanges(config, self.topology)
        if self.find_max_context:
            return self._print_max_context(config, self.topology)
        from ringrl.planner import plan_table, plan_training_step

        waiting = f"compiling the training step of {self.config} for {self.topology}; large models take minutes"
        with Console(stderr=True).status(waiting):
            plan = plan_training_step(config, self.topology)
        self._print(plan_table.to_json(plan), plan_table.to_table(plan, f"{self.config} on {self.topology}"))

    def _print_tables(self, config: "RunConfig | None") -> None:
        from ringrl.agent import load_agent
        from ringrl.planner import paper_tables

        shape = paper_tables.Shape()
        if config is not None:
            tokens_per_step = load_agent(config.agent.name).tokens(config.agent).tokens_per_step
            shape = paper_tables.shape_of(config, config.training.row_steps * tokens_per_step)
        self._print(paper_tables.to_json(shape), *paper_tables.to_tables(shape))

    def _print_exchanges(self, config: "RunConfig", topology: str) -> None:
        from ringrl.planner import exchanges

        with Console(stderr=True).status(f"compiling attention for {topology} each way"):
            plans = exchanges.plan_exchanges(config, topology)
        title = f"one layer's attention of {self.config} on {topology}, forward and backward, a device"
        self._print(exchanges.to_json(plans), exchanges.to_table(plans, title))

    def _print_max_context(self, config: "RunConfig", topology: str) -> None:
        from ringrl.planner import find_max_context, plan_table

        progress = Console(stderr=True)
        with progress.status(f"compiling the training step of {self.config} for {topology}, a longer row each time"):
            report = lambda attempt: progress.print(plan_table.attempt_line(attempt), highlight=False)  # noqa: E731
            found = find_max_context(config, topology, precision=self.precision, on_attempt=report)
        self._print(plan_table.to_json(found), plan_table.to_max_context_table(found, f"{self.config} on {topology}"))

    def _print(self, json: str, *tables: "Table") -> None:
        if self.json:
            print(json)
        else:
            Console().print(*tables)


@dataclass(frozen=True)
class ListVerb:
    """List the agents, data steps and configs that can be run by name and copied with `ringrl cp`."""

    def run(self) -> None:
        """Print them."""
        for kind, entries in recipes.listing().items():
            print(f"{kind}/")
            for name, about in entries:
                print(f"  {name:<28} {about}")


@dataclass(frozen=True)
class CopyVerb:
    """Copy an agent, data step or config to a file of your own, to be changed and run by its path."""

    name: Positional[str]
    """A name from `ringrl ls`, such as decision_transformer."""
    path: Positional[Path]
    """The new file, or a folder for it."""

    def run(self) -> None:
        """Copy it."""
        print(f"copied to {recipes.copy(self.name, self.path)}")


VERBS = {
    "demo": DemoVerb,
    "train": TrainVerb,
    "evaluate": EvaluateVerb,
    "export": ExportVerb,
    "report": ReportVerb,
    "plan": PlanVerb,
    "ls": ListVerb,
    "cp": CopyVerb,
}
