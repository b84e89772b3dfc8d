"""The learning rate by step: a warm-up and a cosine and, where a run went on under other settings, one more of each.

A run that goes on to another number of steps, or with another learning rate, begins a leg at its newest checkpoint, at
the learning rate that it had there. So the rate has no jump, and is the same function of the step however often the run
is stopped. What is known of the legs before is kept in the run's configuration, as `optimizer.legs`.
"""

from collections.abc import Sequence

import numpy as np
import optax

from ringrl.config import OptimizerConfig, RunConfig, ScheduleLeg
from ringrl.errors import UserError

_DECIDING = ("learning_rate", "final_fraction", "warmup_steps")


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by the number of steps done; `steps`: of the run."""
    legs = config.legs or (_first_leg(config, steps),)
    schedules = [
        optax.warmup_cosine_decay_schedule(leg.rate, leg.peak, leg.warmup, max(leg.steps - leg.begin, 1), leg.end)
        for leg in legs
    ]
    return schedules[0] if len(legs) == 1 else optax.join_schedules(schedules, [leg.begin for leg in legs[1:]])


def go_on(own: RunConfig, changed: RunConfig, done: int, given: Sequence[str], run: str) -> RunConfig:
    """`changed` with the legs of a run that has done so many steps under `own`; as it is where the rate is unaffected.

    From `done` on the rate follows a cosine from what it is there, after what is left of a warm-up, to the final one at
    the new number of steps. Where the learning rate or the warm-up is given anew, it first goes to the learning rate.

    Args:
        own: the run's configuration.
        changed: what it is to be.
        done: optimiser steps, of the newest checkpoint.
        given: names of the settings that the user gives, such as `optimizer.learning_rate`.
        run: the run directory, for errors.

    Raises:
        UserError: there are fewer steps than are done, or the rate would jump, or would be 0 to the end.
    """
    steps = changed.training.steps
    if steps < done:
        raise UserError(f"{run}: has done {done} steps, so training.steps={steps} is behind it; give {done} or more")
    before, after = own.optimizer, changed.optimizer
    same = own.training.steps == steps and all(getattr(before, name) == getattr(after, name) for name in _DECIDING)
    if same or not done:
        return changed
    legs = before.legs or (_first_leg(before, own.training.steps),)
    rate = float(np.asarray(make_schedule(before, own.training.steps)(done)))
    end = after.learning_rate * after.final_fraction
    warmup = max(legs[-1].begin + legs[-1].warmup - done, 0)
    peak = legs[-1].peak if warmup else rate
    if {"optimizer.learning_rate", "optimizer.warmup_steps"} & set(given):
        warmup, peak = after.warmup_steps, after.learning_rate
        if not warmup and peak != rate:
            raise UserError(
                f"{run}: the learning rate would jump from {rate:.3g} to {peak:.3g} at step {done}; give "
                "optimizer.warmup_steps=N, in which it gets there"
            )
    if not (peak or end):
        raise UserError(
            f"{run}: its learning rate has fallen to 0 at step {done}; give optimizer.learning_rate=X and "
            "optimizer.warmup_steps=N, in which it gets there"
        )
    warmup = min(warmup, max(steps - done - 1, 0))
    leg = ScheduleLeg(begin=done, rate=rate, peak=peak, warmup=warmup, end=end, steps=steps)
    optimizer = after.model_copy(update={"legs": (*legs, leg)})
    return changed.model_copy(update={"optimizer": optimizer})


def describe_last(config: OptimizerConfig) -> str:
    """A clause about the last leg, for the user."""
    leg = config.legs[-1]
    over = f", {leg.peak:.3g} from step {leg.begin + leg.warmup} on" if leg.warmup else ""
    fixed = "" if leg.warmup else " (optimizer.learning_rate=X lets it rise again, over optimizer.warmup_steps)"
    end = f"falls to {leg.end:.3g} at step {leg.steps}{fixed}"
    return f"the learning rate is {leg.rate:.3g} at step {leg.begin}{over}, and {end}"


def _first_leg(config: OptimizerConfig, steps: int) -> ScheduleLeg:
    warmup, peak = min(config.warmup_steps, max(steps - 1, 0)), config.learning_rate
    rate, end = 0.0 if warmup else peak, peak * config.final_fraction
    return ScheduleLeg(begin=0, rate=rate, peak=peak, warmup=warmup, end=end, steps=steps)
