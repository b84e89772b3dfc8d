"""A rollout shows the agent what training showed it: recorded and read as training reads, it predicts what was done."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

from ringrl.batch import Batch, Chain, ContextPlan
from ringrl.config import ModelConfig
from ringrl.envs import make_env
from ringrl.episode import Episode
from ringrl.model.output_heads import Gaussian, TanhMSE
from ringrl.model.tokens import ORDER, TokenLayout
from ringrl.model.transformer import Transformer, make_attend
from ringrl.policy import RolloutSetting, RolloutSpec
from ringrl.rollout.model_calls import ModelCalls
from ringrl.rollout.sequence_policy import SequencePolicy
from ringrl.rollout.session import Session
from ringrl.rollout.trials import Group, TrialRows, run_trials
from ringrl.sampling.batches import LocalPositions, StepPlacement, assemble
from ringrl.sampling.chains import build_chain
from ringrl.sampling.normalizer import Normalizer
from ringrl.store.episode_store import DataSource, build, open_store

TASK, REPEAT, TRIALS = "cartpole_balance", 4, 2
LIMITS = (38, 50, 43)  # environment steps of an episode in each environment: 10, 13 and 11 agent steps
AGENT_STEPS = 13
ROWS, AT_ONCE = 4 * AGENT_STEPS, 16  # steps of the longest chain here; chains in a batch
TARGET = 36.0  # of at most one an environment step: some trials reach it, and those are completed
SIZES = {"observation": 5, "action": 1}
NORMALIZER = Normalizer(np.linspace(-1, 1, 5, dtype=np.float32), np.linspace(0.5, 2, 5, dtype=np.float32), 40.0, 3.0)
INTERLEAVED, FUSED = TokenLayout(ORDER), TokenLayout(ORDER, fused=True)
layouts = pytest.mark.parametrize("layout", [INTERLEAVED, FUSED], ids=["interleaved", "fused"])


@cache
def make_model(layout: TokenLayout) -> Transformer:
    config = ModelConfig(layers=2, width=32, heads=2, kv_heads=1, max_steps=16, max_trials=4, trial_encoding="table")
    model = Transformer(config, layout, TanhMSE(), SIZES, rngs=nnx.Rngs(0))
    for embedding in (model.embed.step, model.embed.trial):  # they start small; here they shall matter
        embedding.embedding[...] = 30.0 * embedding.embedding[...]
    return model


calls = cache(ModelCalls)


class Recorder:
    """Environments that keep every episode, with the actions that led through it; stepped one after the other."""

    def __init__(self, envs):
        self.envs, self.num_envs = envs, len(envs)
        self.rows = [[] for _ in envs]  # of every environment, its episodes; of an episode, its rows

    def reset(self):
        return np.stack([self.begin(env) for env in range(self.num_envs)]), {}

    def begin(self, env):
        observation, info = self.envs[env].reset()
        self.rows[env].append([{"observation": observation[None], "physics": info["physics"][None]}])
        return observation

    def step_async(self, actions, which, *, restart):
        assert restart
        self.stepped = [self.step(env, actions[env], which[env]) for env in range(self.num_envs)]

    def step(self, env, action, asked):
        if not asked:
            return np.zeros(SIZES["observation"], np.float32), 0.0, False, False, 0
        observation, reward, terminated, truncated, info = self.envs[env].step(action)
        rows = info["rows"]
        self.rows[env][-1].append({**rows, "action": np.repeat(action[None], len(rows["reward"]), axis=0)})
        if terminated or truncated:
            observation = self.begin(env)
        return observation, reward, terminated, truncated, len(rows["reward"])

    def step_wait(self):
        *results, length = (np.array(values) for values in zip(*self.stepped, strict=True))
        return *results, {"length": length}

    def episode(self, env: int, trial: int) -> Episode:
        rows = self.rows[env][trial]
        joined = {name: np.concatenate([each[name] for each in rows if name in each]) for name in rows[-1]}
        return Episode(**{**joined, "reward": joined["reward"][:, None]})


def roll_out(
    tmp_path,
    model: Transformer,
    spec: RolloutSpec,
    trials: int = TRIALS,
    limits: tuple[int, ...] = LIMITS,
    across_trials: bool = True,
):
    """(store of all trials, environment by environment; results)."""
    made = [make_env(TASK, seed=seed, action_repeat=REPEAT, time_limit=limit) for seed, limit in enumerate(limits, 5)]
    recorder = Recorder(made)
    setting = RolloutSetting(len(limits), AGENT_STEPS, trials)
    policy = SequencePolicy(calls(model), NORMALIZER, spec, setting, SIZES, across_trials=across_trials)
    group = Group(Session(policy, len(limits), SIZES["observation"], batched=True), recorder, TrialRows("a", TASK, 0))
    results = run_trials([group], trials)
    episodes = [(recorder.episode(env, trial), 0) for env in range(len(limits)) for trial in range(trials)]
    path = build(
        tmp_path / "s", episodes, domain="cartpole", tasks=(TASK,), sources=[DataSource("a", "a")], provenance={}
    )
    return open_store(path), results


def read(store, episodes: list[int], target: float) -> Chain:
    episode = np.asarray(episodes, np.int64)
    lengths = store.lengths[episode]
    reached = store.returns(TASK)[episode] >= target
    plan = ContextPlan(episode, np.zeros_like(episode), lengths, np.full(len(episode), target), reached)
    return build_chain(store, plan, TASK, action_repeat=REPEAT)


def window(chain: Chain, start: int, stop: int) -> Chain:
    return Chain(**{name: value[start:stop] for name, value in vars(chain).items() if value is not None})


def one_chain_a_row(chains: list[Chain]) -> Batch:
    """A batch as training reads it, padded to ROWS steps."""
    there = [name for name, values in vars(chains[0]).items() if values is not None]
    joined = Chain(**{name: np.concatenate([getattr(each, name) for each in chains]) for name in there})
    lengths = [each.length for each in chains]
    row = np.repeat(np.arange(len(chains)), lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    to = StepPlacement(row, position, np.ones_like(row), np.zeros_like(row), joined.trial.astype(np.int64))
    return assemble(joined, to, len(chains), LocalPositions(np.arange(ROWS)), NORMALIZER)


def predict(model: Transformer, chains: list[Chain]) -> list[np.ndarray]:
    """The actions that the trained agent's forward pass gives for chains, as training batches them."""
    actions = []
    for begin in range(0, len(chains), AT_ONCE):
        rows = chains[begin : begin + AT_ONCE]
        rows = [*rows, *rows[:1] * (AT_ONCE - len(rows))]  # one shape, compiled once
        actions += list(np.asarray(forward(model)(one_chain_a_row(rows).asdict())))
    return [row[: chain.length] for row, chain in zip(actions, chains, strict=False)]


@cache
def forward(model: Transformer):
    attend = make_attend(None, "contiguous", None)
    return jax.jit(lambda steps: model.head.act(model(steps, attend), None))


def assert_taken(predicted: np.ndarray, taken: np.ndarray):
    assert np.std(taken) > 1e-3  # the agent reacts to something
    np.testing.assert_allclose(predicted, taken, rtol=0, atol=3e-5)


@layouts
def test_across_trials_the_whole_chain_is_in_context(tmp_path, layout):
    model = make_model(layout)
    store, results = roll_out(tmp_path, model, RolloutSpec(100, target=TARGET))
    chains = [read(store, [TRIALS * env + trial for trial in range(TRIALS)], TARGET) for env in range(len(LIMITS))]
    assert max(float(chain.completion.sum()) for chain in chains) > 0
    for chain, predicted in zip(chains, predict(model, chains), strict=True):
        assert_taken(predicted, chain.action)
    # What is reported is what was earned, in the order of ending.
    assert [(r.env, r.trial) for r in results] == [(0, 0), (2, 0), (1, 0), (0, 1), (2, 1), (1, 1)]
    for r in results:
        np.testing.assert_allclose(r.return_, store.returns(TASK)[TRIALS * r.env + r.trial], rtol=1e-6)
        assert (r.length, r.target_return) == (LIMITS[r.env], TARGET)


@pytest.mark.parametrize(
    "layout, context",
    [(INTERLEAVED, 100), (INTERLEAVED, 4), (FUSED, 4), (FUSED, 1)],
    ids=lambda x: getattr(x, "fused", x),
)
def test_within_a_trial_the_last_steps_are_in_context(tmp_path, layout, context):
    model = make_model(layout)
    store, _ = roll_out(tmp_path, model, RolloutSpec(context, target=TARGET), across_trials=False)
    for episode in range(store.episodes):
        chain = read(store, [episode], TARGET)
        # A window that begins inside an episode, as `Windows` plans it.
        windows = [window(chain, max(0, t + 1 - context), t + 1) for t in range(chain.length)]
        assert_taken(np.stack([each[-1] for each in predict(model, windows)]), chain.action)


def test_rewards_are_subtracted_from_the_target_only_where_the_spec_says_so(tmp_path):
    model = make_model(FUSED)
    store, _ = roll_out(tmp_path, model, RolloutSpec(100, target=TARGET, subtract_rewards=False))
    for env in range(len(LIMITS)):
        chain = read(store, [TRIALS * env + trial for trial in range(TRIALS)], TARGET)
        asked = replace(chain, return_to_go=np.full_like(chain.return_to_go, TARGET))
        assert_taken(predict(model, [asked])[0], chain.action)
        assert np.abs(predict(model, [chain])[0] - chain.action).max() > 1e-3  # the rewards are subtracted here


def test_an_agent_without_return_conditioning_needs_no_target(tmp_path):
    model = make_model(TokenLayout(("observation", "action")))
    store, results = roll_out(tmp_path, model, RolloutSpec(4), across_trials=False)
    assert np.isnan([r.target_return for r in results]).all()
    chain = read(store, [0], 0.0)
    windows = [window(chain, max(0, t - 3), t + 1) for t in range(chain.length)]
    assert_taken(np.stack([each[-1] for each in predict(model, windows)]), chain.action)


@pytest.mark.parametrize(
    "layout, context", [(INTERLEAVED, 7), (FUSED, 8), (FUSED, 2)], ids=lambda x: getattr(x, "fused", x)
)
def test_a_full_context_goes_on_from_its_newest_half(tmp_path, layout, context):
    model = make_model(layout)
    store, _ = roll_out(tmp_path, model, RolloutSpec(context, target=TARGET))
    for env in range(len(LIMITS)):
        chain = read(store, [TRIALS * env, TRIALS * env + 1], TARGET)
        windows, first = [], 0
        for t in range(chain.length):
            if t - first == context:
                first = t - context // 2
            windows.append(window(chain, first, t + 1))
        assert_taken(np.stack([each[-1] for each in predict(model, windows)]), chain.action)


@pytest.mark.parametrize("layout, fit, spare", [(INTERLEAVED, 2, 0), (FUSED, 3, 5), (FUSED, 1, 0), (INTERLEAVED, 1, 5)])
def test_a_full_context_goes_on_from_whole_trials_counted_anew(tmp_path, layout, fit, spare):
    """Where `fit` trials fit, each is seen with the `fit` - 1 before it, as a chain that begins with the first of them.

    With some steps to `spare` the oldest trial is seen a little longer.
    """
    model, trials, steps = make_model(layout), 5, AGENT_STEPS
    context = fit * steps + spare
    limits = (REPEAT * steps,) * 2
    store, _ = roll_out(tmp_path, model, RolloutSpec(context, target=TARGET), trials, limits)
    for env in range(len(limits)):
        for trial in range(trials):
            last, among = trials * env + trial, min(fit, trial + 1)
            chain = read(store, list(range(last - among + 1, last + 1)), TARGET)
            expected = predict(model, [chain])[0][-steps:]
            if spare and 1 < fit <= trial:
                longer = read(store, list(range(last - fit, last + 1)), TARGET)
                expected = np.concatenate([predict(model, [longer])[0][-steps:][:spare], expected[spare:]])
            assert_taken(expected, chain.action[-steps:])


@pytest.mark.parametrize("layout, context", [(INTERLEAVED, 26), (FUSED, 32), (FUSED, 20)])
def test_trials_of_unequal_lengths_make_room_one_by_one(tmp_path, layout, context):
    """Every environment keeps whole trials of its own, of those in the newest slots that leave room for the longest."""
    model, trials = make_model(layout), 4
    store, _ = roll_out(tmp_path, model, RolloutSpec(context, target=TARGET), trials)
    context = context if context >= 2 * AGENT_STEPS else AGENT_STEPS
    kept = max(context - AGENT_STEPS, context // 2)
    cuts = 0
    for env in range(len(LIMITS)):
        chain = read(store, list(range(trials * env, trials * (env + 1))), TARGET)
        first, windows = 0, []  # the first step seen
        for t in range(chain.length):
            if t - first == context:
                starts = [s for s in range(t - kept, t + 1) if chain.step[s] == 0]
                first, cuts = starts[0] if starts else t - kept, cuts + 1
            seen = window(chain, first, t + 1)
            windows.append(replace(seen, trial=seen.trial - seen.trial[0]))
        assert_taken(np.stack([each[-1] for each in predict(model, windows)]), chain.action)
    assert cuts >= len(LIMITS)


def test_drawn_actions_follow_the_seed(tmp_path):
    config = ModelConfig(layers=1, width=16, heads=2, kv_heads=2, max_steps=16, max_trials=4)
    model = Transformer(config, TokenLayout(("observation", "action")), Gaussian(), SIZES, rngs=nnx.Rngs(0))

    def actions(seed: int) -> np.ndarray:
        spec = RolloutSpec(8, sample=True)
        setting = RolloutSetting(2, trial_steps=4, trials=1, seed=seed)
        policy = SequencePolicy(calls(model), NORMALIZER, spec, setting, SIZES, across_trials=True)
        policy.begin_trial(np.ones(2, bool))
        taken = []
        for _ in range(3):
            taken.append(policy.act(np.zeros((2, 5), np.float32)))
            policy.observe(np.zeros(2, np.float32), np.zeros(2, bool))
        return np.stack(taken)

    first = actions(1)
    np.testing.assert_array_equal(first, actions(1))
    assert len(np.unique(first)) == 6  # every environment and every step draws anew
