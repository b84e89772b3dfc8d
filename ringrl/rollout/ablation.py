"""Context ablations: does an agent use its context? It is rolled out with earlier trials changed, and returns compared.

| ablation | the trials before the present one, in the context |
|---|---|
| truncated | none; the counts of trials and positions continue |
| shuffled | the same trials in a random order, drawn for each environment; drawn again once old trials are dropped |
| foreign | those of the next environment of the batch; of the last environment, those of the first |
| blind | all, but every reward is 0, also in the present trial, and the return-to-go is always the target return |
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float64, Int64

from ringrl.batch import PREVIOUS, link_previous
from ringrl.config import Ablation, EvaluationConfig
from ringrl.errors import UserError
from ringrl.model.cached_decoder import CachedDecoder
from ringrl.policy import UNBOUNDED, RolloutSetting, RolloutSpec, StepFields
from ringrl.rollout.context import CachedContext

# The fewest trials in a context with which an ablation changes something: to shuffle takes two earlier ones.
_LEAST_TRIALS: dict[Ablation, int] = {"truncated": 2, "shuffled": 3, "foreign": 2, "blind": 0}


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
    """
    if not across_trials:
        raise UserError(
            f"--ablation: {agent}'s context is the present trial alone; there are no earlier ones to ablate"
        )
    if ablation == "shuffled" and spec.context_steps == UNBOUNDED:
        raise UserError(f"--ablation shuffled: {agent}'s context is a sum over its steps, in no order; leave it out")
    if ablation == "foreign" and setting.envs < 2:
        raise UserError("--ablation foreign: takes the trials of another environment; give --envs 2 or more")
    least = _LEAST_TRIALS[ablation]
    if setting.trials < least:
        raise UserError(
            f"--ablation {ablation}: changes nothing in fewer than {least} trials; give --trials {least} or more"
        )
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
        demonstrations: as of `CachedContext`; they are earlier trials too.
    """

    def __init__(
        self,
        decoder: CachedDecoder,
        steps: int,
        setting: RolloutSetting,
        sizes: Mapping[str, int],
        *,
        target: float,
        demonstrations: StepFields | Sequence[StepFields] = (),
    ):
        envs = setting.environments
        if isinstance(demonstrations, Mapping):  # each environment's are ablated, so none are shared
            demonstrations = [demonstrations] * envs
        super().__init__(decoder, steps, setting, sizes, demonstrations)
        assert setting.ablation is not None
        self._ablation: Ablation = setting.ablation
        # An environment's keys are its own, regardless of how many others there are.
        draws = [np.random.default_rng((setting.seed, setting.first + env)).random(steps + 1) for env in range(envs)]
        self._target, self._keys = target, np.stack(draws)

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
            count = int(self._recent.count[0])  # the same in all environments
            actual = {name: value[:, :count] for name, value in self._recent.fields.items()}
            shown = ablate(self._ablation, actual, self._keys, self._target)
            self._rebuild(np.ones_like(begins), shown, self._recent.count - 1)
            return self._add({name: value[:, count - 1 :] for name, value in shown.items()})
        return self._add(self._seen(self._recent.last()))

    def amend(self, outcome: StepFields) -> None:
        """As `CachedContext`."""
        super().amend(outcome)
        self._previous = self._seen(self._previous)

    def _seen(self, steps: StepFields) -> StepFields:
        """Steps of the present trial, ablated."""
        return blinded(steps, self._target) if self._ablation == "blind" else steps


def ablate(
    ablation: Ablation, actual: Mapping[str, np.ndarray], keys: Float64[np.ndarray, "envs keys"], target: float
) -> dict[str, np.ndarray]:
    """A context with its earlier trials ablated.

    Args:
        ablation: which one.
        actual: the context as it happened, arrays of `ringrl.batch.Batch` by name, [envs, steps, ...]. Its last trial
            is the present one, which begins at the same step in all environments.
        keys: the trials of `shuffled` are sorted by them: trial i of an environment's context by its key i.
        target: the return-to-go of `blind`.

    Returns:
        New arrays of the same shapes; `previous_*` are those of the ablated context.
    """
    trial, there = actual["trial"], actual["segment_ids"] > 0
    start = int((there[0] & (trial[0] == trial[0, -1])).argmax())  # of the present trial
    shown = {name: value.copy() for name, value in actual.items()}
    if ablation == "truncated":
        shown["segment_ids"][:, :start] = 0
    elif ablation == "foreign":
        for name, value in actual.items():
            shown[name][:, :start] = np.roll(value[:, :start], -1, axis=0)
    elif ablation == "shuffled":
        for env in range(len(trial)):
            slots = np.flatnonzero(there[env, :start])
            order, moved = _shuffled(trial[env, slots], keys[env])
            for name in shown:
                if name not in ("trial", "position"):
                    shown[name][env, slots] = actual[name][env, slots[order]]
            shown["trial"][env, slots] = moved
    else:
        shown = blinded(shown, target)
    return link_previous(shown)


def blinded(steps: StepFields, target: float) -> dict[str, np.ndarray]:
    """`steps` with rewards and completions of 0, and a return-to-go of `target`."""
    names = [each for name in ("reward", "completion") for each in (name, PREVIOUS[name])]
    without = {name: np.zeros_like(steps[name]) for name in names}
    return dict(steps) | without | {"return_to_go": np.full_like(steps["return_to_go"], target)}


def _shuffled(
    trial: np.ndarray, keys: Float64[np.ndarray, " keys"]
) -> tuple[Int64[np.ndarray, " steps"], Int64[np.ndarray, " steps"]]:
    """For each position, the index of the step that moves there, and the trial of the position."""
    ids = np.unique(trial)
    pieces = [np.flatnonzero(trial == each) for each in ids[np.argsort(keys[: len(ids)])]]
    there = np.repeat(ids, np.array([len(piece) for piece in pieces], np.int64))
    return np.concatenate([*pieces, np.zeros(0, np.int64)]).astype(np.int64), there.astype(np.int64)
