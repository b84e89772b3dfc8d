"""The verbs about runs: `ringrl demo | train | evaluate | export | report`. A verb imports its room when it runs."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from ringrl.choices import Ablation, TrajectoryOrder, WhenFull
from ringrl.errors import UserError


def _renamed(before: str, now: str) -> Any:
    """An option that also has its former name. `--help` shows aliases before the name: so the present one is first."""
    return tyro.conf.arg(name=before.removeprefix("--"), aliases=[now])


def _parse_mesh(texts: tuple[str, ...]) -> dict[str, int] | None:
    """`seq=4 data=2` -> sizes by mesh axis; None of nothing. Raises UserError where a text is not of that form."""
    pairs = [text.partition("=") for text in texts]
    for text, (axis, _, size) in zip(texts, pairs, strict=True):
        if not (axis.isidentifier() and size.isdigit()):
            raise UserError(f"--mesh {text}: write an axis and its devices, as in --mesh seq=4")
    return {axis: int(size) for axis, _, size in pairs} or None


def _strictly(run: Path, checkpoint: str, strict: bool) -> str:
    """`checkpoint`, but the newest by its number if `strict`: for that one there is no other to go back to."""
    from ringrl.run import RunDirectory
    from ringrl.training.checkpoint_files import steps_of

    folder = RunDirectory(run).checkpoints
    there = steps_of(folder) if strict and checkpoint == "latest" and folder.is_dir() else []
    return str(there[-1]) if there else checkpoint


def _require_folder(run: Path) -> None:
    """Raise UserError where there is no such folder, before the imports, which take seconds."""
    if not run.is_dir():
        raise UserError(f"{run}: not a run directory, for it is no folder; pass the one that `ringrl train` made")


@dataclass(frozen=True)
class DemoVerb:
    """Agents that find out a hidden task from their own trials, beside some that cannot: data, training, page."""

    out: Path = Path(".")
    """Folder in which datasets/demo and runs/demo are made."""
    scale: float = 1.0
    """Share of the full demo's episodes and training steps; 1.0 is what the README shows."""
    quick: bool = False
    """Only see every stage run, in a minute or two: its trainings are too short to show anything. In demo-quick/."""
    fresh: bool = False
    """Start over, instead of going on where an earlier demo was interrupted."""

    def run(self) -> None:
        """Run every stage. Raises UserError for a scale out of range, or one of a quick demo."""
        if not 0 < self.scale <= 1:
            raise UserError(f"--scale {self.scale}: give a share above 0 and at most 1")
        if self.quick and self.scale != 1:
            raise UserError("--quick: has a size of its own; leave out --scale")
        from ringrl.cli.demo import QUICK, DemoSize, demo

        size = QUICK if self.quick else DemoSize().scaled(self.scale)
        print(f"report: {demo(self.out, size, self.fresh)}")


@dataclass(frozen=True)
class TrainVerb:
    """Train a config (a YAML file, or the name of a shipped one) in a run directory, or go on with a run."""

    config: Positional[str | None] = None
    """A path, or a name from `ringrl ls`."""
    overrides: Positional[tuple[str, ...]] = ()
    """Settings as a.b=c, for example training.steps=100."""
    out: Path | None = None
    """The run directory; default runs/NAME-seedN, with the changed settings between the two."""
    resume: Path | None = None
    """Continue this run from its newest checkpoint, under its own configuration; a.b=c changes settings of it."""
    strict: bool = False
    """With --resume: stop where the newest checkpoint is damaged, instead of going back to the newest good one."""
    trust: bool = False
    """With --resume: run the program that is the run's agent, whoever wrote it (SECURITY.md)."""
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
        if self.config is not None and self.resume is None:
            from ringrl.config import check_sections

            check_sections(self.config, self.overrides)  # before the imports, which take seconds
        from ringrl.training.processes import is_first, joined

        with joined(self.coordinator, self.processes, self.process, self.heartbeat_timeout):
            from ringrl.training.start import train

            config, overrides = self.config, self.overrides
            if self.resume is not None and config is not None and "=" in config:  # there is no CONFIG before it
                config, overrides = None, (config, *overrides)
            run = train(config, *overrides, out=self.out, resume=self.resume, strict=self.strict, trust=self.trust)
            if is_first():
                print(f"run: {run}")


@dataclass(frozen=True)
class EvaluateVerb:
    """Evaluate a trained agent: many trials of its task in one context; writes evaluation/returns.csv."""

    run_directory: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """What `ringrl train` made."""
    task: str | None = None
    """Another task than the run's, of the same widths; its tables are in evaluation/TASK/."""
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
    """Context ablations: remove, reorder or exchange the earlier trials, hide all rewards; or only (un)paid trials."""
    demonstrations: str | None = None
    """A store of which trajectories, relabelled to the task, begin every context; with --trajectories."""
    trajectories: tuple[int, ...] = ()
    """How many demonstrations; several in turn write evaluation/demonstrations.csv, or each ablation's own table."""
    order: TrajectoryOrder | None = None
    """Of the demonstrations: as drawn, the default, or ascending by return, the default of the Agentic Transformer."""
    apart: bool = False
    """Draw demonstrations for each environment by itself, also where all have one task."""
    explore: tuple[int, ...] = ()
    """The first so many trials act at random, as reward-free data; several numbers in turn: evaluation/explore.csv."""
    explore_correlation: float | None = None
    """Of an exploring action and the next, below 1; 0, the default: uniform and independent."""
    seed: int | None = None
    """Seed of the environments, the drawn actions and the drawn demonstrations."""
    when_full: WhenFull | None = None
    """What is kept of a full context: the newest or the best whole trials; stop: no trial begins without room."""
    cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None
    """Of the keys and values in the context; default the model's compute dtype."""
    mesh: tuple[str, ...] = ()
    """Devices over which contexts are spread, as seq=4; default the run's mesh where there are as many devices."""
    coordinator: str | None = None
    """HOST:PORT of process 0, of many processes that no launcher known to JAX has started."""
    processes: int | None = None
    """How many processes roll out together; 1 is alone, regardless of the launcher."""
    process: int | None = None
    """Which of them this is, from 0."""
    checkpoint: str = "latest"
    """latest, best (the lowest loss of those kept), or the number of a step."""
    strict: bool = False
    """Stop where the latest checkpoint is damaged, instead of going back to the newest good one."""
    reference: bool = True
    """Also roll out the random policy and the task's expert, into the same table; of several runs one needs them."""
    video: Path | None = None
    """Also film the first environment's trials, for example film.mp4 (ringrl[video]; needs EGL or a display)."""
    video_trials: tuple[int, ...] = ()
    """With --video: only these trials, side by side, of the environment with the median gain, for example 1 8."""
    out: Path | None = None
    """Folder of the tables, instead of RUN/evaluation where that can only be read; `ringrl report` takes it as RUN."""
    name: str | None = None
    """Keep this evaluation beside the run's others: its tables are in RUN/evaluations/NAME, a folder as of --out."""
    overwrite: bool = False
    """Replace tables of an earlier evaluation that had other settings; --name writes beside them."""
    json: bool = False
    """Print one JSON object instead of tables."""
    trust: bool = False
    """Run the program that is the run's agent, whoever wrote it (SECURITY.md)."""

    def run(self) -> None:
        """Roll out, and print mean returns. Raises UserError for options that exclude each other."""
        self._check()
        _require_folder(self.run_directory)
        from ringrl.training.processes import is_first, joined
        from ringrl.trust import trusting

        with joined(self.coordinator, self.processes, self.process), trusting(self.trust):
            tables = self._tables()
            if is_first():
                from ringrl.cli.printed import print_tables

                print_tables(tables, self.json)

    def _tables(self) -> list[Path]:
        from ringrl.rollout.evaluate import evaluate
        from ringrl.rollout.repetitions import repeat

        names = ("task", "trials", "envs", "context", "target", "seed", "checkpoint", "when_full", "cache_dtype")
        settings: dict[str, Any] = {name: getattr(self, name) for name in (*names, "explore_correlation")}
        out = self.out if self.name is None else self.run_directory / "evaluations" / self.name
        settings |= {"mesh": _parse_mesh(self.mesh), "out": out, "overwrite": self.overwrite}
        settings["checkpoint"] = _strictly(self.run_directory, self.checkpoint, self.strict)
        shown: dict[str, Any] = {"demonstrations": self.demonstrations, "order": self.order, "apart": self.apart}
        if self._repeats:
            shown |= {"trajectories": self.trajectories, "explore": self.explore}
            return repeat(self.run_directory, self.targets, self.ablation, **shown, **settings)
        shown |= {"trajectories": next(iter(self.trajectories), 0), "explore": next(iter(self.explore), None)}
        options: dict[str, Any] = {"reference": self.reference, "video": self.video, "video_trials": self.video_trials}
        return [evaluate(self.run_directory, **options, **shown, **settings)]

    @property
    def _repeats(self) -> bool:
        return bool(self.targets or self.ablation or len(self.trajectories) > 1 or len(self.explore) > 1)

    def _check(self) -> None:
        if self._repeats and self.video is not None:
            raise UserError(
                "--video films the evaluation itself: leave out --targets, --ablation and all but one number"
            )
        if self.targets and self.target is not None:
            raise UserError("give --target or --targets, not both")
        if self.name is not None and self.out is not None:
            raise UserError("give --name or --out, not both")
        if self.name is not None and not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UserError(f"--name {self.name!r}: is no folder's name; use letters, digits, - and _")
        if (self.demonstrations is None) != (not self.trajectories):
            raise UserError("--demonstrations STORE and --trajectories N go together; give both or neither")
        if self.demonstrations is not None and self.targets:
            raise UserError("--demonstrations: are for the evaluation itself or an ablation; leave out --targets")


@dataclass(frozen=True)
class ExportVerb:
    """Write a trained model as model.safetensors and config.json, which need no ringrl to read."""

    run_directory: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """What `ringrl train` made."""
    out: Path | None = None
    """The folder; default RUN/export."""
    step: str = "latest"
    """The checkpoint: latest, best (the lowest loss of those kept), or the number of a step."""
    strict: bool = False
    """Stop where the latest checkpoint is damaged, instead of going back to the newest good one."""
    overwrite: bool = False
    """Replace an earlier export."""
    trust: bool = False
    """Run the program that is the run's agent, whoever wrote it (SECURITY.md)."""

    def run(self) -> None:
        """Write the two files."""
        _require_folder(self.run_directory)
        from ringrl.run import RunDirectory
        from ringrl.training.export import check_export, export
        from ringrl.training.trained_model import load_model
        from ringrl.trust import trusting

        run = RunDirectory(self.run_directory)
        out = self.out or run.export
        with trusting(self.trust):
            config = run.config()
        check_export(out, overwrite=self.overwrite)
        model, step = load_model(run.path, config, run.dataset()["sizes"], _strictly(run.path, self.step, self.strict))
        print(f"export: {export(model, config, step, run.path, out, overwrite=self.overwrite)}")


@dataclass(frozen=True)
class ReportVerb:
    """Compare runs on one self-contained page: index.html, figures, summary.json; unevaluated, their losses."""

    runs: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Run directories."""
    out: Path | None = None
    """Folder of the report; default RUN/report, or runs/report for several."""
    json: bool = False
    """Print summary.json instead of the answers."""
    serve: bool = False
    """Follow the runs while they train: show the report at a loopback address, and write it anew as they log."""
    port: int = 0
    """With --serve: of the address; 0: any that is free."""

    def run(self) -> None:
        """Write the report. Raises UserError without a run."""
        if not self.runs:
            raise UserError("report needs one RUN or more")
        if self.port and not self.serve:
            raise UserError("--port: is of a report that is served; give --serve too")
        for run in self.runs:
            _require_folder(run)
        if self.serve:
            from ringrl.reporting.serve import serve

            serve(self.runs, self.out, self.port, 5.0, lambda line: print(line, flush=True))
            return
        from ringrl.cli.printed import print_report
        from ringrl.reporting import write_report

        print_report(write_report(self.runs, self.out), self.json)
