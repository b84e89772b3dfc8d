"""`ringrl evaluate`: a run's checkpoint in its own task, beside references in the same environments."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.progress import Progress

from ringrl.batch import TrajectoryOrder
from ringrl.config import Ablation, EvaluationConfig, WhenFull
from ringrl.envs import EnvPool, VectorEnv
from ringrl.errors import UserError
from ringrl.policy import RolloutSetting, RolloutSpec
from ringrl.progress import progress_bar
from ringrl.returns import TrialReturn
from ringrl.rollout.demonstrations import Demonstrations, check_demonstrations, check_room, usual_order
from ringrl.rollout.evaluable import check_other_task, check_seeds, check_task, refuse_unused, split_of
from ringrl.rollout.full_context import Dropped
from ringrl.rollout.references import references
from ringrl.rollout.retrieval import as_retrieval, is_retrieval
from ringrl.rollout.session import Session
from ringrl.rollout.shared_envs import SharedEnvs, trial_envs
from ringrl.rollout.stored_trajectories import ContextDraw, StoredTrajectories
from ringrl.rollout.trained_agent import TrainedAgent, agent_and_source, load_trained
from ringrl.rollout.trials import Group, TrialRows, run_trials
from ringrl.rollout.video import record
from ringrl.run import RunDirectory
from ringrl.run_tables import RETURNS
from ringrl.store.episode_store import open_store
from ringrl.training.mesh import rollout_mesh
from ringrl.training.processes import is_first, wait_for_all

Start = Callable[..., Session]  # (VectorEnv or SharedEnvs, index of the first) -> who acts in them


def evaluate(
    run: Path | str,
    *,
    task: str | None = None,
    trials: int | None = None,
    envs: int | None = None,
    context: int | None = None,
    target: float | None = None,
    seed: int | None = None,
    reference: bool = True,
    video: Path | None = None,
    checkpoint: str = "latest",
    when_full: WhenFull | None = None,
    cache_dtype: str | None = None,
    demonstrations: Path | str | None = None,
    trajectories: int = 0,
    order: TrajectoryOrder | None = None,
    apart: bool = False,
    mesh: Mapping[str, int] | None = None,
) -> Path:
    """Roll a checkpoint of the run out; None takes the run's own setting. Returns the path of returns.csv.

    `task` is the run's own or another of the same widths, such as a domain's own task for an agent of hidden ones; the
    tables of another are in evaluation/TASK/. An agent of a family's visible task is retrieval in its hidden one
    (`ringrl.rollout.retrieval`), and is called so.
    `checkpoint` is `latest`, `best` (the lowest training loss of those kept), or the number of a step.
    `trials` trials in each of `envs` environments, all in one context where the agent's spans trials, of at most
    `context` tokens, of which `when_full` says what is kept (`ringrl.rollout.full_context`). Keys and values are kept
    in `cache_dtype` (float32, bfloat16, int8). `target` is the target return, of agents that are conditioned on one.
    With `reference`, the uniform random policy is rolled out in environments of the same seeds, under the agent name
    `random`, and where the task knows an expert, so is that, as `expert`. With `video`, the first environment's trials
    are filmed, in a rollout of their own. Both files, returns.csv and evaluation.json, are replaced whole at the end.
    With `mesh`, devices along mesh axes such as `{"seq": 4}`, contexts are spread over them; by default over the run's
    mesh where there are as many devices. With `demonstrations`, a store, the agent's contexts begin with `trajectories`
    of it, relabelled to the task and in `order`: as they are drawn by the evaluation's seed, or ascending by return;
    None: as the agent is trained (`ringrl.rollout.demonstrations.usual_order`). `apart`: drawn for each environment.

    Raises UserError where the run or a setting is wrong, or another process is writing returns.csv; for seeds of
    training tasks; for a given target or context of an agent that has none; and for demonstrations that the agent
    cannot be shown.

    Example:
        >>> import ringrl
        >>> table = ringrl.evaluate("runs/cartpole", trials=1, envs=2, reference=False)
        >>> print(table.read_text().splitlines()[0])
        agent,task,seed,env,trial,return,length,target_return,demonstrations
    """
    began, run = time.perf_counter(), Path(run)
    given = {"trials": trials, "envs": envs, "context": context, "target": target, "seed": seed}
    given |= {"when_full": when_full, "cache_dtype": cache_dtype, "mesh": mesh}
    if video is not None and jax.process_count() > 1:
        raise UserError("--video: is made by one process; leave it out, or roll out with --processes 1")
    trained = load_evaluated(run, checkpoint, given, task)
    starts, about = demonstrated(trained, demonstrations, [trajectories], order, apart)
    start = starts[trajectories]
    others = trained.references() if reference and is_first() else {}
    with trained.writing([RETURNS]), progress_bar() as progress:
        everyone = {trained.agent.name: start} | others
        results, dropped = trained.roll_out(everyone, progress, by_first=others)
        returns = trained.write(RETURNS, results, dropped, began, about)
    if video is not None:
        film = {"seed": trained.setting.seed, "action_repeat": trained.agent.config.data.action_repeat}
        record(video, lambda envs: start(envs, 0), trained.task, trained.setting.trials, **film)
    return returns


def demonstrated(
    trained: "Evaluated",
    store: Path | str | None,
    numbers: Sequence[int],
    order: TrajectoryOrder | None,
    apart: bool = False,
) -> tuple[dict[int, Start], dict[str, object]]:
    """Who acts after each number of trajectories of a store, and what a JSON says of these; 0: an empty context.

    Raises UserError where the agent cannot be shown them (`ringrl.rollout.demonstrations`).
    """
    if store is None:
        if any(numbers):
            raise UserError("--trajectories: says how many demonstrations there are; give --demonstrations STORE too")
        return {0: trained.session}, {}
    agent, setting = trained.agent, trained.setting
    check_demonstrations(agent.name, across_trials=agent.description.across_trials)
    order = order or usual_order(agent.spec)
    if min(numbers) < 0:
        raise UserError(f"--trajectories {min(numbers)}: give whole numbers from 0 on")
    about: dict[str, object] = {
        "demonstrations": str(store),
        "trajectories": list(numbers),
        "order": order,
        "apart": apart,
    }
    shown: dict[int, Demonstrations] = {}
    if any(numbers):
        draw = ContextDraw(max(numbers), setting.envs, setting.seed, order, apart)
        drawn = StoredTrajectories(open_store(store), trained.task, agent.form(), draw)
        check_room(drawn.steps, agent.spec.context_steps, trained.agent.trial_steps())
        shown = {number: drawn.first(number) for number in numbers if number}
    about["returns_of_demonstrations"] = {
        number: {"mean": float(each.returns.mean()), "best": float(each.returns.max(axis=1).mean())}
        for number, each in shown.items()
    }
    return {each: partial(trained.session, demonstrations=shown.get(each)) for each in dict.fromkeys(numbers)}, about


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
    """

    run: RunDirectory
    agent: TrainedAgent
    expert: TrainedAgent | None = None

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
    ) -> Session:
        """The agent in these environments, of which the first has that index among all."""
        s = self.setting
        setting = RolloutSetting(envs.num_envs, envs.agent_steps, s.trials, s.seed, first, s.when_full, ablation)
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

    def writing(self, tables: Iterable[str]) -> AbstractContextManager[None]:
        """While it is entered no other evaluation writes these tables. UserError where one does already."""
        return self.run.writing_tables(tables) if is_first() else nullcontext()

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
        facts |= split_of(self.task, self.setting.seed) | dict(more)
        path = self.run.write_table(table, results, self.setting.model_dump() | facts)
        wait_for_all(f"written {table}")
        return path


def load_evaluated(path: Path, checkpoint: str, given: Mapping[str, Any], task: str | None = None) -> Evaluated:
    """The run's agent; of `given`, what is not None changes the run's own setting, and `task` its task.

    Raises UserError as `evaluate`.
    """
    known = {name: value for name, value in given.items() if value is not None}
    run = RunDirectory(path)
    config, sizes = run.config(), run.dataset()["sizes"]
    agent_and_source(path, run.label(), config)
    own = config.data.task
    task, seed = task or own, known.get("seed", config.evaluation.seed)
    if task == own:
        check_task(path, own, sizes)
    elif not is_retrieval(own, task):
        check_other_task(path, task, sizes)
    check_seeds(path, task, seed, known.get("envs", config.evaluation.envs))
    trained = load_trained(path, checkpoint, known)
    refuse_unused(trained, known)
    run = RunDirectory(path, None if task == own else task)
    if is_retrieval(own, task):
        sent, expert = (as_retrieval(path, trained, task, knows=knows) for knows in (False, True))
        return Evaluated(run, sent, expert)
    return Evaluated(run, trained.in_task(task))
