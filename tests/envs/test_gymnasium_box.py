"""Gymnasium environments by their ids, a user's own module among them: bounds, ends, workers, and a run evaluated."""

import csv
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from ringrl import envs, recipes
from ringrl.collect.record import record_episode
from ringrl.envs.action_bounds import linear_bounds
from ringrl.errors import UserError
from ringrl.relabelling.rewards import Relabeler
from ringrl.reporting import summarise_runs
from ringrl.rollout.evaluate import evaluate
from ringrl.run import RunDirectory
from ringrl.store.episode_store import DataSource, build, open_store
from ringrl.training.loop import run_training

TASK = "own_rig:Rig-v0"
# The first action has bounds, the second none, the third one on one side: what arrives is in the observation.
MODULE = '''
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict


class Rig(gymnasium.Env):
    """Its observation is [drawn at the reset, steps; the three actions]; it ends where the first is above 4.5."""

    def __init__(self, fail_at=None, wrong_shape=False):
        self.observation_space = Box(-np.inf, np.inf, (5 if not wrong_shape else 4,), np.float64)
        self.action_space = Box(np.array([[1, -np.inf, 0]], np.float32), np.array([[5, np.inf, np.inf]], np.float32))
        self.fail_at = fail_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.array([self.np_random.uniform(), 0, 0, 0, 0])
        return self.state.copy(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.state[1] += 1
        self.state[2:] = action[0]
        if self.state[1] == self.fail_at:
            raise ValueError("the rig\\nis stuck")
        return self.state.copy(), np.float32(action[0, 0]), bool(action[0, 0] > 4.5), False, {}


class Parts(Rig):
    def __init__(self):
        super().__init__()
        self.observation_space = Dict(a=self.observation_space)


gymnasium.register("Rig-v0", Rig, max_episode_steps=6)
gymnasium.register("Rig-v1", Rig, max_episode_steps=6, kwargs={"wrong_shape": True})
gymnasium.register("Stuck-v0", "own_rig:Rig", max_episode_steps=6, kwargs={"fail_at": 3})
gymnasium.register("Endless-v0", Rig)
gymnasium.register("Parts-v0", Parts, max_episode_steps=6)
'''


@pytest.fixture(autouse=True)
def own_module(tmp_path, monkeypatch):
    """The working folder has the module, which nothing else knows."""
    (tmp_path / "own_rig.py").write_text(MODULE)
    (tmp_path / "broken_rig.py").write_text("import gymnasium\nraise OSError('no such port')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    forget_module()


def forget_module():
    """As in a new process."""
    sys.modules.pop("own_rig", None)
    for task_id in [each for each in gymnasium.registry if each.split("-")[0] in ("Rig", "Stuck", "Endless", "Parts")]:
        del gymnasium.registry[task_id]


def test_actions_are_mapped_onto_the_bounds_as_imported_data_are():
    env = envs.make_env(TASK, seed=3)
    observation, info = env.reset()
    assert (observation.dtype, observation.shape, info["physics"].shape) == (np.float32, (5,), (0,))
    space = sys.modules["own_rig"].Rig().action_space
    low, high = linear_bounds(space.low, space.high)
    assert (low.tolist(), high.tolist()) == ([1, -1, -1], [5, 1, 1])
    for action in ([-1, 0.5, 0.5], [0.0, -0.5, -0.5], [0.5, 7, 7]):
        action = np.float32(action)
        observation, reward, *_ = env.step(action)
        sent = (np.clip(action, -1, 1) * (high - low) + (high + low)) / 2
        sent[2] = max(sent[2], 0.0)  # the space says so
        np.testing.assert_allclose(observation[2:], sent, rtol=1e-6)
        assert reward == pytest.approx(sent[0])


def test_it_ends_by_itself_at_its_limit_or_at_one_that_is_given():
    env = envs.make_env(TASK, action_repeat=4)
    assert (env.domain, env.task_name, env.time_limit_steps, env.widths) == ("own_rig:Rig", "v0", 6, (5, 3))
    env.reset()
    steps = [env.step(np.zeros(3, np.float32)) for _ in range(2)]
    assert [step[2:4] for step in steps] == [(False, False), (False, True)]
    assert [step[4]["length"] for step in steps] == [4, 2]
    env.reset()
    _, _, terminated, truncated, info = env.step(np.ones(3, np.float32))
    assert (terminated, truncated, info["discount"], info["length"]) == (True, False, 0.0, 1)
    assert envs.make_env("own_rig:Endless-v0", time_limit=9).time_limit_steps == 9


def test_classic_environments_step_as_gymnasium_steps_them():
    env, plain = envs.make_env("Pendulum-v1", seed=4), gymnasium.make("Pendulum-v1")
    observation, _ = env.reset()
    np.testing.assert_array_equal(observation, plain.reset(seed=4)[0])
    for action in np.random.default_rng(0).uniform(-1, 1, (30, 1)).astype(np.float32):
        observation, reward, terminated, truncated, _ = env.step(action)
        expected = plain.step(2 * action)
        np.testing.assert_array_equal(observation, expected[0])
        assert (reward, terminated, truncated) == expected[1:4]
    episode, _ = record_episode(env, lambda _: np.zeros(1, np.float32))
    assert (episode.length, episode.physics.shape) == (200, (201, 0))


def test_names_are_found_where_gymnasium_finds_them():
    assert envs.split_task(TASK) == ("own_rig:Rig", "v0") and envs.split_task("Pendulum-v1") == ("Pendulum", "v1")
    assert envs.tasks("own_rig:Rig") == ("own_rig:Rig-v1", TASK) and envs.tasks("Pendulum") == ("Pendulum-v1",)
    assert not envs.is_hidden(TASK) and "own_rig:Rig" not in envs.domains()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: envs.make_env("CartPole-v1"), "CartPole-v1: its actions are Discrete, and only Box"),
        (lambda: envs.make_env("own_rig:Parts-v0"), "own_rig:Parts-v0: its observations are Dict, and only Box"),
        (lambda: envs.make_env("Pendulm-v1"), "unknown task 'Pendulm-v1': did you mean Pendulum-v1"),
        (lambda: envs.make_env("own_rig:Rog-v0"), "importing own_rig registers no Rog-v0 .*did you mean Rig-v0"),
        (lambda: envs.make_env("no_rig:Rig-v0"), "no_rig:Rig-v0: cannot import no_rig .*run where it lies"),
        (lambda: envs.make_env("broken_rig:Rig-v0"), "cannot import broken_rig .no such port.; correct it"),
        (lambda: envs.tasks("broken_rig:Rig"), "cannot import broken_rig"),
        (lambda: envs.make_env("own_rig:Endless-v0"), "has no time limit, and a trial must end: .*max_episode_steps"),
        (lambda: envs.make_env("own_rig:Rig-v1").reset(), r"of shape \(5,\), its space says \(4,\)"),
        (lambda: envs.make_env(TASK).physics, "own_rig:Rig-v0 gives no physics state"),
        (lambda: Relabeler([TASK]), "own_rig:Rig-v0 gives no physics state, which recomputing rewards"),
        (lambda: envs.make_env(TASK).render(), "cannot render own_rig:Rig-v0: it was made without render_mode"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_workers_know_the_module_and_give_the_same_steps():
    here, there = (envs.make_vector(TASK, 3, seed=5, workers=workers) for workers in (0, 2))
    np.testing.assert_array_equal(here.reset()[0], there.reset()[0])
    for step in range(8):
        actions = np.random.default_rng(step).uniform(-1, 1, (3, 3)).astype(np.float32)
        for vector in (here, there):
            vector.step_async(actions, restart=True)
        for one, other in zip(here.step_wait(), there.step_wait(), strict=True):
            np.testing.assert_equal(one, other)
    there.close()


def test_an_error_in_a_worker_is_one_line_that_says_where_it_was_raised():
    vector = envs.make_vector("own_rig:Stuck-v0", 2, workers=1)
    vector.reset()
    where = r"Stuck-v0: ValueError: the rig is stuck .*own_rig.py, line \d+.*workers=0"
    with pytest.raises(UserError, match=where) as refusal:
        for _ in range(3):
            vector.step(np.zeros((2, 3), np.float32))
    assert "\n" not in str(refusal.value)
    assert vector.reset()[0][0, 1] == 0  # the worker goes on
    vector.close()


def test_an_installed_command_finds_a_module_in_its_working_folder(tmp_path):
    program = "import sys; sys.path.pop(0); from ringrl import envs; print(envs.make_env('own_rig:Rig-v0').widths)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("(5, 3)\n", 0), done.stderr


@pytest.fixture
def run(tmp_path, tiny_config):
    """A run on episodes of the rig whose actions are in the store as they would be imported."""
    env, rng = envs.make_env(TASK, seed=0), np.random.default_rng(0)
    recorded = [record_episode(env, lambda _: rng.uniform(-1, 0.7, 3).astype(np.float32))[0] for _ in range(4)]
    pairs = [(episode, 0) for episode in recorded]
    store = build(tmp_path / "s", pairs, domain="rig", tasks=(TASK,), sources=[DataSource("a", "a")], provenance={})
    data = {"store": str(store), "task": TASK, "action_repeat": 1}
    config = tiny_config({"name": "behavior_cloning"}, data=data, training={"steps": 2})
    run_training(config, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_on_its_data_is_evaluated_in_it(run, tmp_path):
    with evaluate(run, trials=2, envs=2).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 and {row["task"] for row in rows} == {TASK}
    assert all(1 <= int(row["length"]) <= 6 and float(row["return"]) >= 1.0 for row in rows)


def test_a_run_of_a_module_that_cannot_be_imported_or_of_other_widths_is_refused(run, tmp_path):
    (tmp_path / "own_rig.py").write_text(MODULE.replace("(5 if", "(6 if"))
    forget_module()
    with pytest.raises(UserError, match="own_rig:Rig-v0's observation has 6 numbers, the data's has 5"):
        evaluate(run, trust=True)
    (tmp_path / "own_rig.py").unlink()
    forget_module()
    with pytest.raises(UserError, match="no environment 'own_rig:Rig-v0' to evaluate in .*cannot import own_rig"):
        evaluate(run, trust=True)


@pytest.mark.parametrize(
    "task, bounds", [("Pendulum-v1", [[-2.0], [2.0]]), (TASK, [[1.0, -1.0, -1.0], [5.0, 1.0, 1.0]])]
)
def test_it_is_collected_trained_in_evaluated_and_reported_on(task, bounds, tmp_path, tiny_config):
    collect, build_store = (recipes.load("data", name) for name in ("collect", "build_store"))
    domain = envs.split_task(task)[0]
    collect.main(collect.Args(task=task, policy="random", episodes=4, action_repeat=2))
    build_store.main(build_store.Args((tmp_path / "datasets" / domain / "random",), tmp_path / "s"))
    store = open_store(tmp_path / "s")
    assert (store.domain, store.tasks, store.dims.physics) == (domain, (task,), 0)
    agent = {"name": "algorithm_distillation", "trajectories": 2}
    data = {"store": str(tmp_path / "s"), "task": task, "action_repeat": 2}
    config = tiny_config(agent, data=data, training={"steps": 2, "row_steps": 200})
    run_training(config, tmp_path / "run")
    dataset = RunDirectory(tmp_path / "run").dataset()
    assert dataset["action_bounds"] == bounds
    with evaluate(tmp_path / "run", trials=2, envs=2).open() as file:
        assert {row["agent"] for row in csv.DictReader(file)} == {"algorithm_distillation", "random"}
    agents = summarise_runs(tmp_path / "run")["tasks"][task]["agents"]
    assert [len(agent["returns_by_trial"]) for agent in agents.values()] == [2]


def test_rewards_of_a_domain_of_dm_control_are_computed_anew_unless_said(tmp_path):
    assert [envs.is_gymnasium(each) for each in ("walker", "Pendulum", "own_rig:Rig", "rig")] == [
        False,
        True,
        True,
        False,
    ]
