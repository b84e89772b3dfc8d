"""The verbs about runs: `ringrl demo | train | evaluate | export | report`. A verb imports its room when it runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from ringrl.batch import TrajectoryOrder
from ringrl.config import Ablation
from ringrl.errors import UserError


def _renamed(before: str, now: str) -> Any:
    """An option that also has its former name. `--help` shows aliases before the name: so the present one is first."""
    return tyro.conf.arg(name=before.removeprefix("--"), aliases=[now])


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
        """Run every stage. Raises UserError for a scale out of range."""
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
    """Continue this run from its newest checkpoint, under its own configuration; a.b=c changes settings of it."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where many processes train together and no launcher that JAX knows has started them."""
    processes: int | None = None
    """How many processes train together; 1 trains alone, regardless of the launcher."""
    process: int | None = None
    """Which of them this is, from 0."""
    heartbeat_timeout: Annotated[float, _renamed("--silence", "--heartbeat-timeout")] = 60.0
    """Seconds without a heartbeat after which a process counts as dead, and the run ends."""

    def run(self) -> None:
        """Train, from the start or from the newest checkpoint."""
        from ringrl.training.processes import is_first, joined

        with joined(self.coordinator, self.processes, self.process, self.heartbeat_timeout):
            from ringrl.training.start import train

            config, overrides = self.config, self.overrides
            if self.resume is not None and config is not None and "=" in config:  # there is no CONFIG before it
                config, overrides = None, (config, *overrides)
            run = train(config, *overrides, out=self.out, resume=self.resume)
            if is_first():
                print(f"run: {run}")


@dataclass(frozen=True)
class EvaluateVerb:
    """Evaluate a trained agent: many trials of its task in one context; writes evaluation/returns.csv."""

    run_directory: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """What `ringrl train` made."""
    trials: int | None = None
    """Trials in one context, in each environment."""
    envs: int | None = None
    """Environments, stepped as one batch."""
    context: int | None = None
    """The longest context, in tokens."""
    target: float | None = None
    """Target return, of return-conditioned agents; default the config's evaluation.target, or the data's best."""
    targets: tuple[float, ...] = ()
    """Several target returns in turn: writes evaluation/targets.csv, and leaves returns.csv alone."""
    ablation: Annotated[tuple[Ablation, ...], _renamed("--probe", "--ablation")] = ()
    """Context ablations: remove, reorder or exchange the earlier trials, or hide all rewards; writes a table each."""
    demonstrations: str | None = None
    """A store of which trajectories, relabelled to the task, begin every context; with --trajectories."""
    trajectories: tuple[int, ...] = ()
    """How many demonstrations; several numbers in turn: writes evaluation/demonstrations.csv instead of returns.csv."""
    order: TrajectoryOrder = "ascending"
    """Of the demonstrations in a context: as they are drawn, or ascending by return."""
    seed: int | None = None
    """Seed of the environments, the drawn actions and the drawn demonstrations."""
    checkpoint: str = "latest"
    """latest, best (the lowest training loss of those kept), or the number of a step."""
    reference: bool = True
    """Also roll out the random policy and the task's expert, into the same table; of several runs one needs them."""
    video: Path | None = None
    """Also film the first environment's trials, for example film.mp4 (ringrl[video]; needs EGL or a display)."""

    def run(self) -> None:
        """Roll out, and print the tables' paths. Raises UserError for options that exclude each other."""
        from ringrl.rollout.evaluate import evaluate
        from ringrl.rollout.repetitions import repeat

        names = ("trials", "envs", "context", "target", "seed", "checkpoint")
        settings = {name: getattr(self, name) for name in names}
        self._check_demonstrations()
        if not self.targets and not self.ablation and len(self.trajectories) < 2:
            shown = {
                "demonstrations": self.demonstrations,
                "trajectories": next(iter(self.trajectories), 0),
                "order": self.order,
            }
            options = {"reference": self.reference, "video": self.video}
            print(f"returns: {evaluate(self.run_directory, **options, **shown, **settings)}")
            return
        if self.video is not None:
            raise UserError(
                "--video films the evaluation itself: leave out --targets, --ablation and all but one number"
            )
        if self.targets and self.target is not None:
            raise UserError("give --target or --targets, not both")
        shown = {"demonstrations": self.demonstrations, "trajectories": self.trajectories, "order": self.order}
        for table in repeat(self.run_directory, self.targets, self.ablation, **shown, **settings):
            print(f"returns: {table}")

    def _check_demonstrations(self) -> None:
        if (self.demonstrations is None) != (not self.trajectories):
            raise UserError("--demonstrations STORE and --trajectories N go together; give both or neither")
        if self.demonstrations is not None and (self.targets or self.ablation):
            raise UserError("--demonstrations: are for the evaluation itself; leave out --targets and --ablation")


@dataclass(frozen=True)
class ExportVerb:
    """Write a trained model as model.safetensors and config.json, which need no ringrl to read."""

    run_directory: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """What `ringrl train` made."""
    out: Path | None = None
    """The folder; default RUN/export."""
    step: str = "latest"
    """The checkpoint: latest, best (the lowest training loss of those kept), or the number of a step."""
    overwrite: bool = False
    """Replace an earlier export."""

    def run(self) -> None:
        """Write the two files."""
        from ringrl.run import RunDirectory
        from ringrl.training.export import export
        from ringrl.training.trained_model import load_model

        run = RunDirectory(self.run_directory)
        config = run.config()
        model, step = load_model(run.path, config, run.dataset()["sizes"], self.step)
        print(f"export: {export(model, config, step, run.path, self.out or run.export, overwrite=self.overwrite)}")


@dataclass(frozen=True)
class ReportVerb:
    """Compare evaluated runs on one self-contained page: index.html, figures, summary.json."""

    runs: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Run directories, evaluated before."""
    out: Path | None = None
    """Folder of the report; default RUN/report, or runs/report for several."""

    def run(self) -> None:
        """Write the report. Raises UserError without a run."""
        from ringrl.reporting import write_report

        if not self.runs:
            raise UserError("report needs one RUN or more")
        print(f"report: {write_report(self.runs, self.out)}")
