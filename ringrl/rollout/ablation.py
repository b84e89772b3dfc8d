"""Context ablations: does an agent use its context? It is rolled out with earlier trials changed, and returns compared.

| ablation | the trials before the present one, in the context, demonstrations among them |
|---|---|
| truncated | none; the counts of trials and positions continue |
| shuffled | the same trials in a random order, drawn for each environment; drawn again once old trials are dropped |
| foreign | those of the next environment of the batch; of the last environment, those of the first |
| blind | all, but every reward is 0, also in the present trial, and the return-to-go is always the target return |
| unpaid | those alone without any reward of `ringrl.sampling.relabelled.PAID` or more; counts continue |
| paid | the others alone; counts continue |

Where environments are shown trajectories of one reward-free data set, each paid by a member of its own, `foreign` shows
trajectories of those data that another member pays. What was done in them is alike; only the rewards mislead.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float64, Int64

from ringrl.batch import PREVIOUS, link_previous
from ringrl.choices import Ablation
from ringrl.config import EvaluationConfig
from ringrl.errors import UserError
from ringrl.model.cached_decoder import CachedDecoder
from ringrl.policy import UNBOUNDED, RolloutSetting, RolloutSpec, StepFields
from ringrl.rollout.context import CachedContext

# The fewest trials, demonstrations counted, in which an ablation changes something: to shuffle takes two earlier.
_LEAST_TRIALS: dict[Ablation, int] = {
    "truncated": 2,
    "shuffled": 3,
    "foreign": 2,
    "blind": 0,
    "unpaid": 2,
    "paid": 2,
}


def numbers_to_ablate(ablation: Ablation, trials: int, numbers: Sequence[int]) -> list[int]:
    """The numbers of demonstrations after which the ablation changes one of so many trials. Raises UserError: none."""
    least = _LEAST_TRIALS[ablation]
    found = [number for number in numbers if number + trials >= least]
    if not found:
        more = f"{least - trials} or more trajectories"
        advice = f"give {more}" if max(numbers) else f"give --trials {least} or more"
        raise UserError(f"--ablation {ablation}: changes nothing in fewer than {least} trials; {advice}")
    return found


def check_ablation(
    ablation: Ablation,
    agent: str,
    spec: RolloutSpec,
    setting: EvaluationConfig,
    trial_steps: int,
    *,
    across_trials: bool,
) -> None:
    """Check that the ablation changes something.

    Args:
        ablation: which one.
        agent: the agent's name, for messages.
        spec: how it is rolled out.
        setting: of the evaluation.
        trial_steps: agent steps in the longest possible trial.
        across_trials: as in `ringrl.agent.AgentDescription`.

    Raises:
        UserError: the context never contains earlier trials, or too few of them; it is a sum, which has no order; or
            there is one environment only.

    Whether there are enough trials is `numbers_to_ablate`'s to say.
    """
    if not across_trials:
        raise UserError(
            f"--ablation: {agent}'s context is the present trial alone; there are no earlier ones to ablate"
        )
    if ablation in ("shuffled", "unpaid", "paid") and spec.context_steps == UNBOUNDED:
        raise UserError(
            f"--ablation {ablation}: {agent}'s context is a sum over its steps, in no order, to which steps without a "
            "reward add nothing; leave it out"
        )
    if ablation == "foreign" and setting.envs < 2:
        raise UserError("--ablation foreign: takes the trials of another environment; give --envs 2 or more")
    least = _LEAST_TRIALS[ablation]
    if spec.context_steps < least * trial_steps:
        raise UserError(
            f"--ablation {ablation}: takes a context of {least} trials, which is {least * trial_steps} steps, and "
            f"this one is of {spec.context_steps}; give a longer --context, or an agent trained on more trials"
        )


class AblatedContext(CachedContext):
    """A cached context with ablated earlier trials: rebuilt at each trial's start from the steps as they happened.

    Args:
        decoder, steps, setting, sizes: as of `CachedContext`; the setting names the ablation.
        target: the return-to-go of `blind`, in units of the normalizer's return scale.
        paid: the least reward that counts as paid, in units of its reward scale.
        demonstrations: as of `CachedContext`; they are earlier trials too.

    Raises:
        UserError: `foreign` in the only trial, where all environments are shown the same demonstrations.
    """

    def __init__(
        self,
        decoder: CachedDecoder,
        steps: int,
        setting: RolloutSetting,
        sizes: Mapping[str, int],
        *,
        target: float,
        paid: float,
        demonstrations: StepFields | Sequence[StepFields] = (),
    ):
        envs = setting.environments
        assert setting.ablation is not None
        self._ablation: Ablation = setting.ablation
        if isinstance(demonstrations, Mapping):  # each environment's are ablated, so none are shared
            if self._ablation == "foreign" and setting.trials == 1:
                raise UserError("--ablation foreign: all environments are shown the same trajectories; give --apart")
            demonstrations = [demonstrations] * envs
        super().__init__(decoder, steps, setting, sizes, demonstrations)
        # An environment's keys are its own, regardless of how many others there are.
        draws = [np.random.default_rng((setting.seed, setting.first + env)).random(steps + 1) for env in range(envs)]
        self._target, self._paid, self._keys = target, paid, np.stack(draws)

    def _begin(self, demonstrations: StepFields | Sequence[StepFields]) -> None:
        """Kept and not computed, for the first trial's start makes all caches anew."""
        for env, steps in enumerate([demonstrations] if isinstance(demonstrations, Mapping) else demonstrations):
            self._recent.put(env, steps)
        self._previous = self._recent.last()

    def predict(self, step: StepFields) -> jax.Array:
        """As `CachedContext`. Raises UserError where environments begin their trials at different times."""
        begins = step["step"] == 0
        if begins.any() and not begins.all():
            raise UserError(
                f"--ablation {self._ablation}: the environments begin their trials at different times, so their "
                "contexts cannot be rebuilt together; choose a task whose episodes are all of one length"
            )
        moved = self._record(step)
        if moved.any() or begins.all():
            longest = int(self._recent.count.max())
            actual = {name: value[:, :longest] for name, value in self._recent.fields.items()}
            shown = ablate(self._ablation, actual, self._keys, self._target, self._paid)
            last = (shown["segment_ids"] > 0).sum(axis=1) - 1
            self._rebuild(np.ones_like(begins), shown, last)
            return self._add({name: value[np.arange(len(last)), last][:, None] for name, value in shown.items()})
        return self._add(self._seen(self._recent.last()))

    def amend(self, outcome: StepFields) -> None:
        """As `CachedContext`."""
        super().amend(outcome)
        self._previous = self._seen(self._previous)

    def _seen(self, steps: StepFields) -> StepFields:
        """Steps of the present trial, ablated."""
        return blinded(steps, self._target) if self._ablation == "blind" else steps


def ablate(
    ablation: Ablation,
    actual: Mapping[str, np.ndarray],
    keys: Float64[np.ndarray, "envs keys"],
    target: float,
    paid: float,
) -> dict[str, np.ndarray]:
    """A context with its earlier trials ablated.

    Args:
        ablation: which one.
        actual: the context as it happened, arrays of `ringrl.batch.Batch` by name, [envs, steps, ...]. Each row's steps
            are its first ones, of segment 1; its last trial is the present one.
        keys: the trials of `shuffled` are sorted by them: trial i of an environment's context by its key i.
        target: the return-to-go of `blind`.
        paid: the least reward that counts as paid.

    Returns:
        New arrays of the same shapes, of the steps that are shown, each row's first; `previous_*` are those of the
        ablated context. `trial` and `position` are as they were, but `shuffled` numbers and counts its steps anew.
    """
    trial, count = actual["trial"], (actual["segment_ids"] > 0).sum(axis=1)
    starts = [int((row[:steps] == row[steps - 1]).argmax()) for row, steps in zip(trial, count, strict=True)]
    shown = {name: np.zeros_like(value) for name, value in actual.items()}
    for env, start in enumerate(starts):
        of, slots, numbers = env, np.arange(start), trial[env, :start]
        if ablation == "truncated":
            slots = slots[:0]
        elif ablation == "foreign":
            of = (env + 1) % len(trial)
            slots = np.arange(starts[of])
        elif ablation == "shuffled":
            slots, numbers = _shuffled(numbers, keys[env])
        elif ablation in ("unpaid", "paid"):
            earned = np.maximum.reduceat(actual["reward"][env, :start], _begins(numbers)) if start else np.zeros(0)
            wanted = (earned >= paid) == (ablation == "paid")
            slots = slots[np.repeat(wanted, np.diff(_begins(numbers), append=start))]
        present = np.arange(start, count[env])
        for name, value in actual.items():
            row = np.concatenate([value[of, slots], value[env, present]])
            shown[name][env, : len(row)] = row
        if ablation == "shuffled":
            shown["trial"][env, :start], shown["position"][env, :start] = numbers, actual["position"][env, :start]
    return link_previous(blinded(shown, target) if ablation == "blind" else shown)


def blinded(steps: StepFields, target: float) -> dict[str, np.ndarray]:
    """`steps` with rewards and completions of 0, and a return-to-go of `target`."""
    names = [each for name in ("reward", "completion") for each in (name, PREVIOUS[name])]
    without = {name: np.zeros_like(steps[name]) for name in names}
    return dict(steps) | without | {"return_to_go": np.full_like(steps["return_to_go"], target)}


def _begins(trial: np.ndarray) -> Int64[np.ndarray, " trials"]:
    """The index of each trial's first step."""
    return np.flatnonzero(np.diff(trial, prepend=trial[:1] - 1)).astype(np.int64)


def _shuffled(
    trial: np.ndarray, keys: Float64[np.ndarray, " keys"]
) -> tuple[Int64[np.ndarray, " steps"], Int64[np.ndarray, " steps"]]:
    """For each position, the index of the step that moves there, and the trial of the position."""
    ids = np.unique(trial)
    pieces = [np.flatnonzero(trial == each) for each in ids[np.argsort(keys[: len(ids)])]]
    there = np.repeat(ids, np.array([len(piece) for piece in pieces], np.int64))
    return np.concatenate([*pieces, np.zeros(0, np.int64)]).astype(np.int64), there.astype(np.int64)
