"""The student of a teacher: what its steps are labelled with, what it may see, and what it needs once it is trained."""

import json
import shutil
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ringrl
from ringrl import recipes
from ringrl.agent import make_agent
from ringrl.batch import LABELLED_BATCH_SCHEMA
from ringrl.envs import family_of
from ringrl.envs.custom.library import CUE
from ringrl.errors import UserError
from ringrl.manifest import replace_together
from ringrl.model.transformer import make_attend
from ringrl.run import RunDirectory
from ringrl.store.episode_store import open_store
from ringrl.training.processes import LocalShard
from ringrl.training.state import build_model
from ringrl.training.teacher import demonstrator_labels
from tests.agents.taught import HIDDEN, STEPS, VISIBLE, make_taught
from tests.builders import TINY, make_config

FAMILIES = ("point_mass_goal_30mm", "point_mass_goal_15mm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store with the features of two families, and a teacher of one of them that has hardly learned."""
    return make_taught(tmp_path_factory.mktemp("taught"), FAMILIES, updates=2, batch=4)


def config_of(folder: Path, **sections):
    base = TINY | {
        "data": {"store": str(folder / "pm.store"), "task": HIDDEN, "action_repeat": 2},
        "agent": {"name": "decision_pretrained", "trajectories": 3, "teacher": str(folder / "teacher")},
    }
    return make_config(base, **sections)


def batch_of(config, shard: LocalShard | None = None) -> dict[str, np.ndarray]:
    data = make_agent(config.agent).make_trainer(config).data
    data.prepare(Path("no run yet"))
    t = config.training
    loader = data.batches(0, shard or LocalShard(np.arange(t.batch), np.arange(t.row_steps), (t.batch, t.row_steps)))
    batch = next(loader)
    loader.close()
    return batch


def test_a_label_is_the_teachers_action_for_the_observation_and_the_member(folder):
    config = config_of(folder)
    batch, data = batch_of(config), make_agent(config.agent).make_trainer(config).data
    assert list(batch) == list(LABELLED_BATCH_SCHEMA)
    own = RunDirectory(folder / "teacher").config()
    sizes = {"observation": 6, "action": 2}
    teacher = make_agent(own.agent).policy.load_policy(folder / "teacher", own, sizes, "latest")
    for row in range(4):
        plan = data._sample_contexts(data.episodes, HIDDEN, 2).sample(
            np.random.default_rng(np.random.SeedSequence([config.seed, 0, row]))
        )
        seen = [data.episodes.store.read_steps([(e, 0, STEPS)])[0][0][:-1:2] for e in plan.episode.tolist()]
        observation = np.concatenate(
            [np.concatenate([part, np.broadcast_to(plan.parameter[0], (len(part), 2))], axis=1) for part in seen]
        )
        expected = teacher.act(observation)  # a policy of one observation is its own rollout
        real = batch["segment_ids"][row] > 0
        assert real.sum() == len(observation) == 3 * STEPS // 2
        np.testing.assert_allclose(batch["label"][row][real], expected, atol=1e-6)
        assert not batch["label"][row][~real].any()
    assert np.ptp(batch["label"]) > 0.01


def test_of_a_library_the_teacher_is_asked_without_the_cue_and_given_the_piece_s_member(folder):
    """The same teacher, of the family's visible twin; the student sees the cue."""
    config = config_of(folder, data={"task": "library2_point_mass_goal_30mm", "library": [2, 3]})
    batch, data = batch_of(config), make_agent(config.agent).make_trainer(config).data
    assert data.sizes == {"observation": 4 + CUE, "action": 2} and data.episodes.library == (2, 3)
    own, several = RunDirectory(folder / "teacher").config(), False
    teacher = make_agent(own.agent).policy.load_policy(
        folder / "teacher", own, {"observation": 6, "action": 2}, "latest"
    )
    for row in range(4):
        plan = data._sample_contexts(data.episodes, config.data.task, 2).sample(
            np.random.default_rng(np.random.SeedSequence([config.seed, 0, row]))
        )
        seen = [data.episodes.store.read_steps([(e, 0, STEPS)])[0][0][:-1:2] for e in plan.episode.tolist()]
        observation = np.concatenate(
            [
                np.concatenate([part, np.broadcast_to(member[CUE:], (len(part), 2))], axis=1)
                for part, member in zip(seen, plan.parameter, strict=True)
            ]
        )
        real = batch["segment_ids"][row] > 0
        np.testing.assert_allclose(batch["label"][row][real], teacher.act(observation), atol=1e-6)
        cues = np.repeat(plan.parameter[:, :CUE], STEPS // 2, axis=0)
        np.testing.assert_allclose(batch["observation"][row][real][:, 4:], cues, atol=0.05)  # scales near 0 and 1
        several |= len(np.unique(cues, axis=0)) > 1
    assert several


def test_labels_are_learned_but_not_seen(folder):
    """The prediction at a step depends on what came before it, not on any label, nor on anything after it."""
    config = config_of(folder)
    agent = make_agent(config.agent)
    model = build_model(config, agent.decoder, {"observation": 4, "action": 2})
    batch = {name: jnp.asarray(value) for name, value in batch_of(config).items()}
    floats = {name: value for name, value in batch.items() if value.dtype == jnp.float32}
    at = 7

    def prediction(floats):
        return jnp.square(model(batch | floats, make_attend(None, "zigzag", None))[0, at]).sum()

    gradient = jax.grad(prediction)(floats)
    assert not gradient["label"].any() and not gradient["action"].any() and not gradient["return_to_go"].any()
    for name in ("observation", "previous_action", "previous_reward"):
        moved = np.abs(np.asarray(gradient[name][0])).reshape(len(gradient[name][0]), -1).sum(-1)
        assert not moved[at + 1 :].any() and moved[1:at].all(), name
        assert not gradient[name][1:].any(), name
    raw = model(batch, make_attend(None, "zigzag", None))
    expected = np.square(np.tanh(np.asarray(raw[..., 0])) - np.asarray(batch["label"])).mean(-1)
    np.testing.assert_allclose(agent.loss(model.head, raw, batch), expected, rtol=1e-5)


def test_a_run_names_its_teacher_and_needs_it_no_more(folder, tmp_path):
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    config = config_of(
        folder, agent={"name": "decision_pretrained", "trajectories": 3, "teacher": str(tmp_path / "teacher")}
    )
    run = ringrl.train(config, out=tmp_path / "run")
    labels = RunDirectory(run).dataset()["labels"]
    scales = labels.pop("scales")
    assert labels == {"teacher": "td3", "task": VISIBLE, "step": 2, "seed": 0}
    assert scales == zlib.crc32((tmp_path / "teacher" / "normalizer.json").read_bytes())
    assert RunDirectory(run).config().agent.teacher == str(tmp_path / "teacher")
    (tmp_path / "teacher").rename(tmp_path / "gone")
    session = ringrl.load_agent(run).start(trial_steps=4)
    assert np.abs(session.act(np.zeros(4, np.float32))).max() <= 1
    # It may go on with longer rows and other members, but not with another teacher.
    longer = ("agent.trajectories=4", "training.row_steps=28", "data.hindsight=0.9", "training.steps=6")
    ringrl.train(None, *longer, f"agent.teacher={tmp_path / 'gone'}", resume=run)
    with pytest.raises(UserError, match="teacher: not a run directory"):
        ringrl.train(None, "training.steps=7", f"agent.teacher={tmp_path / 'teacher'}", resume=run)


def test_a_run_goes_on_by_what_its_data_are_not_by_the_members_that_were_drawn(folder, tmp_path):
    run = RunDirectory(ringrl.train(config_of(folder, training={"steps": 1}), out=tmp_path / "run"))
    began = run.dataset()

    def go_on(**changes):
        replace_together(run.path, {run.dataset_file.name: json.dumps(began | changes).encode()})
        ringrl.train(None, "training.steps=1", resume=run.path)
        return run.dataset()

    drawn_otherwise = [value + 1 for value in began["returns"]]
    assert go_on(returns=drawn_otherwise)["returns"] == drawn_otherwise  # the scales are those of these too
    with pytest.raises(UserError, match=r"not the data that .* began with \(features changed\)"):
        go_on(features=began["features"] + 1)
    with pytest.raises(UserError, match=r"\(labels changed\)"):
        go_on(labels=began["labels"] | {"seed": 1})
    earlier = {name: value for name, value in began["labels"].items() if name not in ("seed", "scales")}
    del began["features"]
    assert go_on(labels=earlier)["labels"]["seed"] == 0  # a run of before says neither


def test_a_visible_parameters_scales_are_those_of_many_members(folder):
    family, scales = family_of(VISIBLE), RunDirectory(folder / "teacher").normalizer()
    members = family.members(np.random.default_rng(1), 20_000)
    np.testing.assert_allclose(scales.observation_std[4:], members.std(axis=0), rtol=0.05)
    np.testing.assert_allclose(scales.observation_mean[4:], members.mean(axis=0), atol=0.01)


def test_it_learns_what_the_teacher_would_do(folder):
    config = config_of(folder, optimizer={"learning_rate": 3e-3, "warmup_steps": 0}, training={"steps": 30})
    trainer = make_agent(config.agent).make_trainer(config)
    trainer.data.prepare(Path("no run yet"))
    losses = [float(values["loss"]) for _, _, values in trainer.updates(trainer.init(), 0)]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"agent": {"teacher": None}}, "agent.teacher: give the run .* as td3 on visible_point_mass_goal_30mm"),
        (
            {"agent": {"teacher": None}, "data": {"task": "point_mass_easy"}},
            "pm.store has no actions of a demonstrator",
        ),
        ({"agent": {"teacher": "nowhere"}}, "nowhere: not a run directory"),
        ({"data": {"task": "hidden_point_mass_goal_15mm"}}, "labelled by one of visible_point_mass_goal_15mm"),
        ({"data": {"task": "point_mass_easy"}}, "labelled by one of point_mass_easy"),
        ({"data": {"library": [2]}}, "data.library: hidden_point_mass_goal_30mm is no library"),
        ({"data": {"task": "library2_point_mass_goal_15mm"}}, "labelled by one of visible_point_mass_goal_15mm"),
        ({"data": {"action_repeat": 1}}, "data.action_repeat 2, and here it is 1"),
        ({"agent": {"trajectories": 6}}, "cannot be drawn from 5 episodes"),
        ({"agent": {"trajectories": 2, "fewest": 3}}, "fewest is 3, more than trajectories 2"),
    ],
    ids=[
        "none",
        "no demonstrator",
        "nowhere",
        "family",
        "task",
        "no library",
        "library",
        "action repeat",
        "trajectories",
        "fewest",
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(sections, message, folder):
    with pytest.raises(UserError, match=message) as caught:
        batch_of(config_of(folder, **sections))
    assert "\n" not in str(caught.value)


def test_a_demonstrator_of_the_store_labels_histories_of_hidden_tasks(tmp_path):
    """What the expert of each history's goal would do; every context is of one history."""
    task, repeat, histories = "hidden_point_mass_goal", 10, recipes.load("data", "collect_histories")
    small = {"histories": 3, "trials": 3, "action_repeat": repeat, "jobs": 1, "demonstrator": True}
    histories.main(histories.Args(out=tmp_path / "goals.store", task=task, **small))
    config = make_config(
        TINY | {"data": {"store": str(tmp_path / "goals.store"), "task": task, "action_repeat": repeat}},
        agent={"name": "decision_pretrained", "trajectories": 2, "within_source": True},
        training={"batch": 4, "row_steps": 50},
        model={"max_steps": 25},
    )
    batch, data = batch_of(config), make_agent(config.agent).make_trainer(config).data
    sampler, store = data._sample_contexts(data.episodes, task, repeat), data.episodes
    for row in range(4):
        drawn = sampler.sample(np.random.default_rng(np.random.SeedSequence([config.seed, 0, row]))).episode
        assert len(set(store.source[drawn])) == 1
        expected = [store.episode(int(each), task).demonstrator[::repeat] for each in drawn]
        np.testing.assert_array_equal(batch["label"][row], np.concatenate(expected))
    rows, columns = np.array([1, 3]), np.array([0, 1, 26, 27, 49])
    part = batch_of(config, LocalShard(rows, columns, (4, 50)))  # as of a process that has a part of the ring
    np.testing.assert_array_equal(part["label"], batch["label"][rows][:, columns])
    run = ringrl.train(config, "training.steps=2", out=tmp_path / "run")
    assert RunDirectory(run).dataset()["labels"] == {"teacher": "demonstrator"}
    with pytest.raises(UserError, match="would mix the tasks of 3 sources; set agent.within_source=true"):
        ringrl.train(config, "agent.within_source=false", out=tmp_path / "mixed")
    assert not RunDirectory(tmp_path / "mixed").exists
    climber = make_agent(make_config(TINY, agent={"name": "in_context_td3", "trajectories": 2}).agent)
    with pytest.raises(UserError, match="would mix the tasks of 3 sources; set agent.within_source=true"):
        climber.context_sampler(store, task, repeat)
    with pytest.raises(UserError, match="its demonstrator acts for hidden_point_mass_goal, and data.task is other"):
        demonstrator_labels(open_store(tmp_path / "goals.store"), "other")


def test_a_student_is_no_teacher(folder, tmp_path):
    run = ringrl.train(config_of(folder, training={"steps": 1}), out=tmp_path / "run")
    with pytest.raises(UserError, match="a teacher sees one observation"):
        batch_of(config_of(folder, agent={"teacher": str(run)}))


@pytest.mark.parametrize(
    "agent",
    [
        {"name": "agentic_transformer", "trajectories": 3},
        {"name": "algorithm_distillation", "trajectories": 3},
        {"name": "algorithm_distillation", "trajectories": 3, "order": "sorted"},
        {"name": "decision_transformer", "window": 4},
        {"name": "behavior_cloning", "window": 4, "fraction": 1.0},
        {"name": "behavior_cloning", "window": 4, "fraction": 0.5},
    ],
    ids=lambda agent: "-".join(str(value) for value in agent.values()),
)
def test_other_agents_contexts_are_paid_by_drawn_members(agent, folder):
    config = config_of(folder, agent=agent)
    data = make_agent(config.agent).make_trainer(config).data
    plan = data._sample_contexts(data.episodes, HIDDEN, 2).sample(np.random.default_rng(0))
    if agent.get("fraction") == 0.5:
        assert plan.parameter is None  # the best of the episodes, under a member each that is drawn once
        return
    assert plan.parameter.shape == (len(plan.episode), 2)
    expected = data.episodes.returns_under(plan.episode, plan.parameter)
    if agent["name"] == "agentic_transformer":
        assert plan.target.tolist() == [expected.max()] * 3 and plan.completed[-1]
    elif agent["name"] == "decision_transformer":
        assert plan.target.tolist() == expected.tolist()
    if agent["name"] == "agentic_transformer" or agent.get("order"):
        assert (np.diff(expected) >= 0).all()


def test_what_ranks_episodes_by_return_is_refused_for_chains_of_a_family(folder):
    config = config_of(folder, agent={"name": "agentic_transformer", "trajectories": 3, "draw": "stratified"})
    with pytest.raises(UserError, match=r"agent.fraction and agent.draw"):
        batch_of(config)
