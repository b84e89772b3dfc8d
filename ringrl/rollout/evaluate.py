"""`ringrl evaluate`: a run's checkpoint in its own task, beside references in the same environments."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax

from ringrl.choices import TrajectoryOrder, WhenFull
from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.progress import progress_bar
from ringrl.rollout.demonstrations import Demonstrations, check_demonstrations, check_room, usual_order
from ringrl.rollout.evaluated import Evaluated, Start, load_evaluated
from ringrl.rollout.film import Film
from ringrl.rollout.stored_trajectories import ContextDraw, StoredTrajectories
from ringrl.run_tables import RETURNS
from ringrl.store.episode_store import open_store
from ringrl.training.processes import is_first
from ringrl.trust import trusting


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
    video_trials: Sequence[int] = (),
    checkpoint: str = "latest",
    when_full: WhenFull | None = None,
    cache_dtype: str | None = None,
    demonstrations: Path | str | None = None,
    trajectories: int = 0,
    order: TrajectoryOrder | None = None,
    apart: bool = False,
    explore: int | None = None,
    explore_correlation: float | None = None,
    mesh: Mapping[str, int] | None = None,
    out: Path | None = None,
    overwrite: bool = True,
    trust: bool = False,
) -> Path:
    """Roll a checkpoint of the run out; None takes the run's own setting. Returns the path of returns.csv.

    `task` is the run's own or another of the same widths, such as a domain's own task for an agent of hidden ones; the
    tables of another are in evaluation/TASK/. An agent of a family's visible task is given the member in a canonical
    task, and is retrieval in the hidden one, and called so (`ringrl.rollout.retrieval`).
    `checkpoint` is `latest`, `best` (the lowest loss of those kept), or the number of a step.
    `trials` trials in each of `envs` environments, all in one context where the agent's spans trials, of at most
    `context` tokens, of which `when_full` says what is kept (`ringrl.rollout.full_context`). Keys and values are kept
    in `cache_dtype` (float32, bfloat16, int8). `target` is the target return, of agents that are conditioned on one.
    With `reference`, the uniform random policy is rolled out in environments of the same seeds, under the agent name
    `random`, and where the task knows an expert, so is that, as `expert`. With `video`, the first environment's trials
    are filmed, in a rollout of their own; with `video_trials`, trials from 1 on such as (1, 8), these side by side, of
    the environment in which the gain from the first of them to the last is the median. Both files, returns.csv and
    evaluation.json, are replaced whole at the end.
    With `mesh`, devices along mesh axes such as `{"seq": 4}`, contexts are spread over them; by default over the run's
    mesh where there are as many devices. With `demonstrations`, a store, the agent's contexts begin with `trajectories`
    of it, relabelled to the task and in `order`: as they are drawn by the evaluation's seed, or ascending by return;
    None: as the agent is trained (`ringrl.rollout.demonstrations.usual_order`). `apart`: drawn for each environment.
    `explore`: the first so many trials act at random, with `explore_correlation` (`ringrl.rollout.exploration`).
    `out`: the folder of the tables, instead of the run's evaluation/, where that can only be read; a report on `out` is
    one on the run. `overwrite`: whether a table that was made with other settings is replaced.
    `trust`: run the agent that the run brings along, whoever wrote it; otherwise there is a question, or an error,
    where it is neither shipped nor known to this user (`ringrl.trust`).

    Raises UserError where the run or a setting is wrong, or another process is writing returns.csv; for an agent that
    is not trusted; for seeds of training tasks; for a given target or context of an agent that has none; and for
    demonstrations that the agent cannot be shown.

    Example:
        >>> import ringrl
        >>> table = ringrl.evaluate("runs/cartpole", trials=1, envs=2, reference=False)
        >>> print(table.read_text().splitlines()[0])
        agent,task,seed,env,trial,return,length,target_return,demonstrations,explored
    """
    began, run, out = time.perf_counter(), user_path(run), None if out is None else user_path(out)
    given = {"trials": trials, "envs": envs, "context": context, "target": target, "seed": seed}
    given |= {"explore": explore, "explore_correlation": explore_correlation}
    given |= {"when_full": when_full, "cache_dtype": cache_dtype, "mesh": mesh}
    if video_trials and video is None:
        raise UserError("--video-trials: are of a film; give --video film.mp4 too")
    if video is not None and jax.process_count() > 1:
        raise UserError("--video: is made by one process; leave it out, or roll out with --processes 1")
    with trusting(trust):
        trained = load_evaluated(run, checkpoint, given, task, out)
    film = None if video is None else _checked_film(trained, video, video_trials)
    starts, about = demonstrated(trained, demonstrations, [trajectories], order, apart)
    start = starts[trajectories]
    if not overwrite:
        trained.refuse_replacing([RETURNS])
    others = trained.references() if reference and is_first() else {}
    with trained.writing([RETURNS]), progress_bar() as progress:
        everyone = {trained.agent.name: start} | others
        results, dropped = trained.roll_out(everyone, progress, by_first=others)
        returns = trained.write(RETURNS, results, dropped, began, about)
    if film is not None:
        film.record(trained, start)
    return returns


def _checked_film(trained: Evaluated, video: Path, trials: Sequence[int]) -> Film:
    film = Film(video, tuple(trials))
    film.check(trained.task, trained.setting.trials)
    return film


def demonstrated(
    trained: Evaluated,
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
