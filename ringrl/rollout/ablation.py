"""Does an agent use its context? Its past is tampered with, and what it earns is compared.

| probe | what it sees of the trials before the present one |
|---|---|
| truncated | nothing; trials and positions are counted on |
| shuffled | the same trials in another order, drawn for each environment; at each trial once old trials have left |
| foreign | those of the next environment of the batch, the last's being the first's |
| blind | all, but no reward anywhere, not of the present trial either: the return-to-go stays the target |
"""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Float64, Int64

from ringrl.agent import RolloutSpec
from ringrl.batch import link_previous
from ringrl.config import EvaluationConfig
from ringrl.errors import UserError
from ringrl.model.transformer import Transformer
from ringrl.rollout import Ablation
from ringrl.rollout.context import CachedContext, StepFields

# Trials in a context from which on a probe makes a difference; an order is of two earlier ones or more.
_LEAST_TRIALS: dict[Ablation, int] = {"truncated": 2, "shuffled": 3, "foreign": 2, "blind": 0}


def check_ablation(
    probe: Ablation, agent: str, acting: RolloutSpec, setting: EvaluationConfig, trial_steps: int
) -> None:
    """Raises UserError where the agent has no past to tamper with, or none that the probe would change.

    `agent` is its name, `trial_steps` the decisions in the longest trial there can be.
    """
    if not acting.across_trials:
        raise UserError(f"--probe: {agent} looks at the present trial alone, so there is no past to tamper with")
    if probe == "foreign" and setting.envs < 2:
        raise UserError("--probe foreign: takes the past of another environment; give --envs 2 or more")
    least = _LEAST_TRIALS[probe]
    if setting.trials < least:
        raise UserError(f"--probe {probe}: changes nothing in fewer than {least} trials; give --trials {least} or more")
    if acting.context_steps < least * trial_steps:
        raise UserError(
            f"--probe {probe}: takes a context of {least} trials, which is {least * trial_steps} steps, and this one "
            f"is of {acting.context_steps}; give a longer --context, or an agent trained on more trials"
        )


class AblatedContext(CachedContext):
    """A cached context that shows another past: made anew at each trial's start, from what really happened.

    Args:
        model, envs, steps, trial_steps, sizes: as of `CachedContext`.
        probe: how the past is tampered with.
        target: the return-to-go that `blind` shows, as the model takes it.
        seed: of the order of trials.
    """

    def __init__(
        self,
        model: Transformer,
        envs: int,
        steps: int,
        trial_steps: int,
        sizes: Mapping[str, int],
        *,
        probe: Ablation,
        target: float,
        seed: int,
    ):
        super().__init__(model, envs, steps, trial_steps, sizes)
        self._probe: Ablation = probe
        self._target, self._keys = target, np.random.default_rng(seed).random((envs, steps + 1))

    def predict(self, step: StepFields) -> jax.Array:
        """As `CachedContext`. Raises UserError where environments begin their trials at different times."""
        begins = step["step"] == 0
        if begins.any() and not begins.all():
            raise UserError(
                f"--probe {self._probe}: the environments begin their trials at different times, so no past can be "
                "put together for all at once; probe a task whose episodes are all of one length"
            )
        moved = self._record(step)
        if moved or begins.all():
            count = self._recent.count
            actual = {name: value[:, :count] for name, value in self._recent.fields.items()}
            shown = ablate(self._probe, actual, self._keys, self._target)
            self._rebuild(shown)
            return self._add({name: value[:, count - 1 :] for name, value in shown.items()})
        return self._add(self._seen(self._recent.last()))

    def amend(self, step: StepFields) -> None:
        """As `CachedContext`."""
        super().amend(step)
        self._previous = self._seen(self._previous)

    def _seen(self, steps: StepFields) -> StepFields:
        """Steps of the present trial, as they are shown."""
        return blinded(steps, self._target) if self._probe == "blind" else steps


def ablate(
    probe: Ablation, actual: Mapping[str, np.ndarray], keys: Float64[np.ndarray, "envs keys"], target: float
) -> dict[str, np.ndarray]:
    """What is shown for `actual`, arrays of `ringrl.batch.Batch` [envs, steps, ...]; its last trial is the present one.

    The trials before it are tampered with, and `previous_*` are those of the step that is shown before. All
    environments began the present trial with the same step. `keys` order the trials of `shuffled`: the one that stands
    at place i takes key i. `target` is the return-to-go of `blind`.
    """
    trial, there = actual["trial"], actual["segment_ids"] > 0
    start = int((there[0] & (trial[0] == trial[0, -1])).argmax())  # of the present trial
    shown = {name: value.copy() for name, value in actual.items()}
    if probe == "truncated":
        shown["segment_ids"][:, :start] = 0
    elif probe == "foreign":
        for name, value in actual.items():
            shown[name][:, :start] = np.roll(value[:, :start], -1, axis=0)
    elif probe == "shuffled":
        for env in range(len(trial)):
            slots = np.flatnonzero(there[env, :start])
            order, place = _shuffled(trial[env, slots], keys[env])
            for name in shown:
                if name not in ("trial", "position"):
                    shown[name][env, slots] = actual[name][env, slots[order]]
            shown["trial"][env, slots] = place
    else:
        shown = blinded(shown, target)
    return link_previous(shown)


def blinded(steps: StepFields, target: float) -> dict[str, np.ndarray]:
    """`steps` without what they earned, and always with `target` to go."""
    nothing = ("reward", "completion", "previous_reward", "previous_completion")
    without = {name: np.zeros_like(steps[name]) for name in nothing}
    return dict(steps) | without | {"return_to_go": np.full_like(steps["return_to_go"], target)}


def _shuffled(
    trial: np.ndarray, keys: Float64[np.ndarray, " keys"]
) -> tuple[Int64[np.ndarray, " steps"], Int64[np.ndarray, " steps"]]:
    """Where each step is taken from, and the trial that its place is of."""
    ids = np.unique(trial)
    moved = ids[np.argsort(keys[: len(ids)])]
    pieces = [np.flatnonzero(trial == each) for each in moved]
    place = np.repeat(ids, np.array([len(piece) for piece in pieces], np.int64))
    return np.concatenate([*pieces, np.zeros(0, np.int64)]).astype(np.int64), place.astype(np.int64)
