"""Real environments whose episodes end early: trials of unequal lengths in one context, each environment by itself."""

from functools import cache

import numpy as np
import pytest
from flax import nnx

from ringrl.config import ModelConfig
from ringrl.envs import VectorEnv
from ringrl.envs.env_batch import EnvSettings
from ringrl.envs.vector import LocalBatch
from ringrl.model.output_heads import Gaussian
from ringrl.model.tokens import ORDER, TokenLayout
from ringrl.model.transformer import Transformer
from ringrl.policy import RolloutSetting, RolloutSpec
from ringrl.rollout.model_calls import ModelCalls
from ringrl.rollout.sequence_policy import SequencePolicy
from ringrl.rollout.session import Session
from ringrl.rollout.trials import Group, TrialRows, run_trials
from ringrl.sampling.normalizer import Normalizer

TASK, TRIALS = "Hopper-v5", 3
SIZES = {"observation": 11, "action": 3}
NORMALIZER = Normalizer(np.zeros(11, np.float32), np.ones(11, np.float32), 50.0, 2.0)
TARGET = 30.0
ACROSS = RolloutSpec(context_steps=2000, target=TARGET, sample=True)
SHORT = RolloutSpec(context_steps=24, target=TARGET, sample=True)  # the cache fills up
WINDOW = RolloutSpec(context_steps=8, target=TARGET, sample=True)
specs = pytest.mark.parametrize("spec", [ACROSS, SHORT, WINDOW], ids=["across", "short", "window"])


@cache
def make_calls(max_steps: int = 1000) -> ModelCalls:
    config = ModelConfig(layers=1, width=32, heads=2, kv_heads=2, max_steps=max_steps, max_trials=8)
    return ModelCalls(Transformer(config, TokenLayout(ORDER), Gaussian(), SIZES, rngs=nnx.Rngs(0)))


def make_policy(spec: RolloutSpec, envs: int, calls: ModelCalls | None = None) -> SequencePolicy:
    setting = RolloutSetting(envs, trial_steps=100, trials=TRIALS)
    return SequencePolicy(calls or make_calls(), NORMALIZER, spec, setting, SIZES, across_trials=spec is not WINDOW)


def make_envs(seeds: list[int], action_repeat: int = 2) -> VectorEnv:
    settings = EnvSettings(TASK, action_repeat)
    example = settings.make(seeds[0])
    return VectorEnv(LocalBatch(settings, seeds, example.widths), example, 0, None)


def roll_out(policy: SequencePolicy, seeds: list[int]) -> list[dict[int, tuple[float, int]]]:
    """Of every environment, trial -> (return, length)."""
    group = Group(
        Session(policy, len(seeds), SIZES["observation"], batched=True), make_envs(seeds), TrialRows("a", TASK, 0)
    )
    found = run_trials([group], TRIALS)
    assert len(found) == len(seeds) * TRIALS
    return [{one.trial: (one.return_, one.length) for one in found if one.env == env} for env in range(len(seeds))]


@specs
def test_an_environment_does_not_depend_on_the_others(spec):
    mixed, alike = (roll_out(make_policy(spec, 2), seeds) for seeds in ([5, 6], [5, 5]))
    assert mixed[0] == alike[0] and mixed[1] != alike[1]
    lengths = [length for trials in mixed for _, length in trials.values()]
    assert len(set(lengths)) > 3 and max(lengths) < 1000


@specs
def test_the_context_has_every_trials_rewards_and_its_beginning(spec):
    policy = make_policy(spec, 2)
    seen: list[dict[str, np.ndarray]] = []
    predict = policy._context.predict

    def spy(step):
        raw = predict(step)
        recent = policy._context._recent
        before = recent.fields["completion"][np.arange(2), np.maximum(recent.count - 2, 0)]
        seen.append({name: value[:, 0] for name, value in recent.last().items()} | {"completed_before": before})
        return raw

    policy._context.predict = spy
    results = roll_out(policy, [5, 6])
    for env, trials in enumerate(results):
        steps = [{name: value[env] for name, value in step.items()} for step in seen]
        starts = [index for index, one in enumerate(steps) if one["step"] == 0][:TRIALS]
        assert [-(-length // 2) for _, length in trials.values()][:-1] == np.diff(starts).tolist()
        for trial, start in enumerate(starts):
            first = steps[start]
            assert first["return_to_go"] == pytest.approx(TARGET / 50.0)
            across = spec is not WINDOW
            if spec is not SHORT:  # where a full context is counted anew
                assert (first["trial"], first["position"]) == ((trial, start) if across else (0, 0))
            assert not any(first[f"previous_{name}"].any() for name in ("action", "reward", "completion"))
            if across and trial:
                assert first["completed_before"] == (trials[trial - 1][0] >= TARGET)
            if trial + 1 < TRIALS:
                last = steps[starts[trial + 1] - 1]
                assert last["step"] == starts[trial + 1] - 1 - start


def test_steps_and_trials_beyond_the_embeddings_share_the_last_one():
    results = roll_out(make_policy(ACROSS, 2, make_calls(max_steps=3)), [5, 6])
    assert all(np.isfinite(earned) and length > 6 for trials in results for earned, length in trials.values())
