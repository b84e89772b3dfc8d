"""`ringrl evaluate` once more for each of several settings: targets, demonstrations, exploration, context ablations."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ringrl.choices import Ablation, TrajectoryOrder
from ringrl.config import change_section
from ringrl.errors import UserError
from ringrl.progress import progress_bar
from ringrl.rollout.ablation import check_ablation, numbers_to_ablate
from ringrl.rollout.evaluable import check_exploration
from ringrl.rollout.evaluate import demonstrated
from ringrl.rollout.evaluated import Evaluated, Start, load_evaluated
from ringrl.run_tables import ABLATION, DEMONSTRATIONS, EXPLORE, TARGETS
from ringrl.training.data_notes import noted, target_notes


def repeat(
    run: Path | str,
    targets: Sequence[float] = (),
    ablations: Sequence[Ablation] = (),
    *,
    task: str | None = None,
    demonstrations: Path | str | None = None,
    trajectories: Sequence[int] = (),
    order: TrajectoryOrder | None = None,
    apart: bool = False,
    explore: Sequence[int] = (),
    checkpoint: str = "latest",
    out: Path | None = None,
    overwrite: bool = True,
    **given: int | float | str | None,
) -> list[Path]:
    """The agent's evaluation once more for each target, number of demonstrations, exploration, and context ablation.

    With the agent's rows alone, and a JSON of that name beside each, as evaluation.json, it writes
    - evaluation/targets.csv for all `targets`;
    - evaluation/demonstrations.csv for all numbers of `trajectories` of the store `demonstrations`; of two numbers, the
      fewer are among the more;
    - evaluation/explore.csv for all numbers of `explore`, after the demonstrations if one number of them is given;
    - evaluation/ablation-NAME.csv for each of `ablations` (`ringrl.rollout.ablation`), after each number of
      `trajectories` after which it changes something; instead of demonstrations.csv, which is another call's.

    Args:
        run: a run directory.
        targets: target returns.
        ablations: by name.
        task: as `evaluate`'s.
        demonstrations: a store, or its URL.
        trajectories: how many of it a context begins with.
        order: of them in a context; None: as the agent is trained.
        apart: as `evaluate`'s.
        explore: how many of the first trials act at random; a single number beside others of these is of all of them.
        checkpoint: as `evaluate`'s.
        out: as `evaluate`'s.
        overwrite: as `evaluate`'s.
        given: `evaluate`'s trials, envs, context, target, seed and so on; None: the run's own.

    Returns:
        The tables' paths.

    Raises:
        UserError: as `evaluate`; for targets of an agent that is not conditioned on one; for ablations of retrieval,
            and of an agent whose context is the present trial alone; and for trials or a context too few to contain
            what an ablation would change.
    """
    if len(explore) == 1 and (targets or ablations or trajectories):
        given, explore = given | {"explore": explore[0]}, ()
    trained = load_evaluated(Path(run), checkpoint, given, task, out)
    tables = [_for_targets(trained, targets)] if targets else []
    starts, about = demonstrated(trained, demonstrations, trajectories or [0], order, apart)
    if explore and (ablations or targets or len(starts) > 1):
        raise UserError(
            "--explore: give one number, or leave out --targets, --ablation and all but one of --trajectories"
        )
    if explore:
        tables.append(_for_exploration(trained, explore, next(iter(starts.values())), about))
    elif trajectories and not ablations:
        named = {f"{number} demonstrations": start for number, start in starts.items()}
        tables.append(_Repetition(DEMONSTRATIONS, named, about))
    tables += [_for_ablation(trained, ablation, starts, about) for ablation in dict.fromkeys(ablations)]
    if not overwrite:
        trained.refuse_replacing([table.name for table in tables])
    written = []
    with trained.writing([table.name for table in tables]), progress_bar() as progress:
        for table in tables:
            began, rows, dropped = time.perf_counter(), [], []
            for how, start in table.starts.items():
                outcome = trained.roll_out({trained.agent.name: start}, progress, how, table.groups)
                rows, dropped = rows + outcome.rows, dropped + outcome.dropped
            written.append(trained.write(table.name, rows, dropped, began, table.about))
    return written


@dataclass(frozen=True)
class _Repetition:
    """One table: who acts, by what the progress line says of it, and what the table's JSON says."""

    name: str
    starts: Mapping[str, Start]
    about: Mapping[str, object]
    groups: int = 2


def _for_targets(trained: Evaluated, targets: Sequence[float]) -> _Repetition:
    spec = trained.agent.spec
    if spec.target is None:
        raise UserError(
            f"--targets: {trained.agent.name} is not conditioned on a return, so there is none to vary; leave it out"
        )
    asked = [change_section(trained.setting, {"target": target}, "--targets").target for target in targets]
    starts = {f"target {each:g}": partial(trained.session, spec=replace(spec, target=each)) for each in asked}
    numbers = [each for each in asked if each is not None]
    notes = [*trained.notes, *noted(target_notes(numbers, np.asarray(trained.returns)))]
    return _Repetition(TARGETS, starts, {"target": None, "targets": asked, "notes": notes})


def _for_exploration(
    trained: Evaluated, numbers: Sequence[int], start: Start, about: Mapping[str, object]
) -> _Repetition:
    for number in numbers:
        setting = change_section(trained.setting, {"explore": number}, "--explore")
        config = trained.agent.config.model_copy(update={"evaluation": setting})
        check_exploration(replace(trained.agent, config=config), retrieves=trained.expert is not None)
    starts = {f"explore {number}": partial(start, explore=number) for number in numbers}
    return _Repetition(EXPLORE, starts, {**about, "explore": list(numbers)})


def _for_ablation(
    trained: Evaluated, ablation: Ablation, starts: Mapping[int, Start], about: Mapping[str, object]
) -> _Repetition:
    agent = trained.agent
    if trained.expert is not None:
        raise UserError(
            f"--ablation: {agent.name} keeps one state of its demonstrations and learns nothing in its trials, so "
            "there are no earlier ones to ablate; leave it out"
        )
    across, steps = agent.description.across_trials, trained.agent.trial_steps()
    numbers = numbers_to_ablate(ablation, trained.setting.trials, list(starts))
    check_ablation(ablation, agent.name, agent.spec, trained.setting, steps, across_trials=across)
    groups = 1 if ablation == "foreign" else 2  # where trials are exchanged within a group
    after = {n: f"{ablation}, {n} demonstrations" if n else ablation for n in numbers}
    named = {after[number]: partial(starts[number], ablation=ablation) for number in numbers}
    shown = {"trajectories": numbers} if "trajectories" in about else {}
    return _Repetition(f"{ABLATION}{ablation}", named, {**about, "ablation": ablation, **shown}, groups)
