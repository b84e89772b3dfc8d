"""Forward-backward representations against their equations in NumPy, a successor measure that is known, and a line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringrl import recipes
from ringrl.config import parse_config
from ringrl.errors import UserError
from ringrl.rollout.evaluate import evaluate
from ringrl.rollout.task_vector_policy import TaskVectorPolicy
from ringrl.rollout.trained_agent import load_agent
from ringrl.store.episode_store import open_store
from ringrl.training.loop import run_training
from tests.builders import limit_evaluation

fb = recipes.load("agents", "forward_backward")
SMALL = {"dimension": 3, "hidden": 8, "backward_hidden": [8], "batch": 4}


def tiny(**settings):
    return fb.Config(name="forward_backward", **{**SMALL, **settings})


def minibatches(updates, config, observation=3, action=2, seed=0):
    rng = np.random.default_rng(seed)
    shape = (updates, config.batch)
    return fb.Transitions(
        observation=jnp.asarray(rng.normal(size=(*shape, observation)), jnp.float32),
        action=jnp.asarray(rng.uniform(-1, 1, size=(*shape, action)), jnp.float32),
        reward=jnp.full(shape, jnp.nan),  # never read
        discount=jnp.asarray(rng.choice([0.0, 0.9], size=shape), jnp.float32),
        next_observation=jnp.asarray(rng.normal(size=(*shape, observation)), jnp.float32),
    )


def first(batches):
    return jax.tree.map(lambda x: x[0], batches)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if leaf.dtype == jnp.float32]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_the_measure_loss_of_two_transitions_by_hand():
    forward = jnp.array([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])  # F1 and F2, two rows of d = 2
    backward, target = jnp.array([[3.0, 1.0], [2.0, 5.0]]), jnp.array([[9.0, 1.0], [0.5, 9.0]])
    # F1 . B: [[3, 2], [2, 10]]: off the diagonal ((2 - 1)^2 + (2 - 0.5)^2) / 2 / 2 pairs, on it a mean of 6.5;
    # F2 . B is 0: (1 + 0.25) / 2 / 2
    assert float(fb.measure_loss(forward, backward, target)) == pytest.approx((1 + 2.25) / 4 - 6.5 + 1.25 / 4)


def test_the_orthonormality_loss_of_two_states_by_hand():
    backward = jnp.array([[3.0, 1.0], [2.0, 5.0]])  # B_1 . B_2 = 11, |B_1|^2 = 10, |B_2|^2 = 29
    assert float(fb.orthonormality_loss(backward)) == pytest.approx(11**2 - 2 * 19.5)


def test_the_target_is_the_smaller_density_of_the_target_networks_at_the_smoothed_action():
    config = tiny(target_noise=0.7, target_clip=0.3)
    state, batch, key = fb.init(config, 3, 2, 1), first(minibatches(1, config)), jax.random.key(7)
    state = state._replace(target=fb.init(config, 3, 2, 2).representation)
    z = fb.on_sphere(jnp.asarray(np.random.default_rng(3).normal(size=(4, 3)), jnp.float32))
    noise = np.clip(0.7 * np.asarray(jax.random.normal(key, (4, 2))), -0.3, 0.3)
    assert (np.abs(noise) == np.float32(0.3)).any()  # the clip is at work
    seen = batch.next_observation
    action = np.clip(np.asarray(fb.policy(state.actor, seen, z)) + noise, -1.0, 1.0)
    forward, b = (
        np.asarray(state.target.forward(seen, jnp.asarray(action), z)),
        np.asarray(fb.encode(state.target, seen)),
    )
    expected = [
        [float(batch.discount[i]) * min(forward[0, i] @ b[j], forward[1, i] @ b[j]) for j in range(4)] for i in range(4)
    ]
    np.testing.assert_allclose(fb.measure_target(config, state, batch, z, key), expected, rtol=1e-4, atol=1e-5)
    assert (np.array(expected)[np.asarray(batch.discount) == 0] == 0).all()  # a real end has no future


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_task_vectors_are_on_the_sphere_and_of_the_data_as_often_as_is_said(share):
    config = tiny(data_share=share)
    state, seen = fb.init(config, 3, 2, 0), first(minibatches(1, config)).next_observation
    z = np.asarray(fb.draw_tasks(config, state.representation, seen, jax.random.key(1)))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), np.sqrt(3), rtol=1e-5)
    ordered = [np.asarray(x)[np.argsort(np.asarray(x)[:, 0])] for x in (z, fb.encode(state.representation, seen))]
    assert np.allclose(*ordered, atol=1e-5) is (share == 1.0)


def test_targets_are_polyak_averages_and_rewards_are_not_read():
    config = tiny(tau=0.25)
    before = fb.init(config, 3, 2, 0)
    after, metrics = fb.update(config, before, minibatches(1, config))
    assert int(after.step) == 1 and all(np.isfinite(float(value)) for value in metrics.values())
    for old, new, got in zip(leaves(before.target), leaves(after.representation), leaves(after.target), strict=True):
        np.testing.assert_allclose(got, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-7)


def test_one_fused_call_equals_single_updates_and_the_seed_determines_all():
    config = tiny(tau=0.25)
    start, batches = fb.init(config, 3, 2, 0), minibatches(3, config)
    fused, _ = fb.update(config, start, batches)
    single = start
    for k in range(3):
        single, _ = fb.update(config, single, jax.tree.map(lambda x, k=k: x[k : k + 1], batches))
    for a, b in zip(leaves(fused), leaves(single), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert same(fb.init(config, 3, 2, 0), start) and not same(fb.init(config, 3, 2, 1), start)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_the_actor_climbs_the_smaller_value_and_clones_as_far_as_is_said(weight):
    config = tiny(bc_weight=weight)
    state, batch = fb.init(config, 3, 2, 0), first(minibatches(1, config))
    z = fb.on_sphere(jnp.asarray(np.random.default_rng(3).normal(size=(4, 3)), jnp.float32))
    action = fb.policy(state.actor, batch.observation, z)
    forward = np.asarray(state.representation.forward(batch.observation, action, z))
    q = np.array([min(forward[0, i] @ z[i], forward[1, i] @ z[i]) for i in range(4)])
    cloned = weight * np.mean(np.square(action - batch.action)) - q.mean() / np.abs(q).mean()
    loss, mean = fb.actor_loss(config, state.representation, batch, z, state.actor)
    assert float(mean) == pytest.approx(q.mean(), rel=1e-4)
    assert float(loss) == pytest.approx(cloned if weight else -q.mean(), rel=1e-4)


def test_b_reads_the_goal_space_alone():
    state = fb.init(tiny(goal_space=(2, 0)), 3, 2, 0)
    code = lambda *seen: np.asarray(fb.encode(state.representation, jnp.array(seen)))  # noqa: E731
    np.testing.assert_array_equal(code(1.0, 2.0, 3.0), code(1.0, 9.0, 3.0))
    assert not np.allclose(code(1.0, 2.0, 3.0), code(1.0, 2.0, 4.0))
    with pytest.raises(
        UserError, match=r"agent.goal_space \[3\]: an observation has 3 numbers; give indices from 0 to 2"
    ):
        fb.Agent(tiny(goal_space=(3,))).init(3, 2, 0)


def test_on_a_cycle_it_is_the_successor_measure():
    """Three states in a ring: after i come i + 1, i + 2, i, ...; at gamma 1/2, m = 3 / (1 - 1/8) * (1, 1/2, 1/4)."""
    config = tiny(dimension=3, hidden=32, backward_hidden=[32], batch=48, gamma=0.5, lr=3e-3, tau=0.05, target_noise=0)
    rng, updates = np.random.default_rng(0), 1500
    state, eye = fb.init(config, 3, 1, 0), np.eye(3, dtype=np.float32)
    here = rng.integers(3, size=(updates, 48))
    batches = fb.Transitions(
        observation=jnp.asarray(eye[here]),
        action=jnp.asarray(rng.uniform(-1, 1, size=(updates, 48, 1)), jnp.float32),  # they do nothing
        reward=jnp.full((updates, 48), jnp.nan),
        discount=jnp.full((updates, 48), 0.5, jnp.float32),
        next_observation=jnp.asarray(eye[(here + 1) % 3]),
    )
    state, _ = fb.update(config, state, batches)
    b = np.asarray(fb.encode(state.representation, jnp.asarray(eye)))
    np.testing.assert_allclose(b.T @ b / 3, np.eye(3), atol=0.15)  # E[B B^T] under the data
    z = jnp.asarray(b)
    density = np.asarray(state.representation.forward(jnp.asarray(eye), jnp.zeros((3, 1)), z))[0] @ b.T
    expected = [[24 / 7 * 0.5 ** ((x - s - 1) % 3) for x in range(3)] for s in range(3)]
    np.testing.assert_allclose(density, expected, atol=0.35)
    # the values of a reward in state 2, without a weight changed: sum of gamma^t r_{t+1}
    value = np.asarray(state.representation.forward(jnp.asarray(eye), jnp.zeros((3, 1)), z))[0] @ (b[2] / 3)
    np.testing.assert_allclose(value, [4 / 7, 8 / 7, 2 / 7], atol=0.15)


@pytest.mark.slow
def test_it_goes_to_a_goal_that_it_never_learned_to_go_to():
    """A point on a line moves by a / 4 a step; z = B(goal), and random actions are all that was seen."""
    config = tiny(dimension=8, hidden=32, backward_hidden=[32, 32], batch=64, gamma=0.8, lr=2e-3, actor_lr=2e-3)
    rng, updates = np.random.default_rng(0), 2500
    x = rng.uniform(-1, 1, (updates, 64, 1)).astype(np.float32)
    action = rng.uniform(-1, 1, x.shape).astype(np.float32)
    after, discount = np.clip(x + action / 4, -1, 1), np.full((updates, 64), 0.8, np.float32)
    batches = fb.Transitions(*(jnp.asarray(each) for each in (x, action, discount * np.nan, discount, after)))
    state, _ = fb.update(config, fb.init(config, 1, 1, 0), batches)
    goal = np.array([[-0.8], [-0.4], [0.0], [0.4], [0.8]], np.float32)
    z, here = fb.encode(state.representation, jnp.asarray(goal)), np.zeros_like(goal)
    for _ in range(12):
        here = np.clip(here + np.asarray(fb.policy(state.actor, jnp.asarray(here), z)) / 4, -1, 1)
    assert np.abs(here - goal).mean() < 0.15


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
    agent = {"name": "forward_backward", **SMALL}
    known = tiny_config(agent).model_dump(include={"data", "evaluation"})
    training = {"steps": 20, "log_every": 10, "checkpoint_every": 20}
    path = tmp_path_factory.mktemp("forward_backward") / "run"
    run_training(parse_config(known | {"agent": agent, "training": training}, "tiny"), path)
    with pytest.MonkeyPatch.context() as patch:
        limit_evaluation(patch, 22)  # environment steps: 6 agent steps of up to 4
        yield path


def test_a_run_is_evaluated_after_demonstrations(run, tiny_store):
    options = {"trials": 2, "envs": 2, "demonstrations": tiny_store, "trajectories": 3}
    table = evaluate(run, **options).read_text().splitlines()
    rows = [line.split(",") for line in table if line.startswith("forward_backward")]
    assert len(rows) == 4 and {row[-2] for row in rows} == {"3"}
    about = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert about["trajectories"] == [3] and about["dropped"]["rows"] == []


def test_demonstrations_are_as_trials_of_its_own_and_a_session_goes_on_from_a_file(run, tiny_store, tmp_path):
    agent, episode = load_agent(run), open_store(tiny_store).episode(2, "cartpole_balance")
    shown, own = agent.start(trial_steps=6), agent.start(trial_steps=6)
    shown.demonstrate([episode])
    steps = range(0, episode.length, 4)
    for t in steps:
        own.act(episode.observation[t])
        own.observe(episode.reward[t : t + 4, 0].sum(), t == steps[-1])
    own.new_trial()
    assert isinstance(shown.policy, TaskVectorPolicy) and isinstance(own.policy, TaskVectorPolicy)
    z = shown.policy.task_vectors()
    np.testing.assert_allclose(z, own.policy.task_vectors(), rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(z) == pytest.approx(np.sqrt(3), rel=1e-5)
    own.save(tmp_path / "session")
    seen = episode.observation[0]
    np.testing.assert_array_equal(agent.resume(tmp_path / "session").act(seen), own.act(seen))
