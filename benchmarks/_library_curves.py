"""What the runs of row `library` say: returns by trajectories or trials a member, and when members are first paid.

With M members in a library, k trajectories in a context and t trials of its own before one:

    given:  the return of the trial after k trajectories, by k / M
    gained: of environments whose trial's member no trajectory paid among the fewest, and some did among the most: what
            they earn more after the most, and those whose trial's member none has paid then
    own:    the mean return of trials with t / M from 0 to 1, 1 to 2, 2 to 4 ...
    paid:   the share of members that were paid anything by their own nth trial, and that by n random trajectories
    unpaid: in which share of the trials of members that no trial has paid yet they are paid, and in that of random ones

and the mean returns of trials of members that no trial has paid yet, and of those that some have. Which member a trial
was of is drawn by the environment's seed, and is found by starting the same trials again. Intervals are 95 %,
bootstrapped over environments, and over training seeds where there are several.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from benchmarks._results_library import GIVEN, OWN, SEED, task
from benchmarks._results_relabelled import TEST
from ringrl.envs import RewardFamily, family_of, library_of, make_env
from ringrl.files import write_text
from ringrl.returns import TrialReturn
from ringrl.rollout.stored_trajectories import ContextDraw, StoredTrajectories
from ringrl.rollout.trained_agent import load_agent
from ringrl.run import RunDirectory
from ringrl.sampling.relabelled import RelabelledEpisodes
from ringrl.store.episode_store import Store, open_store

RESAMPLES = 10_000
VISITS = (1, 2, 4, 8)
PAID = 5.0  # of a trajectory, that shows where its member pays: 1 is paid within a goal's radius in an environment step
PAYMENTS = ((1, 1), (2, 3), (4, 9))  # of a member before a trial: from, to
Table = Float64[np.ndarray, "seeds envs trials"]


def ratio(above: Float64[np.ndarray, "seeds envs"], below: Float64[np.ndarray, "seeds envs"]) -> list[float] | None:
    """The ratio of two sums over environments and seeds, and its 95 % interval; None where nothing is counted.

    Environments, and seeds where there are several, are drawn again with replacement; the same environments for all.
    """
    if not below.sum():
        return None
    rng, (seeds, envs) = np.random.default_rng(0), below.shape
    seed = rng.integers(seeds, size=(RESAMPLES, seeds, 1))
    env = rng.integers(envs, size=(RESAMPLES, 1, envs))
    summed = [part[seed, env].sum(axis=(1, 2)) for part in (above, below)]
    some = summed[1] > 0
    low, high = np.quantile(summed[0][some] / summed[1][some], (0.025, 0.975))
    return [float(each) for each in (above.sum() / below.sum(), low, high)]


def mean(values: Float64[np.ndarray, "seeds envs"]) -> list[float] | None:
    """Their mean and its interval."""
    return ratio(values, np.ones_like(values))


def by_trial(rows: Sequence[TrialReturn]) -> Table:
    """The returns of an agent's trials by training seed; all environments have as many of them."""
    axes = [sorted({getattr(row, name) for row in rows}) for name in ("seed", "env", "trial")]
    found = np.full([len(axis) for axis in axes], np.nan)
    for row in rows:
        found[axes[0].index(row.seed), row.env, row.trial] = row.return_
    return found


def actives(members: int, environments: int, trials: int) -> Int64[np.ndarray, "envs trials"]:
    """Which member each trial is of: a rollout starts an environment's trials one after the other."""
    drawn = np.zeros((environments, trials), np.int64)
    for index in range(environments):
        env = make_env(task(members), seed=SEED + index)
        for trial in range(trials):
            env.reset()
            drawn[index, trial] = env.task.active
        env.close()
    return drawn


def blocks(returns: Table, members: int) -> dict[str, list[float] | None]:
    """Mean return by trials / members: those from 0 to 1, 1 to 2, 2 to 4, and so on, as far as all were rolled out."""
    edges, found = [0, 1], {}
    while edges[-1] * members <= returns.shape[2]:
        first, last = edges[-2:]
        found[f"{first}-{last}"] = mean(returns[:, :, first * members : last * members].mean(axis=2))
        edges.append(2 * last)
    return found


def earlier(active: Int64[np.ndarray, "envs trials"], paid: Bool[np.ndarray, "envs trials"]) -> tuple:
    """Of each trial, how many of its member's came before it, and how many of these paid."""
    visits, payments = np.zeros_like(active), np.zeros_like(active)
    for env, (row, pays) in enumerate(zip(active, paid, strict=True)):
        seen = np.zeros((2, active.max() + 1), np.int64)
        for trial, member in enumerate(row):
            visits[env, trial], payments[env, trial] = seen[:, member]
            seen[:, member] += (1, pays[trial])
    return visits, payments


def exploration(
    returns: Table, active: Int64[np.ndarray, "envs trials"], chance: Float64[np.ndarray, "envs members"]
) -> dict:
    """When members are first paid, beside a random policy that is paid in a trial with `chance`; see the head."""
    counts = [earlier(active, each > 0) for each in returns]
    visits, payments = (np.stack([count[i] for count in counts]) for i in (0, 1))
    paid, unpaid_before = returns > 0, payments == 0
    of_member = np.broadcast_to(chance[np.arange(len(active))[:, None], active], returns.shape)

    def share(values: np.ndarray, of: np.ndarray) -> list[float] | None:
        return ratio((values * of).sum(axis=2).astype(np.float64), of.sum(axis=2).astype(np.float64))

    found: dict = {"paid": {}}
    for n in VISITS:
        at = visits == n - 1  # a member's nth trial: by then it was paid before, or is now
        found["paid"][n] = {
            "student": share(paid | ~unpaid_before, at),
            "random": share(1 - (1 - of_member) ** n, at),
        }
    found["unpaid"] = {"student": share(paid, unpaid_before), "random": share(of_member, unpaid_before)}
    found["return_unpaid"] = share(returns, unpaid_before)
    found["return_paid"] = share(returns, ~unpaid_before)
    found["return_paid_by_payments"] = {
        f"{low}-{high}": share(returns, (payments >= low) & (payments <= high)) for low, high in PAYMENTS
    }
    return found


def chances(family: RewardFamily, store: Store, members: int, environments: int) -> Float64[np.ndarray, "envs members"]:
    """Of each member, the share of the store's trajectories that it pays anything: those of the random policy."""
    reader, every = RelabelledEpisodes(store, family), np.arange(store.episodes)
    spans = [(episode, 0, int(store.lengths[episode])) for episode in every.tolist()]
    features = np.concatenate(reader.features(spans))
    ends = np.concatenate([[0], np.cumsum(store.lengths)[:-1]])
    found = np.zeros((environments, members))
    for index in range(environments):
        for number, member in enumerate(library_of(family, SEED + index, members)):
            paid = family.reward(features, member) > 0
            found[index, number] = np.logical_or.reduceat(paid, ends).mean()
    return found


def gained(run: Path, members: int, store: Store, first: Table) -> dict[str, list[float] | None]:
    """What the trial's member being paid in the context is worth, in the same environments; see the head.

    Args:
        run: any of those that were evaluated; the same trajectories are shown to all.
        members: of a library.
        store: of the trajectories.
        first: the returns of the first trial, after each number of trajectories.
    """
    numbers, environments = GIVEN[members], first.shape[1]
    draw = ContextDraw(numbers[-1], environments, SEED, "random")
    shown = StoredTrajectories(store, task(members), load_agent(run).form(), draw)._contexts
    counts = np.zeros((2, environments))  # of trajectories of the trial's member that are paid: fewest and most
    for index, context in enumerate(shown):
        env = make_env(task(members), seed=SEED + index)
        env.reset()
        assert context.parameter is not None
        pays = (context.parameter == env.task.hidden).all(axis=1) & (context.returns >= PAID)
        counts[:, index] = pays[: numbers[0]].sum(), pays.sum()
        env.close()
    more, unpaid = first[..., -1] - first[..., 0], counts[0] == 0
    found = {}
    for name, which in (("paid", unpaid & (counts[1] > 0)), ("unpaid", unpaid & (counts[1] == 0))):
        some = np.broadcast_to(which.astype(np.float64), more.shape)
        found[name] = ratio(more * some, some)
        found[f"{name}_environments"] = int(which.sum())
    return found


def _rows(run: Path, members: int, table: str) -> tuple[TrialReturn, ...]:
    own = RunDirectory(run).config().data.task
    return RunDirectory(run, None if task(members) == own else task(members)).read_table(table)


def curves(runs: Sequence[Path], members: int, store: Store) -> dict:
    """What the runs say of libraries of so many members."""
    shown = [row for run in runs for row in _rows(run, members, "demonstrations")]
    first = np.stack(
        [by_trial([row for row in shown if row.demonstrations == number])[..., 0] for number in GIVEN[members]], axis=-1
    )
    given = {number / members: mean(first[..., index]) for index, number in enumerate(GIVEN[members])}
    returns = by_trial([row for run in runs for row in _rows(run, members, "returns")])
    family = family_of(task(members))
    assert family is not None
    _, environments, trials = returns.shape
    active, chance = actives(members, environments, trials), chances(family, store, members, environments)
    return {
        "given": given,
        "gained": gained(runs[0], members, store, first),
        "own": blocks(returns, members),
        **exploration(returns, active, chance),
    }


def write_curves(runs: Sequence[Path], out: Path) -> None:
    """The JSON `out` of all of row `library`, from the tables of its runs, one of each training seed."""
    store = open_store(TEST[-1].out)
    found = {members: curves(runs, members, store) for members in OWN}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, f"{json.dumps({'seeds': len(runs), 'members': found}, indent=1)}\n")
