"""A trained agent in an environment of the user's own does what it does in ours."""

from dataclasses import replace

import numpy as np
import pytest

from ringrl.config import parse_config
from ringrl.envs import make_vector
from ringrl.errors import UserError
from ringrl.manifest import replace_together
from ringrl.policy import RolloutSetting
from ringrl.rollout.evaluate import load_evaluated
from ringrl.rollout.session import Session
from ringrl.rollout.trained_agent import load_agent
from ringrl.rollout.trials import Group, TrialRows, run_trials
from ringrl.run import RunDirectory
from ringrl.training.export import export
from ringrl.training.loop import run_training
from ringrl.training.trained_model import load_model

OBSERVATION = np.zeros(5, np.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_config):
    """A function (agent settings) -> the path of a run."""
    paths = {}

    def make(**agent):
        if str(agent) not in paths:
            paths[str(agent)] = tmp_path_factory.mktemp("session") / "run"
            run_training(tiny_config(agent, training={"steps": 1}), paths[str(agent)])
        return paths[str(agent)]

    return make


@pytest.fixture(scope="module")
def run(trained):
    return trained(name="agentic_transformer", trajectories=2)


def act_for(session, steps: int, trials: int = 1, reward: float = 1.0) -> np.ndarray:
    actions = []
    for _ in range(trials):
        session.new_trial()
        for step in range(steps):
            actions.append(session.act(OBSERVATION + step))
            session.observe(reward, step == steps - 1)
    return np.stack(actions)


def test_one_environment_has_no_leading_axis_and_several_have(run):
    agent = load_agent(run)
    assert (agent.name, agent.step) == ("agentic_transformer", 1) and agent.target is not None
    session = agent.start(trial_steps=4)
    action = session.act(OBSERVATION)
    assert action.shape == (1,) and action.dtype == np.float32 and abs(action) <= 1
    several = agent.start(environments=3, trial_steps=4)
    actions = several.act(np.tile(OBSERVATION, (3, 1)))
    np.testing.assert_allclose(actions, np.tile(action, (3, 1)), rtol=1e-5)
    several.observe([1.0, 0.0, 2.0], [True, False, False])
    several.new_trial([True, False, False])
    assert several.act(np.tile(OBSERVATION, (3, 1))).shape == (3, 1)


def test_it_acts_as_the_evaluation_does(run):
    """The same observations, rewards and ends give the same actions as `run_trials`' own loop over the policy."""
    agent, seen = load_agent(run), []

    class Spy(Session):
        def act(self, observation):
            seen.append((observation, super().act(observation)))
            return seen[-1][1]

    envs = make_vector("cartpole_balance", 2, seed=3, action_repeat=4, time_limit=24)
    policy = agent.session(RolloutSetting(2, trial_steps=6, trials=2), batched=True).policy
    run_trials([Group(Spy(policy, 2, 5, batched=True), envs, TrialRows("a", "cartpole_balance", 0))], 2)
    session = agent.start(environments=2, trials=2, trial_steps=6)
    envs = make_vector("cartpole_balance", 2, seed=3, action_repeat=4, time_limit=24)
    envs.reset()
    for shown, action in seen:
        np.testing.assert_array_equal(session.act(shown), action)
        _, reward, terminated, truncated, _ = envs.step(action)
        session.observe(reward, terminated | truncated)
        if (terminated | truncated).any():
            envs.reset(options={"reset_mask": terminated | truncated})
            session.new_trial(terminated | truncated)


def test_earlier_trials_and_the_target_change_the_action(run, trained):
    agent = load_agent(run)
    first, second = np.split(act_for(agent.start(trial_steps=4), 4, trials=2), 2)
    assert not np.array_equal(first, second)
    asked = [act_for(agent.start(target=target, trial_steps=4), 4) for target in (1.0, 900.0)]
    assert not np.array_equal(*asked)
    cloned = load_agent(trained(name="behavior_cloning", fraction=1.0))
    first, second = np.split(act_for(cloned.start(trial_steps=4), 4, trials=2), 2)
    np.testing.assert_allclose(first, second, rtol=1e-5)
    with pytest.raises(UserError, match="behavior_cloning is not return-conditioned"):
        cloned.start(target=1.0)


def test_it_has_the_context_and_the_target_that_the_evaluation_has(tmp_path, tiny_config):
    agent, evaluation = {"name": "agentic_transformer", "trajectories": 2}, {"context": 9, "target": 7.0}
    run_training(tiny_config(agent, training={"steps": 1}, evaluation=evaluation), tmp_path / "run")
    loaded = load_agent(tmp_path / "run")
    assert loaded.spec == load_evaluated(tmp_path / "run", "latest", {}).agent.spec
    assert (loaded.target, loaded.spec.context_steps) == (7.0, 1)
    config = tmp_path / "run" / "config.yaml"
    replace_together(config.parent, {config.name: config.read_bytes().replace(b"context: 9", b"context: 2")})
    with pytest.raises(UserError, match=r"evaluation.context \(--context\) is 2: a step of this agent takes 5 tokens"):
        load_agent(tmp_path / "run")


def test_more_trials_than_announced_go_on(run):
    session = load_agent(run).start(trials=1, trial_steps=3)
    assert act_for(session, 3, trials=4).shape == (12, 1)


def test_a_learner_of_transitions_has_a_session_too(tiny_store, tmp_path):
    data = {"store": str(tiny_store), "task": "cartpole_balance", "action_repeat": 4}
    agent = {"name": "td3", "hidden": [8], "batch": 8}
    run_training(parse_config({"data": data, "agent": agent, "training": {"steps": 1}}, "here"), tmp_path / "run")
    session = load_agent(tmp_path / "run").start()
    assert act_for(session, 2, trials=2).shape == (4, 1)


def test_an_export_acts_as_its_run(run, tmp_path):
    config, sizes = RunDirectory(run).config(), RunDirectory(run).dataset()["sizes"]
    model, step = load_model(run, config, sizes)
    folder = export(model, config, step, run, tmp_path / "export")
    exported = load_agent(folder)
    assert exported.step == 1
    np.testing.assert_array_equal(
        act_for(exported.start(trial_steps=4), 4), act_for(load_agent(run).start(trial_steps=4), 4)
    )


def test_misuse_is_one_line_that_says_what_to_do(run, tmp_path):
    agent = load_agent(run)
    session = agent.start(trial_steps=4)
    with pytest.raises(UserError, match="no action was taken; call session.act"):
        session.observe(1.0)
    with pytest.raises(UserError, match=r"shape \(1, 5\); give \(5,\)"):
        session.act(OBSERVATION[None])
    session.act(OBSERVATION)
    with pytest.raises(UserError, match="call session.observe"):
        session.act(OBSERVATION)
    with pytest.raises(UserError, match="call session.observe"):
        session.new_trial()
    with pytest.raises(UserError, match=r"reward has shape \(2,\); give one value, or \(1,\)"):
        session.observe([1.0, 2.0])
    session.observe(1.0, True)
    with pytest.raises(UserError, match="the trial has ended; call session.new_trial"):
        session.act(OBSERVATION)
    with pytest.raises(UserError, match="environments is 0; give 1 or more"):
        agent.start(environments=0)
    with pytest.raises(UserError, match="not a run directory"):
        load_agent(tmp_path)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_saved_session_goes_on_where_it_was(run, tmp_path, reward):
    agent = load_agent(run)
    session = agent.start(trial_steps=3, trials=4)
    act_for(session, 3, reward=reward)
    session.new_trial()
    act_for(session, 2, reward=reward)
    session.save(tmp_path / "session")
    resumed = agent.resume(tmp_path / "session")
    more, again = (act_for(each, 3, trials=3, reward=reward) for each in (session, resumed))  # past a full context too
    np.testing.assert_allclose(more, again, atol=1e-5)
    assert np.ptp(more) > 1e-4


def test_a_damaged_or_foreign_session_is_refused(run, trained, tmp_path):
    agent, path = load_agent(run), tmp_path / "session"
    session = agent.start(trial_steps=3)
    session.act(OBSERVATION)
    with pytest.raises(UserError, match=r"session\.save: .*call session\.observe"):
        session.save(path)
    session.observe(1.0)
    session.save(path)
    with pytest.raises(UserError, match="a session of agentic_transformer at step 1 .* not of behavior_cloning"):
        load_agent(trained(name="behavior_cloning", fraction=1.0)).resume(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no zip", whole[:-900] + bytes(800) + whole[-100:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a saved session, or damaged"):
            agent.resume(path)
    with pytest.raises(UserError, match="there is no such file"):
        agent.resume(tmp_path / "none")


def test_a_context_can_be_forgotten(run):
    session = load_agent(run).start(trial_steps=3)
    first = act_for(session, 3)
    assert not np.allclose(act_for(session, 3), first, atol=1e-6)
    session.forget()
    np.testing.assert_allclose(act_for(session, 3), first, atol=1e-5)


def test_an_action_that_failed_leaves_the_session_as_it_was(run):
    agent = load_agent(run)
    session = replace(agent, spec=replace(agent.spec, context_steps=6)).start(trial_steps=3, trials=4, when_full="stop")
    act_for(session, 3, trials=2)
    session.new_trial()
    with pytest.raises(UserError, match="is full"):
        session.act(OBSERVATION)
    with pytest.raises(UserError, match=r"no action was taken"):
        session.observe(5.0)
    session.forget()
    assert session.act(OBSERVATION).shape == (1,)


def test_an_environment_that_has_ended_does_not_act_on(run):
    several = load_agent(run).start(environments=2, trial_steps=4)
    several.act(np.tile(OBSERVATION, (2, 1)))
    several.observe(1.0, [True, False])
    with pytest.raises(UserError, match=r"the trial has ended in environments \[0\]; call session.new_trial"):
        several.act(np.tile(OBSERVATION, (2, 1)))
    several.retire([True, False])  # it stays in the batch, however long the other goes on
    for step in range(30):
        several.act(np.tile(OBSERVATION, (2, 1)))
        several.observe(1.0, [False, step % 4 == 3])
        several.new_trial([False, step % 4 == 3])
    assert {each.env for each in several.policy.dropped} <= {1}


def test_to_stop_takes_a_context_of_a_trial(run):
    with pytest.raises(UserError, match="when_full stop: a context of .* has no room for a trial of 99"):
        load_agent(run).start(trial_steps=99, when_full="stop").act(OBSERVATION)
