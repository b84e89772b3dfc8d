"""The run directory: the files that its steps share are named, written, read and verified here, and its folders named.

| file | content |
|---|---|
| SHA256SUMS | hashes of the five files that follow (`ringrl.manifest`), which are replaced together |
| config.yaml | the resolved configuration; written last: a folder that has it is a run |
| run.json | schema version, ringrl's version, the version of fused tokens (`ringrl.batch.TOKENS`), the agent (`AgentRecord`), the file that it was copied from, and where the store and the teacher's run are |
| agent.py | the agent's source; the run is resumed, evaluated and exported with this copy |
| normalizer.json | `ringrl.sampling.normalizer.Normalizer`; not for a language model |
| dataset.json | a summary of the data set: sizes, sources, returns |
| metrics.jsonl, tensorboard/, wandb/ | the logged training steps, of the last two where `training.trackers` names them |
| checkpoints/ | `ringrl.training.checkpoint.Checkpoints` |
| evaluation/ | tables of returns (`ringrl.returns`): returns.csv, targets.csv, demonstrations.csv, explore.csv, ablation-NAME.csv; and a JSON for each, with its settings: evaluation.json, else named as the table; film.json, what a film there shows; in a folder TASK/ those of another task than the run's |
| evaluations/NAME/ | the same files, of `ringrl evaluate --name NAME` |
| finished | empty; `ringrl demo` marks with it that the training has come to its end |
| timing.json | of `benchmarks.results`: seconds of training and evaluation, once both are done |
| report/, export/ | where `ringrl report RUN` and `ringrl export RUN` write by default |

A run of schema 1 says nothing of how positions are encoded: it is read as what it was (`ringrl.model_config.EARLIER`).
A run without run.json, schema 0, names its agent in config.yaml, and calls an ablation's table probe-NAME.csv.
`train` and `--resume` bring both to the present schema.
"""  # noqa: E501  # a table

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringrl import recipes
from ringrl.agent_record import AgentRecord, agent_of_schema_0, note_changed_source, sha256, verify_source
from ringrl.batch import TOKENS
from ringrl.config import RunConfig, dump_config, parse_config
from ringrl.errors import UserError
from ringrl.files import alone_in, user_path, write_text
from ringrl.manifest import MANIFEST, finish, is_there, replace_together, require, require_replaceable
from ringrl.metrics_lines import parse_line
from ringrl.model_config import read_earlier
from ringrl.readers import ObjectRecord, read_json, read_yaml
from ringrl.run_records import (
    RunRecord,
    StorePlaces,
    TrainedOnRecord,
    VersionedRecord,
    find_recorded,
    record_paths,
)
from ringrl.run_tables import RunTables
from ringrl.sampling.normalizer import Normalizer
from ringrl.trust import remember_trained, require_trusted, require_trusted_config

if TYPE_CHECKING:  # which imports JAX
    from ringrl.agent import AgentDescription

SCHEMA = 2

_RESTORE = "restore the file, or train again"


class RunDirectory(RunTables):
    """The files of one run.

    Attributes:
        path: the directory, as given; it need not exist.
        task: whose evaluation's tables are meant, where it is another than the run's own; None: the run's own.
        tables: where they are, if not in evaluation/ (`ringrl evaluate --out`).
    """

    def __init__(self, path: str | Path, task: str | None = None, tables: Path | None = None):
        self.path, self.task, self.tables = user_path(path), task, tables
        super().__init__((tables or self.path / "evaluation") / (task or ""), own=tables is None)
        self.config_file = self.path / "config.yaml"
        self.record_file = self.path / "run.json"
        self.agent_file = self.path / "agent.py"
        self.normalizer_file = self.path / "normalizer.json"
        self.dataset_file = self.path / "dataset.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.tensorboard, self.wandb = self.path / "tensorboard", self.path / "wandb"
        self.checkpoints = self.path / "checkpoints"
        self.finished_file = self.path / "finished"
        self.timing_file = self.path / "timing.json"
        self.report = self.path / "report"
        self.export = self.path / "export"

    @classmethod
    def of(cls, path: Path, task: str | None = None) -> "RunDirectory":
        """The run at `path`, or that whose tables are at `path` because `ringrl evaluate --out` wrote them there.

        Raises:
            UserError: a JSON file there cannot be read.
        """
        if not (path / "config.yaml").exists() and not (path / "evaluation").exists():
            for about in sorted([*path.glob("*.json"), *path.glob("*/*.json")]):
                run = read_json(about, ObjectRecord, "evaluate the run again").get("run")
                if isinstance(run, str):
                    return cls(run, task, path)
        return cls(path, task)

    @property
    def exists(self) -> bool:
        """Whether there is a run. UserError: it has lost its config.yaml."""
        return is_there(self.config_file)

    # Training

    @contextmanager
    def training_alone(self) -> Iterator[None]:
        """Keep other processes from training in this directory. UserError where one does, or it cannot be written."""
        with alone_in(self.path):
            finish(self.path)
            yield

    def write(
        self,
        config: RunConfig,
        dataset: Mapping[str, Any],
        normalizer: Normalizer | None,
        description: "AgentDescription",
    ) -> None:
        """Write all files that training begins with, together or not at all (`ringrl.manifest`), config.yaml last.

        Where the run exists, its copy of the agent's source and the agent's name stay as they are.
        """
        known, files = self._record() if self.exists else None, {}
        if known is None:
            origin = recipes.find("agents", config.agent.name)
            files[self.agent_file] = source = origin.read_bytes()
            remember_trained(source, origin, config.data.task)
            agent, copied = AgentRecord(config.agent.name, **asdict(description), sha256=sha256(source)), str(origin)
        else:
            agent, copied = known["agent"], known.get("source")
        store = _paths(config.data.store, self.path, known and known["store"])
        teacher = getattr(config.agent, "teacher", None)
        named: dict[str, Any] = {"name": agent.name}
        if normalizer is not None:
            files[self.normalizer_file] = normalizer.to_json()
        files[self.dataset_file] = json.dumps(dataset).encode()
        record = {"schema": SCHEMA, "manifest": MANIFEST, "ringrl": version("ringrl"), "tokens": TOKENS}
        record |= {"agent": asdict(agent), "source": copied, "store": store}
        if isinstance(teacher, str):
            record["teacher"] = _paths(teacher, self.path, known and known.get("teacher"))
            named["teacher"] = record["teacher"]["given"]
        files[self.record_file] = f"{json.dumps(record, indent=1)}\n".encode()
        own = config.agent.model_copy(update=named)
        data = config.data.model_copy(update={"store": store["given"]})
        files[self.config_file] = dump_config(config.model_copy(update={"agent": own, "data": data})).encode()
        replace_together(self.path, {path.name: body for path, body in files.items()})

    def check_new(self) -> None:
        """Raise UserError where there is a run, or a file that is not of a run and would be replaced by one's."""
        run = self.path
        if self.exists:
            raise UserError(f"{run}: there is a run already; go on with --resume {run}, or name another with --out")
        replaced = ("agent.py", "run.json", "normalizer.json", "dataset.json")
        require_replaceable(run, replaced, own=False)
        for name in ("metrics.jsonl", "checkpoints", "store.json", "model.safetensors"):
            if (run / name).exists():
                raise UserError(f"{run / name}: is there, though there is no run; name a folder of its own with --out")

    def mark_finished(self) -> None:
        """Write the file that says that the training has come to its end."""
        write_text(self.finished_file, "")

    def write_timing(self, timing: Mapping[str, Any]) -> None:
        """Write timing.json."""
        write_text(self.timing_file, json.dumps(dict(timing)) + "\n")

    def config(self) -> RunConfig:
        """The run's configuration, its agent being the run's own copy, and its store where it is found now.

        Raises:
            UserError: there is no run, its configuration is wrong, or its copy of the agent is not what was recorded,
                or is not trusted (`ringrl.trust`).
        """
        if not self.exists:
            raise UserError(
                f"{self.path}: not a run directory (it has no {self.config_file.name}); pass the folder that "
                "`ringrl train` made"
            )
        values, record = self.settings(), self._record()
        require(self.path, promised=False)
        if record is not None and isinstance(values.get("agent"), dict) and isinstance(values.get("data"), dict):
            values["agent"]["name"] = str(verify_source(self.agent_file, record["agent"]))
            values["data"]["store"] = _find(record["store"], self.path)
            if "teacher" in record:
                values["agent"]["teacher"] = _find(record["teacher"], self.path)
            note_changed_source(self.agent_file, record["agent"], record.get("source"))
        require_trusted_config(values)
        return parse_config(values, str(self.config_file))

    def with_own_agent(self, config: RunConfig) -> RunConfig:
        """`config` with the run's copy of its agent; unchanged where there is no copy yet.

        Raises:
            UserError: `config` names another agent than the run has, or the copy is not what was recorded, or is not
                trusted (`ringrl.trust`).
        """
        record = self._record() if self.exists else None
        if record is None or config.agent.name == str(self.agent_file):
            return config
        agent = record["agent"]
        copy = verify_source(self.agent_file, agent)
        require_trusted(copy)
        if config.agent.name != agent.name:
            if sha256(recipes.find("agents", config.agent.name).read_bytes()) != agent.sha256:
                raise UserError(f"{self.path}: its agent is {agent.name}, not {config.agent.name}; name a new run")
        values = config.model_dump(mode="json")
        values["agent"]["name"] = str(copy)
        return parse_config(values, str(self.path))

    # What a run says

    @property
    def tokens(self) -> int:
        """The version of fused tokens (`ringrl.batch.TOKENS`) that it was trained on; 0 where it does not say."""
        record = self._record()
        return record.get("tokens", 0) if record is not None else 0

    def agent(self) -> AgentRecord | None:
        """The run's agent; None where neither run.json nor config.yaml names one."""
        record = self._record()
        if record is not None:
            return record["agent"]
        section = self.settings().get("agent")
        name = section.get("name") if isinstance(section, dict) else None
        return agent_of_schema_0(name) if isinstance(name, str) else None

    def label(self) -> str:
        """What tables call the run's agent: config.yaml's label, or the agent's file. UserError: no text."""
        agent, label = self.agent(), self.settings().get("label")
        if label is not None and not isinstance(label, str):
            raise UserError(f"{self.config_file}: `label`: {label!r} is not text; write it in quotes")
        return label or (agent.stem if agent else self.path.name)

    def settings(self) -> dict[str, Any]:
        """config.yaml as plain values (`read_earlier`), unchecked; empty where there is none. UserError: not YAML."""
        return read_earlier(read_yaml(self.config_file)) if self.exists else {}

    def dataset(self) -> dict[str, Any]:
        """dataset.json. Raises UserError where there is none."""
        if not is_there(self.dataset_file):
            raise UserError(
                f"{self.path}: not a run directory (it has no {self.dataset_file.name}); pass the folder that "
                "`ringrl train` made"
            )
        return dict(read_json(self.dataset_file, TrainedOnRecord, _RESTORE))

    def normalizer(self) -> Normalizer:
        """normalizer.json. Raises UserError where there is none, or it is not of the data's observations."""
        found = Normalizer.load(self.normalizer_file)
        found.require_width(self.dataset()["sizes"].get("observation"), self.normalizer_file)
        return found

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; none where there is no such file.

        Raises:
            UserError: a line other than the last is no line of numbers, or not what was written. The last may be
                half-written by a live training.
        """
        path = self.metrics_file
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield parse_line(line, f"{path} line {number}")
            except UserError:
                if number == len(lines):
                    return
                raise

    # run.json

    def _record(self) -> RunRecord | None:
        """run.json; None in schema 0. Raises UserError where it is of another schema or incomplete."""
        if not is_there(self.record_file):
            return None
        schema = read_json(self.record_file, VersionedRecord, _RESTORE)["schema"]
        if schema not in (1, SCHEMA):
            raise UserError(f"{self.record_file}: schema {schema}, this ringrl reads {SCHEMA}: use the newer ringrl")
        record = read_json(self.record_file, RunRecord, _RESTORE)
        if "manifest" in record:
            require(self.path, promised=True)
        return record


def _find(recorded: StorePlaces, run: Path) -> str:
    paths: dict[str, Any] = dict(recorded)
    return find_recorded(paths, run)


def _paths(given: str, run: Path, known: StorePlaces | None) -> StorePlaces:
    """Where something is; as it was given at first, if it is where it was."""
    now = record_paths(given, run)
    first = known["given"] if known and known["absolute"] == now["absolute"] else given
    return {"given": first, "absolute": now["absolute"], "relative": now["relative"]}
