"""All that ringrl reads from a file: for each kind a good file, small, and what is done with it."""

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._recorded_sets import learner_history, robot_episode, write_lerobot, write_vintix
from ringrl import recipes
from ringrl.agent import AgentDescription, make_agent, make_decoder
from ringrl.config import load_config
from ringrl.download.partial_file import Remote, load_remote, save_remote
from ringrl.episode import Episode
from ringrl.formats.description import describe_folder
from ringrl.formats.exorl import list_episodes, read_episode, write_episode
from ringrl.formats.minari import write_dataset
from ringrl.formats.token_file import TokenFile
from ringrl.manifest import MANIFEST, check, seal
from ringrl.metrics_lines import format_line
from ringrl.policy import RolloutSetting, RolloutSpec
from ringrl.reporting import write_report
from ringrl.reporting.page.summary import summarise
from ringrl.reporting.statistics.evaluated_run import read_run
from ringrl.reporting.statistics.series import arrange
from ringrl.reporting.statistics.task_statistics import analyse
from ringrl.returns import TrialReturn
from ringrl.rollout.saved_session import read_session, write_session
from ringrl.run import RunDirectory
from ringrl.sampling.normalizer import Normalizer
from ringrl.store.episode_store import DataSource, build, open_store
from ringrl.training.export import export, load_export
from ringrl.training.state import build_model
from ringrl.training.tracker import MetricsLog
from ringrl.training.training_data import refuse_changed

TASK = "cartpole_swingup"
_SIZES = {"observation": 5, "action": 1}
_CONFIG = {
    "data": {"store": "cartpole.store", "task": TASK},
    "agent": {"name": "decision_transformer"},
    "model": {"preset": "tiny"},
    "evaluation": {"target": 800.0},
}


@dataclass(frozen=True)
class Reader:
    """One way to read files.

    Attributes:
        name: of the kind of file.
        share: of all mutations, beside the others'; what is slow to read gets fewer.
        make: writes good files into an empty folder.
        read: reads the folder's files, and does with them what comes first.
        files: patterns of those that are mutated.
    """

    name: str
    share: float
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: tuple[str, ...] = ("**/*",)


def episodes(count: int = 2, length: int = 6, widths: tuple[int, int, int] = (5, 1, 4)) -> list[Episode]:
    """Of a fixed seed; `widths`: of observations, actions and states, as cartpole's."""
    draw, (seen, acted, state) = np.random.default_rng(0), widths
    made = []
    for _ in range(count):
        observation, action = draw.normal(size=(length + 1, seen)), draw.uniform(-1, 1, (length, acted))
        reward, physics = draw.uniform(size=length), draw.normal(size=(length + 1, state))
        made.append(Episode.from_arrays(observation, action, reward, terminated=False, physics=physics))
    return made


def make_run(folder: Path) -> None:
    """A run that was evaluated, without checkpoints."""
    run = RunDirectory(folder)
    card = {"task": TASK, "domain": "cartpole", "store": "cartpole.store", "steps": 18, "relabel": "exact"}
    card |= {"episodes": 3, "sources": [{"name": "rnd", "collector": "rnd", "episodes": 3}], "source": [0, 0, 0]}
    card |= {"returns": [1.0, 2.0, 3.0], "sizes": _SIZES}
    scales = Normalizer(np.zeros(5, np.float32), np.ones(5, np.float32), 3.0, 1.0)
    run.write(load_config(_CONFIG), card, scales, AgentDescription("Decision Transformer", False))
    names = ("decision_transformer", "random")
    rows = [TrialReturn(name, TASK, 0, env, trial, 1.5 * trial + env, 1000, 9.0) for name in names for env in (0, 1)
            for trial in (0, 1)]  # fmt: skip
    settings = {"trials": 2, "envs": 2, "context": 100, "seed": 1000, "checkpoint_step": 3, "seconds": 1.5}
    for table in ("returns", "ablation-blind"):
        run.write_table(table, rows, settings)
    shown = [TrialReturn(names[0], TASK, 0, env, 0, 5.0, 9, 9.0, number) for number in (0, 2) for env in (0, 1)]
    run.write_table("demonstrations", shown, settings)
    entry = {"loss": 0.5, "tokens": 100, "tokens_per_s": 5.0, "mfu": 0.1}
    run.metrics_file.write_bytes(b"".join(format_line({"step": step, **entry}) for step in (1, 2, 3)))


def unsealed(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """The files of an earlier ringrl, without hashes: else all that is read of one is that its hash is another."""

    def made(folder: Path) -> None:
        make(folder)
        for sums in folder.rglob(MANIFEST):
            sums.unlink()
        for path in (path for name in ("run.json", "store.json", "config.json") for path in folder.rglob(name)):
            about = json.loads(path.read_text())
            about.pop("manifest", None)
            path.write_text(json.dumps(about))

    return made


def _read_run(folder: Path) -> None:
    run = RunDirectory(folder)
    config, dataset = run.config(), run.dataset()
    _ = run.label(), run.normalizer(), run.tokens, run.agent()
    agent = make_agent(config.agent)
    assert agent.policy is not None
    agent.policy.rollout_spec(config.training.row_steps, np.asarray(dataset["returns"], np.float64))


def _report(folder: Path) -> None:
    analyses = [analyse(section) for section in arrange([read_run(folder)])]
    json.dumps(summarise(analyses, None, [], "now"), allow_nan=False)


def _resume(folder: Path) -> None:
    run = RunDirectory(folder)
    card = run.dataset()
    refuse_changed(card, folder, "here")
    run.with_own_agent(run.config())
    with MetricsLog(folder, 10, 2, "run"):
        pass


def _make_config(folder: Path) -> None:
    (folder / "config.yaml").write_bytes(recipes.find("configs", "demo_at").read_bytes())


def _override(folder: Path) -> None:
    load_config(_CONFIG, [(folder / "override").read_bytes().decode(errors="surrogateescape")])


def _make_folder(folder: Path) -> None:
    for index, episode in enumerate(episodes()):
        write_episode(folder / "buffer", index, episode)
    about = {"task": TASK, "tasks": [TASK], "domain": "cartpole", "collector": "rnd", "seed": 0, "returns": [1.0, 2.0]}
    (folder / "collect.json").write_text(json.dumps(about))
    (folder / "relabel.json").write_text(
        json.dumps({"domain": "cartpole", "tasks": [TASK], "mode": "exact", "collect": about, "job": "0"})
    )
    about = {"domain": "cartpole", "collector": "rnd", "size": 5, "sha256": "0"}
    (folder / "download.json").write_text(json.dumps(about))


def _read_download(folder: Path) -> None:
    step = recipes.load("data", "download_exorl")
    step._read_record(folder / "download.json", {"domain": "cartpole", "collector": "rnd"})


def _read_folder(folder: Path) -> None:
    for path in list_episodes(folder):
        read_episode(path)


def _make_archive(folder: Path) -> None:
    _make_folder(folder / "rnd")
    with zipfile.ZipFile(folder / "rnd.zip", "w") as archive:
        for path in (folder / "rnd").rglob("*.*"):
            archive.write(path, path.relative_to(folder))


def _read_archive(folder: Path) -> None:
    describe_folder(folder / "rnd.zip")
    _read_folder(folder / "rnd.zip")


def make_store(folder: Path) -> None:
    """A store of two episodes."""
    made = ((episode, 0) for episode in episodes())
    source = DataSource("rnd", "rnd", "rnd", TASK, {"seed": 0})
    build(folder / "store", made, domain="cartpole", tasks=(TASK,), sources=[source], provenance={"relabel": "exact"})


def _read_store(folder: Path) -> None:
    store = open_store(folder / "store")
    for episode, length in enumerate(store.lengths.tolist()):
        store.read(episode, 0, length, TASK)
    _ = store.returns(TASK), store.sizes, [source.name for source in store.sources]


def _make_session(folder: Path) -> None:
    agent = {"name": "a", "checkpoint_step": 3, "sizes": _SIZES, "scales": "0"}
    origin = {"agent": agent, "batched": False}
    origin |= {"setting": asdict(RolloutSetting(1, 10, 2)), "spec": asdict(RolloutSpec(5))}
    write_session(folder / "session.npz", origin, {"count": np.zeros(1, np.int64), "earned": np.zeros(1, np.float32)})


def _make_manifest(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).write_text(name)
    seal(folder)


def make_export(folder: Path) -> None:
    """An exported model, beside its run."""
    make_run(folder / "run")
    config = load_config(_CONFIG | {"model": {"layers": 1, "width": 16, "max_steps": 10}})
    export(build_model(config, make_decoder(config.agent), _SIZES), config, 3, folder / "run", folder / "export")


def _make_minari(folder: Path) -> None:
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    write_dataset("hopper/x-v0", episodes(widths=(11, 3, 12)), "Hopper-v5", description="to be damaged")


def _import(name: str, dataset: str | Path, task: str) -> None:
    step = recipes.load("data", name)
    with tempfile.TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
        step.main(step.Args((dataset,), Path(out) / "store", task=task, clip=True))


def _import_minari(folder: Path) -> None:
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    _import("import_minari", "hopper/x-v0", "Hopper-v5")


def _write_page(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as out:
        write_report([folder], Path(out))


READERS = (
    Reader("run", 12, unsealed(make_run), _read_run, ("*.json", "config.yaml")),
    Reader("report", 6, unsealed(make_run), _report, ("*.json", "*.jsonl", "config.yaml", "evaluation/*")),
    Reader("resume", 6, unsealed(make_run), _resume, ("*.json", "*.jsonl", "config.yaml")),
    Reader("config", 14, _make_config, lambda folder: load_config(folder / "config.yaml")),
    Reader("override", 14, lambda folder: _write(folder / "override", b"training.steps=100"), _override),
    Reader("folder", 14, _make_folder, lambda folder: describe_folder(folder), ("*.json",)),
    Reader("download", 8, _make_folder, _read_download, ("download.json",)),
    Reader(
        "partial",
        4,
        lambda folder: save_remote(folder / "x.partial", Remote("http://x", 5, "e", None)),
        lambda folder: load_remote(folder / "x.partial", "http://x"),
    ),
    Reader("episode", 8, _make_folder, _read_folder, ("buffer/*",)),
    Reader("archive", 4, _make_archive, _read_archive, ("rnd.zip",)),
    Reader("store", 6, unsealed(make_store), _read_store),
    Reader(
        "tokens",
        3,
        lambda folder: np.save(folder / "t.npy", np.arange(64, dtype=np.int32)),
        lambda folder: TokenFile(folder / "t.npy", 64).read(np.arange(4)),
    ),
    Reader("session", 3, _make_session, lambda folder: read_session(folder / "session.npz")),
    Reader("manifest", 2, _make_manifest, check, (MANIFEST,)),
    Reader("minari", 1.5, _make_minari, _import_minari, ("hopper/**/*",)),
    Reader(
        "lerobot",
        3,
        lambda folder: write_lerobot(folder, [robot_episode(length) for length in (5, 9, 3)]),
        lambda folder: _import("import_lerobot", folder, "arm"),
    ),
    Reader(
        "lerobot2",
        2,
        lambda folder: write_lerobot(folder, [robot_episode(length) for length in (5, 9)], version="v2.1"),
        lambda folder: _import("import_lerobot", folder, "arm"),
    ),
    Reader(
        "vintix",
        3,
        lambda folder: write_vintix(folder / "set" / "a.h5", learner_history((4, 13, 7)), task="rig"),
        lambda folder: _import("import_vintix", folder / "set", "rig"),
    ),
    Reader("export", 0.2, unsealed(make_export), lambda folder: load_export(folder / "export"), ("export/*",)),
    Reader("page", 0.05, unsealed(make_run), _write_page, ("*.json", "*.jsonl", "config.yaml", "evaluation/*")),
)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
