"""A run's agent under the setting of an evaluation: rolled out in all environments, and its tables written."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from ringrl.choices import Ablation
from ringrl.config import EvaluationConfig
from ringrl.envs import EnvPool, VectorEnv
from ringrl.errors import UserError
from ringrl.policy import RolloutSetting, RolloutSpec
from ringrl.returns import TrialReturn
from ringrl.rollout.demonstrations import Demonstrations
from ringrl.rollout.evaluable import (
    check_exploration,
    check_other_task,
    check_seeds,
    check_task,
    refuse_unused,
    split_of,
)
from ringrl.rollout.full_context import Dropped
from ringrl.rollout.references import references
from ringrl.rollout.retrieval import as_canonical, as_retrieval, is_canonical, is_retrieval
from ringrl.rollout.session import Session
from ringrl.rollout.shared_envs import SharedEnvs, trial_envs
from ringrl.rollout.trained_agent import TrainedAgent, agent_and_source, load_trained
from ringrl.rollout.trials import Group, TrialRows, run_trials
from ringrl.run import RunDirectory
from ringrl.run_tables import EXPLORE, TARGETS
from ringrl.training.data_notes import evaluation_notes, noted, target_notes
from ringrl.training.mesh import rollout_mesh
from ringrl.training.processes import is_first, wait_for_all

Start = Callable[..., Session]  # (VectorEnv or SharedEnvs, index of the first) -> who acts in them


class Outcome(NamedTuple):
    """What came of a rollout: a row for each trial, and what full contexts lost, of environments by their index."""

    rows: list[TrialReturn]
    dropped: list[Dropped]


@dataclass(frozen=True)
class Evaluated:
    """A run's agent, and under which setting it is rolled out.

    Attributes:
        run: where its tables are.
        agent: who acts.
        expert: of retrieval, the agent that is sent, given what is hidden; None: it is the run's own agent.
        notes: what this environment and the data disagree about.
        returns: of the data's episodes.
    """

    run: RunDirectory
    agent: TrainedAgent
    expert: TrainedAgent | None = None
    notes: tuple[str, ...] = ()
    returns: tuple[float, ...] = ()

    @property
    def task(self) -> str:
        """In which it is rolled out."""
        return self.agent.config.data.task

    @property
    def setting(self) -> EvaluationConfig:
        """Of this evaluation."""
        return self.agent.config.evaluation

    def session(
        self,
        envs: VectorEnv | SharedEnvs,
        first: int,
        spec: RolloutSpec | None = None,
        ablation: Ablation | None = None,
        demonstrations: Demonstrations | None = None,
        explore: int | None = None,
    ) -> Session:
        """The agent in these environments, of which the first has that index among all."""
        s = self.setting
        setting = RolloutSetting(envs.num_envs, envs.agent_steps, s.trials, s.seed, first, s.when_full, ablation)
        found = s.explore if explore is None else explore
        setting = replace(setting, explore=found, explore_correlation=s.explore_correlation)
        session = self.agent.session(setting, spec, batched=True)
        if demonstrations is not None:
            session.begin_with(demonstrations.of(first, envs.num_envs))
        return session

    def references(self) -> dict[str, Start]:
        """Who acts in the same environments for comparison: `ringrl.rollout.references`, and the agent that retrieval
        sends, given the members themselves, as `expert` where the task has none."""
        found = references(self.task, self.setting.seed)
        if self.expert is not None:
            found.setdefault("expert", replace(self, agent=self.expert, expert=None).session)
        return found

    def roll_out(
        self,
        starts: Mapping[str, Start],
        progress: Progress,
        how: str = "",
        groups: int = 2,
        by_first: Collection[str] = (),
    ) -> "Outcome":
        """Trials of all whom `starts` make, in rows of their names; all share the worker processes.

        Args:
            starts: functions of environments and the index of the first of them.
            progress: gets a bar.
            how: what it says beside the names.
            groups: in how many groups environments take turns.
            by_first: names of those who act in process 0 alone.
        """
        config, setting, made, acting = self.agent.config, self.setting, [], []
        workers: EnvPool | int | None = None
        options: dict[str, Any] = {"seed": setting.seed, "action_repeat": config.data.action_repeat}
        options["trials"] = setting.trials * len(starts)
        groups = min(groups, self._groups_at_most())
        try:
            for name, start in starts.items():
                alone = name in by_first
                envs = trial_envs(self.task, setting.envs, groups, **options, alone=alone, workers=workers)
                made += envs
                workers = envs[0].pool or 0
                rows = TrialRows(name, self.task, config.seed)
                acting += [Group(start(each, each.first), each, rows, each.first) for each in envs]
            who = ", ".join([*starts, how] if how else starts)
            about = f"{who}: {setting.trials} trials x {setting.envs} environments"
            bar = progress.add_task(about, total=setting.trials * made[0].agent_steps * len(made))
            results = run_trials(acting, setting.trials, on_step=lambda: progress.advance(bar))
            order = list(starts)
            results.sort(key=lambda row: order.index(row.agent))
            return Outcome(results, [each for group in acting for each in group.dropped])
        finally:
            for envs in reversed(made):  # the first of them have the worker processes
                envs.close()

    def _groups_at_most(self) -> int:
        """Two, or one where halves of the environments do not divide over the mesh's data axes."""
        mesh = rollout_mesh(self.agent.config)
        rows = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        return 1 if self.setting.envs % (2 * rows) and rows > 1 else 2

    def writing(self, tables: Sequence[str]) -> AbstractContextManager[None]:
        """While it is entered no other evaluation writes these tables. UserError where one does already."""
        return self.run.writing_tables(tables) if is_first() else nullcontext()

    def refuse_replacing(self, tables: Sequence[str]) -> None:
        """Raise UserError where one of these tables is there and was made with other settings, of any mesh."""
        mine = self.setting.model_dump(mode="json", exclude={"mesh"})
        for table in tables:
            known = self.run.table_settings(table)
            swept = {TARGETS: "target", EXPLORE: "explore"}.get(table)
            for name, value in mine.items():
                if name in known and name != swept and known[name] != value:
                    raise UserError(
                        f"{self.run.table(table)}: was made with {name} {known[name]}, not {value}; replace it with "
                        "--overwrite, or keep both with --name NAME"
                    )

    def write(
        self,
        table: str,
        results: list[TrialReturn],
        dropped: Sequence[Dropped],
        began: float,
        more: Mapping[str, object],
    ) -> Path:
        """A table of the run's evaluation/, and beside it a JSON of the settings; returns the table's path.

        Of many processes the first one writes, and the others wait.
        """
        if not is_first():
            wait_for_all(f"written {table}")
            return self.run.table(table)
        facts = {"seconds": round(time.perf_counter() - began, 2), "checkpoint_step": self.agent.step}
        rows = [list(astuple(each)) for each in dropped]
        columns = [field.name for field in fields(Dropped)]
        facts |= {"task": self.task, "agent": self.agent.name, "dropped": {"columns": columns, "rows": rows}}
        facts |= split_of(self.task, self.setting.seed) | {"notes": list(self.notes)} | dict(more)
        if self.run.tables is not None:  # by which a report finds the run
            facts["run"] = str(self.run.path.resolve())
        path = self.run.write_table(table, results, self.setting.model_dump() | facts)
        wait_for_all(f"written {table}")
        return path


def load_evaluated(
    path: Path, checkpoint: str, given: Mapping[str, Any], task: str | None = None, out: Path | None = None
) -> Evaluated:
    """The run's agent; of `given`, what is not None changes the run's own setting, and `task` its task.

    Its tables are written to `out`, by default the run's evaluation/.

    Raises UserError as `evaluate`.
    """
    known = {name: value for name, value in given.items() if value is not None}
    run = RunDirectory(path)
    config, dataset = run.config(), run.dataset()
    agent, _ = agent_and_source(path, run.label(), config)
    sizes = dataset["sizes"]
    own = config.data.task
    task, seed = task or own, known.get("seed", config.evaluation.seed)
    if task == own:
        check_task(path, own, sizes)
    elif not (is_retrieval(own, task) or is_canonical(own, task)):
        check_other_task(path, task, sizes)
    check_seeds(path, task, seed, known.get("envs", config.evaluation.envs))
    trained = load_trained(path, checkpoint, known)
    refuse_unused(trained, known)
    check_exploration(trained, retrieves=is_retrieval(own, task))
    run = RunDirectory(path, None if task == own else task, out)
    acting, expert = trained.in_task(task), None
    notes = evaluation_notes(acting.config, agent, dataset, acting.trial_steps())
    if trained.target is not None and acting.config.evaluation.target is not None:
        notes += target_notes([acting.config.evaluation.target], np.asarray(dataset["returns"]))
    if is_retrieval(own, task):
        acting, expert = (as_retrieval(path, trained, task, knows=knows) for knows in (False, True))
    elif is_canonical(own, task):
        acting = as_canonical(path, trained, task)
    return Evaluated(run, acting, expert, tuple(noted(notes)), tuple(dataset["returns"]))
