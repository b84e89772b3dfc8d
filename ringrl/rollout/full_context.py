"""What is kept of a context that is full, by name. What is dropped is recorded.

| policy | what is kept |
|---|---|
| newest | as many of the newest whole trials as leave room for another, and the present trial |
| best | as many of the trials with the highest returns as leave room for another, ascending, and the present trial |
| stop | everything: no trial begins for which there is no room |

Kept trials are counted from 0 again, as in training, where an agent never saw more trials than fit. `best` orders them
as the Agentic Transformer's training does (Liu & Abbeel 2023, chain of hindsight, section 3).
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Int64

from ringrl.choices import WhenFull
from ringrl.errors import UserError
from ringrl.rollout.recent_steps import RecentSteps


@dataclass(frozen=True)
class Dropped:
    """What a full context lost."""

    env: int
    at_trial: int  # the trial, of all in this environment's rollout, in which room was made
    trials: int  # whole trials that were dropped
    steps: int  # agent steps that were dropped


class RoomMaker:
    """Makes room in contexts of `steps` agent steps, in which trials of up to `trial_steps` take place.

    With a context of n trials' length, n - 1 earlier trials are always in it; with n = 1, only the present one. A
    context shorter than a trial goes on from its newest half, under any policy but `stop`.

    Attributes:
        dropped: what was dropped so far, in order.
    """

    def __init__(self, steps: int, trial_steps: int, when_full: WhenFull):
        if when_full not in get_args(WhenFull):
            raise UserError(f"when_full {when_full!r}: choose one of {', '.join(get_args(WhenFull))}")
        if when_full == "stop" and steps < trial_steps:
            raise UserError(
                f"when_full stop: a context of {steps} agent steps has no room for a trial of {trial_steps}; "
                "give a longer context"
            )
        self._whole, self._steps, self._trial_steps, self._when_full = (
            steps >= trial_steps,
            steps,
            trial_steps,
            when_full,
        )
        # The same for all environments and all trial lengths, so that none depends on the others in its batch.
        self._kept = max(steps - trial_steps, steps // 2)
        self.dropped: list[Dropped] = []

    def room(self, recent: RecentSteps) -> np.ndarray:
        """bool [envs]: whether another trial may begin without anything being dropped, or things may be dropped."""
        return (recent.count + self._trial_steps <= self._steps) | (self._when_full != "stop")

    def make_room(self, recent: RecentSteps, env: int, begins: bool, at_trial: int) -> None:
        """Drop steps of a full context; `begins`: the step to come is the first of a trial.

        Raises:
            UserError: the policy is `stop`.
        """
        if self._when_full == "stop":
            raise UserError(
                f"the context of environment {env} is full ({self._steps} steps) and evaluation.when_full is stop; "
                "give a longer context, or newest or best"
            )
        before, trials = int(recent.count[env]), len(recent.trials(env))
        if not self._whole:
            recent.keep_newest(env, self._kept)
        else:
            recent.keep_trials(env, self._chosen(recent, env, begins))
        gone = trials - len(recent.trials(env))
        self.dropped.append(Dropped(env, at_trial, gone, before - int(recent.count[env])))

    def _chosen(self, recent: RecentSteps, env: int, begins: bool) -> Int64[np.ndarray, " kept"]:
        trials = recent.trials(env)
        present = np.zeros(0, np.int64) if begins else trials.pop()
        # A trial that is longer than what is kept goes on from its newest steps.
        present = present[-self._kept :] if self._kept else present[:0]
        whole = [trial for trial in trials if recent.fields["step"][env, trial[0]] == 0]
        if self._when_full == "best":
            earned = [float(recent.fields["reward"][env, trial].sum(dtype=np.float64)) for trial in whole]
            whole = [whole[i] for i in np.argsort(earned, kind="stable")]  # ascending: taken from the end
        left, kept = self._kept - len(present), []
        for trial in reversed(whole):
            if len(trial) > left:
                break
            kept.insert(0, trial)
            left -= len(trial)
        return np.concatenate([*kept, present])
