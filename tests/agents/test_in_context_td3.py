"""The actor in context and its critics: what the loss is, what it may see, and that a run needs its teacher no more."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ringrl
from ringrl.agent import make_agent
from ringrl.batch import MEMBER_BATCH_SCHEMA
from ringrl.errors import UserError
from ringrl.model.output_heads import TanhMSE
from ringrl.model.transformer import make_attend
from ringrl.run import RunDirectory
from ringrl.sampling.normalizer import Normalizer
from ringrl.training.state import build_model
from ringrl.training.teacher_critics import TeacherCritics, teacher_critics
from tests.agents.taught import HIDDEN, VISIBLE, make_taught
from tests.builders import TINY, make_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store with the features of a family, and a TD3 that sees the member."""
    return make_taught(tmp_path_factory.mktemp("valued"), ("point_mass_goal_30mm",), updates=20, batch=16)


def config_of(folder: Path, **sections):
    base = TINY | {
        "data": {"store": str(folder / "pm.store"), "task": HIDDEN, "action_repeat": 2},
        "agent": {"name": "in_context_td3", "trajectories": 3, "teacher": str(folder / "teacher")},
    }
    return make_config(base, **sections)


@pytest.fixture(scope="module")
def made(folder):
    """(configuration, agent, training data, first batch)"""
    config = config_of(folder)
    agent = make_agent(config.agent)
    trainer = agent.make_trainer(config)
    trainer.data.prepare(Path("no run yet"))
    batches = trainer.data.batches(0, trainer._shard)
    batch = next(batches)
    batches.close()
    return config, agent, trainer.data, batch


def test_a_batch_says_at_every_step_which_member_pays(made):
    _, _, data, batch = made
    assert list(batch) == list(MEMBER_BATCH_SCHEMA)
    for row in range(len(batch["step"])):
        real = batch["segment_ids"][row] > 0
        members = np.unique(batch["parameter"][row][real], axis=0)
        assert members.shape == (1, 2) and not batch["parameter"][row][~real].any()
        assert not data.episodes.family.held_out(members).any()


@pytest.mark.parametrize("task", [HIDDEN, "library2_point_mass_goal_30mm"])
def test_values_are_those_of_the_teachers_first_critic(folder, made, task):
    config, data, batch = made[0], made[2], made[3]
    if task != HIDDEN:
        config = config_of(folder, data={"task": task})
        data = make_agent(config.agent).make_trainer(config).data
        data.prepare(Path("no run yet"))
        batch = next(data.batches(0, make_agent(config.agent).make_trainer(config)._shard))
    cue = data.episodes.family.cue
    critics = teacher_critics(folder / "teacher", config, data.episodes)
    own = RunDirectory(folder / "teacher")
    td3 = make_agent(own.config().agent)
    state, step = td3.load_state(folder / "teacher", own.config(), {"observation": 6, "action": 2}, "latest")
    assert step == 20
    raw = (batch["observation"] * data.scales.observation_std + data.scales.observation_mean)[..., :4]
    seen = own.normalizer().normalize_observation(np.concatenate([raw, batch["parameter"][..., cue:]], axis=-1))
    expected = state.critics(jnp.asarray(seen.reshape(-1, 6)), jnp.asarray(batch["action"].reshape(-1, 2)))[0]
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    got = critics.values(arrays, arrays["action"], data.scales)
    np.testing.assert_allclose(np.asarray(got).ravel(), expected, rtol=1e-4, atol=1e-5)
    elsewhere = arrays | {"parameter": arrays["parameter"] + 0.1}
    other = critics.values(elsewhere, arrays["action"], data.scales)
    assert np.abs(np.asarray(other - got)).max() > 1e-4


class _Line(TeacherCritics):
    """Q(s, a) = s + 2 a: what a loss is can be said by heart."""

    def __init__(self):
        pass

    def values(self, batch, action, scales):
        return batch["observation"][..., 0] + 2.0 * action[..., 0]


def test_a_step_costs_nothing_where_the_action_is_as_good_and_1_where_it_is_the_opposite():
    agent = replace_config(make_agent("in_context_td3"), clone_weight=0.0)
    action = jnp.array([[0.5, 0.0, -0.5, 0.9]])
    batch = {"label": jnp.full((1, 4, 1), 0.5), "observation": jnp.zeros((1, 4, 1))}
    scales = Normalizer(np.zeros(1, np.float32), np.ones(1, np.float32), 1.0, 1.0)
    raw = jnp.arctanh(action)[..., None, None]
    loss = agent.regret(TanhMSE(), raw, batch, _Line(), scales)
    # top 1, low -1, span 2 + 0.02 * 1; regrets 0, 1, 2 and -0.8
    np.testing.assert_allclose(loss, np.array([[0.0, 1.0, 2.0, -0.8]]) / 2.02, atol=1e-5)
    cloned = replace_config(agent, clone_weight=2.0).regret(TanhMSE(), raw, batch, _Line(), scales)
    np.testing.assert_allclose(cloned - loss, 2 * np.square(np.asarray(action) - 0.5), atol=1e-5)


def replace_config(agent, **changes):
    return type(agent)(agent.config.model_copy(update=changes))


def test_the_actor_sees_neither_the_member_nor_the_label(made):
    config, agent, _, batch = made
    model = build_model(config, agent.decoder, {"observation": 4, "action": 2})
    floats = {name: jnp.asarray(value) for name, value in batch.items() if value.dtype == np.float32}
    rest = {name: jnp.asarray(value) for name, value in batch.items() if name not in floats}
    attend = make_attend(None, "zigzag", None)
    gradient = jax.grad(lambda floats: jnp.square(model(rest | floats, attend)).sum())(floats)
    assert not gradient["parameter"].any() and not gradient["label"].any() and gradient["previous_reward"].any()


@pytest.mark.parametrize(
    "mesh", [{}, {"seq": 2}, pytest.param({"data": 2}, marks=pytest.mark.slow)], ids=["one", "ring", "data"]
)
def test_it_learns_what_is_worth_most_on_one_device_and_on_several(mesh, folder):
    steps = {"optimizer": {"learning_rate": 1e-2, "warmup_steps": 0}, "training": {"steps": 30}}
    config = config_of(folder, mesh=mesh, **steps)
    trainer = make_agent(config.agent).make_trainer(config)
    trainer.data.prepare(Path("no run yet"))
    losses = [float(values["loss"]) for _, _, values in trainer.updates(trainer.init(), 0)]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_a_run_resumes_exactly_and_acts_without_its_teacher(folder, tmp_path):
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    agent = {"name": "in_context_td3", "trajectories": 3, "teacher": str(tmp_path / "teacher")}
    whole = ringrl.train(
        config_of(folder, agent=agent, training={"steps": 4, "checkpoint_every": 2}), out=tmp_path / "whole"
    )
    half = shutil.copytree(whole, tmp_path / "half")
    shutil.rmtree(
        half / "checkpoints" / "4"
    )  # a run of another training.steps may be another program, which rounds otherwise
    ringrl.train(None, resume=half)
    (tmp_path / "teacher").rename(tmp_path / "gone")
    observation = np.zeros(4, np.float32)
    actions = [ringrl.load_agent(run).start(trial_steps=4).act(observation) for run in (whole, half)]
    assert np.abs(actions[0]).max() <= 1 and actions[0].any()
    np.testing.assert_array_equal(actions[0], actions[1])
    labels = RunDirectory(whole).dataset()["labels"]
    assert labels.items() >= {"teacher": "td3", "task": VISIBLE, "step": 20}.items()


def test_critics_may_also_be_of_the_task_itself(folder):
    """A teacher that sees no member: its critics read the observation alone."""
    config = config_of(folder)
    episodes = make_agent(config.agent).make_trainer(config).data.episodes
    critics = replace(teacher_critics(folder / "teacher", config, episodes), sees_member=False)
    scales = Normalizer(np.zeros(6, np.float32), np.ones(6, np.float32), 1.0, 1.0)
    batch = {"observation": jnp.ones((1, 3, 6)), "parameter": jnp.zeros((1, 3, 0))}
    assert critics.values(batch, jnp.zeros((1, 3, 2)), scales).shape == (1, 3)


@pytest.mark.parametrize(
    "agent, message",
    [
        ({"teacher": None}, "agent.teacher: give the run"),
        ({"teacher": "nowhere"}, "nowhere: not a run directory"),
        ({"head": "categorical"}, "its actor is deterministic"),
        ({"trajectories": 2, "fewest": 3}, "fewest is 3, more than trajectories 2"),
    ],
    ids=["none", "nowhere", "head", "fewest"],
)
def test_what_does_not_fit_is_refused_in_a_line(agent, message, folder):
    with pytest.raises(UserError, match=message) as caught:
        config = config_of(folder, agent=agent)
        make_agent(config.agent).make_trainer(config)
    assert "\n" not in str(caught.value)
