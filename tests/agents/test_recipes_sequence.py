"""The sequence agents on a tiny store: what they see, that they learn, and how they say to be rolled out."""

import jax
import numpy as np
import pytest

from ringrl.agent import make_agent
from ringrl.sampling.loader import make_loader
from ringrl.sampling.normalizer import Normalizer
from ringrl.store.episode_store import open_store
from ringrl.training.mesh import make_mesh, place_batch
from ringrl.training.state import init_state, make_train_step

TASK = "cartpole_balance"
AGENTS = {
    "behavior_cloning": {"window": 4, "fraction": 0.5},
    "decision_transformer": {"window": 4},
    "agentic_transformer": {"trajectories": 2},
    "algorithm_distillation": {"trajectories": 2},
}
SEEN = {
    "behavior_cloning": ("observation", "action"),
    "decision_transformer": ("return_to_go", "observation", "action"),
    "agentic_transformer": ("return_to_go", "observation", "action", "reward", "completion"),
    "algorithm_distillation": ("observation", "action", "reward"),
}
each_agent = pytest.mark.parametrize("name", AGENTS)


@pytest.fixture
def batches(tiny_store):
    """A function RunConfig -> (store, its batches)."""

    def make(config):
        store = open_store(tiny_store)
        sampler = make_agent(config.agent).context_sampler(store, TASK, 4)
        loader = make_loader(
            store,
            sampler,
            TASK,
            Normalizer.fit(store, TASK, action_repeat=4),
            batch=4,
            steps=24,
            seed=0,
            action_repeat=4,
        )
        return store, loader

    return make


@pytest.mark.parametrize("name, fused", list(zip(AGENTS, (False, True, False, True), strict=True)))
def test_it_learns_from_its_chains(name, fused, tiny_config, batches):
    settings = {"name": name, "fused": fused, **AGENTS[name]}
    config = tiny_config(settings, optimizer={"learning_rate": 3e-3, "warmup_steps": 0}, model={"remat": "none"})
    decoder, mesh = make_agent(config.agent).decoder, make_mesh(config.mesh)
    layout = decoder.tokens
    assert layout.modalities == SEEN[name] and layout.fused is fused
    store, loader = batches(config)
    graph, state = init_state(config, decoder, {"observation": 5, "action": 1}, mesh)
    before = jax.tree.map(np.asarray, state.params)
    step = make_train_step(config, decoder, graph, mesh, jax.tree.map(lambda x: x.sharding, state))
    batch = place_batch(next(loader).asdict(), mesh)
    losses = []
    for _ in range(12):  # the same rows again: what is learned must be seen
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 0.01
    moved = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), before, state.params)
    linear = {name: max(jax.tree.leaves(part)) for name, part in moved["embed"]["linear"].items()}
    # Within a window no completion comes before its end, so its embedding's kernel meets only zeros.
    assert all(change > 0 for change in linear.values()), linear
    assert all(x > 0 for x in jax.tree.leaves(moved["layers"]))


@each_agent
def test_its_chains_are_those_of_its_paper(name, tiny_config, batches):
    config = tiny_config({"name": name, **AGENTS[name]})
    store, loader = batches(config)
    for _ in range(5):
        batch = next(loader)
        for row in range(4):
            real = batch.segment_ids[row] > 0
            step, trial = batch.step[row][real], batch.trial[row][real]
            starts = np.flatnonzero(np.diff(step, prepend=-2) != 1)
            if name in ("behavior_cloning", "decision_transformer"):
                assert real.sum() <= 4 and len(starts) == 1 and (trial == 0).all()
            else:
                assert len(starts) == 2 and (step[starts] == 0).all() and set(trial) == {0, 1}
            if name == "agentic_transformer":
                targets = batch.return_to_go[row][real][starts]
                np.testing.assert_allclose(targets, targets[0], rtol=1e-6)
                assert batch.completion[row][real][-1] == 1


@pytest.mark.parametrize("name", ["behavior_cloning", "decision_transformer", "agentic_transformer"])
def test_a_fraction_reads_the_best_episodes_alone(name, tiny_config, tiny_store):
    settings = {"trajectories": 1} if name == "agentic_transformer" else {"window": 4}
    config = tiny_config({"name": name, "fraction": 0.3} | settings)
    store = open_store(tiny_store)
    sampler = make_agent(config.agent).context_sampler(store, TASK, 4)
    rng = np.random.default_rng(0)
    drawn = {int(sampler.sample(rng).episode[0]) for _ in range(200)}
    best = np.argsort(-store.returns(TASK))
    assert drawn == set(best[: len(drawn)].tolist()) and 1 <= len(drawn) <= 2


def test_a_horizon_reaches_the_batches_and_the_rollout(tiny_config, batches):
    """One agent step ahead, a return-to-go is the step's own reward, times the agent steps of an episode."""
    config = tiny_config({"name": "decision_transformer", "window": 4, "horizon": 1})
    store, loader = batches(config)
    scales, batch = Normalizer.fit(store, TASK, action_repeat=4), next(loader)
    real = batch.segment_ids > 0
    to_go, reward = batch.return_to_go[real] * scales.return_scale, batch.reward[real] * scales.reward_scale
    np.testing.assert_allclose(to_go, reward * -(-store.lengths.max() // 4), rtol=1e-4)
    assert not make_agent(config.agent).policy.rollout_spec(24, np.ones(3)).subtract_rewards


def test_histories_are_never_mixed(tiny_config, tiny_store):
    store = open_store(tiny_store)
    config = tiny_config({"name": "algorithm_distillation", "trajectories": 3})
    sampler = make_agent(config.agent).context_sampler(store, TASK, 4)
    rng = np.random.default_rng(0)
    for _ in range(50):
        episode = sampler.sample(rng).episode
        assert len(set(store.source[episode])) == 1 and (np.diff(episode) == 1).all()


def test_how_each_is_rolled_out(tiny_config):
    returns = np.array([1.0, 7.0, 3.0])

    def spec(name, **settings):
        config = tiny_config({"name": name, **AGENTS[name], **settings}).agent
        return make_agent(config).policy.rollout_spec(24, returns)

    bc, dt = spec("behavior_cloning"), spec("decision_transformer")
    assert (bc.context_steps, bc.target, bc.sample) == (4, None, False)
    assert (dt.context_steps, dt.target, dt.sample) == (4, 7.0, False)
    assert dt.subtract_rewards
    at, ad = spec("agentic_transformer"), spec("algorithm_distillation")
    assert (at.context_steps, at.target, at.sample) == (24, 7.0, False)
    assert (ad.context_steps, ad.target, ad.sample) == (24, None, True)
    across = [name for name in AGENTS if make_agent(tiny_config({"name": name}).agent).description.across_trials]
    assert sorted(across) == ["agentic_transformer", "algorithm_distillation"]
    assert spec("decision_transformer", window=99).context_steps == 24
    assert spec("algorithm_distillation", sample=False).sample is False


def test_the_completion_token_can_be_left_out(tiny_config):
    config = tiny_config({"name": "agentic_transformer", "completion": False})
    assert make_agent(config.agent).decoder.tokens.tokens_per_step == 4


def test_fused_tokens_have_no_completion_for_it_would_always_be_0(tiny_config):
    config = tiny_config({"name": "agentic_transformer", "fused": True})
    seen = make_agent(config.agent).decoder.tokens.modalities
    assert seen == ("return_to_go", "observation", "action", "reward")
