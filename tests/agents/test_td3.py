"""TD3 against its equations written out in NumPy, on shapes that can be checked by eye; and it learns."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ringrl import recipes
from ringrl.collect.rnd import rnd_reward

td3 = recipes.load("agents", "td3")
TINY = td3.CollectorConfig(hidden=(8, 6), batch=4, updates_per_call=2, warmup=2, capacity=100)


def minibatches(updates, config=TINY, observation=3, action=2, seed=0):
    rng = np.random.default_rng(seed)
    shape = (updates, config.batch)
    return td3.Transitions(
        observation=jnp.asarray(rng.normal(size=(*shape, observation)), jnp.float32),
        action=jnp.asarray(rng.uniform(-1, 1, size=(*shape, action)), jnp.float32),
        reward=jnp.asarray(rng.normal(size=shape), jnp.float32),
        discount=jnp.asarray(rng.choice([0.0, 0.99], size=shape), jnp.float32),
        next_observation=jnp.asarray(rng.normal(size=(*shape, observation)), jnp.float32),
    )


def first(batches):
    return jax.tree.map(lambda x: x[0], batches)


def mlp(network, x):
    """The network in NumPy, float64."""
    first, *between, last = [
        lambda x, layer=layer: x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])
        for layer in network.layers
    ]
    x = first(x)
    x = np.tanh((x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6))
    for layer in between:
        x = np.maximum(layer(x), 0.0)
    return last(x)


def leaves(*trees):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trees)]


def differs(a, b):
    return [not np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True)]


def test_act_is_tanh_of_the_network_for_one_observation_and_for_many():
    state = td3.init(TINY, 3, 2, seed=0)
    observation = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected = np.tanh(mlp(state.actor, observation))
    np.testing.assert_allclose(td3.act(state, observation), expected, rtol=1e-5)
    one = td3.act(state, observation[0])
    assert one.shape == (2,) and one.dtype == np.float32
    np.testing.assert_allclose(one, expected[0], rtol=1e-5)


def test_td_target_takes_the_smaller_critic_at_the_smoothed_target_action():
    config = replace(TINY, target_noise=0.7, target_clip=0.3)
    state, key = td3.init(config, 3, 2, seed=1), jax.random.key(7)
    batch = first(minibatches(1))
    noise = np.clip(0.7 * np.asarray(jax.random.normal(key, (4, 2))), -0.3, 0.3)
    assert (np.abs(noise) == np.float32(0.3)).any()  # the clip is at work
    successor = np.asarray(batch.next_observation)
    action = np.clip(np.tanh(mlp(state.target_actor, successor)) + noise, -1.0, 1.0)
    pair = np.concatenate([successor, action], axis=-1)
    q = np.minimum(mlp(state.target_critics.q1, pair), mlp(state.target_critics.q2, pair))[:, 0]
    expected = np.asarray(batch.reward) + np.asarray(batch.discount) * q
    np.testing.assert_allclose(td3.td_target(config, state, batch, key), expected, rtol=1e-5, atol=1e-6)


def test_a_real_end_has_no_future():
    state, batch = td3.init(TINY, 3, 2, seed=1), first(minibatches(1))
    ended = batch._replace(discount=jnp.zeros_like(batch.discount))
    np.testing.assert_array_equal(td3.td_target(TINY, state, ended, jax.random.key(0)), batch.reward)


def test_actor_and_targets_move_only_every_policy_delay_updates():
    config, before = replace(TINY, policy_delay=3), td3.init(TINY, 3, 2, seed=0)
    for moved in (False, False, True, False, False, True):
        after, _ = td3.update(config, before, minibatches(1))
        assert int(after.step) == int(before.step) + 1
        assert any(differs(before.critics, after.critics))
        for name in ("actor", "target_actor", "target_critics"):
            assert any(differs(getattr(before, name), getattr(after, name))) is moved, (after.step, name)
        before = after


def test_targets_are_polyak_averages():
    config, before = replace(TINY, policy_delay=1, tau=0.25), td3.init(TINY, 3, 2, seed=0)
    after, _ = td3.update(config, before, minibatches(1))
    for online, target in (("actor", "target_actor"), ("critics", "target_critics")):
        pairs = zip(leaves(getattr(before, target)), leaves(getattr(after, online)), strict=True)
        expected = [0.75 * old + 0.25 * new for old, new in pairs]
        for got, want in zip(leaves(getattr(after, target)), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_the_actor_climbs_the_first_critic():
    config, state = replace(TINY, policy_delay=1, critic_lr=0.0), td3.init(TINY, 3, 2, seed=0)
    batch = first(minibatches(1))

    def value(actor):
        return float(jnp.mean(state.critics(batch.observation, td3.policy(actor, batch.observation))[0]))

    batches = jax.tree.map(lambda x: jnp.repeat(x[None], 20, axis=0), batch)
    after, _ = td3.update(config, state, batches)
    assert not any(differs(state.critics, after.critics))
    assert value(after.actor) > value(state.actor)


def test_the_cloning_term_draws_the_actor_to_the_datas_actions():
    start = td3.init(TINY, 3, 2, seed=0)
    batches = jax.tree.map(lambda x: jnp.repeat(x[:1], 60, axis=0), minibatches(1))
    batch = first(batches)

    def distance(weight):
        config = replace(TINY, policy_delay=1, bc_weight=weight, actor_lr=1e-2)
        state, _ = td3.update(config, start, batches)
        return float(np.mean(np.square(td3.act(state, batch.observation) - np.asarray(batch.action))))

    assert distance(100.0) < 0.2 * distance(0.0)


def test_the_cloning_term_weighs_against_a_value_of_scale_one():
    """One Adam step per parameter goes by the gradient's sign: with any scale of Q, TD3+BC's actor moves alike."""
    config, batch = replace(TINY, policy_delay=1, critic_lr=0.0, bc_weight=0.4), minibatches(1)
    state = td3.init(config, 3, 2, seed=0)
    last = state.critics.q1.layers[-1]
    larger = nnx.clone(state.critics)
    larger.q1.layers[-1].kernel[...] = 50.0 * last.kernel[...]  # its bias starts as 0
    actors = [
        td3.update(config, state._replace(critics=critics), batch)[0].actor for critics in (state.critics, larger)
    ]
    for one, other in zip(leaves(actors[0]), leaves(actors[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_one_fused_call_equals_single_updates():
    start, batches = td3.init(TINY, 3, 2, seed=0), minibatches(4)
    fused, _ = td3.update(TINY, start, batches)  # the policy is delayed by 2: both kinds of step occur
    single = start
    for k in range(4):
        single, _ = td3.update(TINY, single, jax.tree.map(lambda x, k=k: x[k : k + 1], batches))
    networks = [(state.actor, state.critics, state.target_critics) for state in (fused, single)]
    for a, b in zip(leaves(networks[0]), leaves(networks[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_exploration_is_uniform_then_ever_less_noisy():
    config = replace(TINY, warmup=10, noise_start=0.4, noise_end=0.1, noise_decisions=100)
    state, observation = td3.init(config, 3, 2, seed=0), np.zeros(3, np.float32)
    mean = td3.act(state, observation)  # 0 for an observation of 0

    def deviation(agent_step):
        rng = np.random.default_rng(0)
        actions = np.stack([td3.explore(config, state, observation, agent_step, rng) for _ in range(300)])
        assert actions.dtype == np.float32 and np.abs(actions).max() <= 1.0
        return np.sqrt(np.mean(np.square(actions - mean)))

    assert deviation(9) == pytest.approx(3**-0.5, rel=0.1)  # uniform on [-1, 1]
    assert deviation(50) == pytest.approx(0.25, rel=0.1)
    assert deviation(10**6) == pytest.approx(0.1, rel=0.1)


def test_the_rnd_reward_is_for_what_was_not_seen():
    config = replace(TINY, hidden=(32, 32), reward="rnd", rnd_lr=1e-3, batch=32)
    state = td3.init(config, 3, 2, seed=0)
    familiar = minibatches(400, config)._replace(reward=jnp.full((400, 32), jnp.nan))  # the task's is never read
    left = familiar._replace(next_observation=-jnp.abs(familiar.next_observation))
    state, metrics = td3.update(config, state, left)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    learn = partial(rnd_reward, state.rnd, lr=config.rnd_lr, clip=config.rnd_clip)
    surprised = jax.jit(learn)
    _, seen = surprised(left.next_observation[0])
    _, new = surprised(-left.next_observation[0])
    assert new.shape == (32,)
    assert float(jnp.mean(new)) > 3 * float(jnp.mean(seen))
    features = [td3.init(config, 3, 2, seed=0).rnd.features, state.rnd.features]
    assert not any(differs(*features))  # the random features stay as they are


def test_the_seed_determines_the_learner():
    runs = [td3.update(TINY, td3.init(TINY, 3, 2, seed), minibatches(4))[0] for seed in (3, 3, 4)]
    assert not any(differs(runs[0].actor, runs[1].actor))
    assert any(differs(runs[0].actor, runs[2].actor))


def test_learns_to_go_to_the_origin():
    """A point on a line moves by a / 4 a step and is paid -x^2: the best policy stays within one step of 0."""
    config = td3.CollectorConfig(hidden=(32, 32), batch=64, warmup=400, noise_start=0.3, capacity=2000, gamma=0.9)
    rng, state, replay = (
        np.random.default_rng(0),
        td3.init(config, 1, 1, seed=0),
        td3.make_replay(config, config.capacity, 1, 1),
    )
    agent_step = 0

    def episode(choose):
        xs, actions = [rng.uniform(-1, 1, 1).astype(np.float32)], []
        for _ in range(20):
            actions.append(choose(xs[-1]))
            xs.append(np.clip(xs[-1] + actions[-1] / 4, -2, 2).astype(np.float32))
        return np.stack(xs), np.stack(actions)

    def exploring(x):
        nonlocal agent_step
        agent_step += 1
        return td3.explore(config, state, x, agent_step, rng)

    for _ in range(60):
        xs, actions = episode(exploring)
        replay.add_episode(xs, actions, -np.square(xs[1:, 0]), np.ones(20, np.float32))
        state, _ = td3.update(config, state, replay.sample(config.updates_per_call, rng))
    last = [episode(lambda x: td3.act(state, x))[0][-5:] for _ in range(10)]
    assert np.abs(last).mean() < 0.15
