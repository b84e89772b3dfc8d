"""Rollouts that begin with demonstrations: the agent acts as a full forward pass over them and its own steps says."""

import csv
import json

import numpy as np
import pytest

from ringrl.cli.run_verbs import EvaluateVerb
from ringrl.collect.noisy_expert import Noise, noisy_history
from ringrl.collect.record import record_episode
from ringrl.envs import HELD_OUT, make_env
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.rollout.evaluate import evaluate
from ringrl.rollout.repetitions import repeat
from ringrl.rollout.trained_agent import load_agent
from ringrl.store.episode_store import DataSource, build, open_store
from ringrl.training.loop import run_training
from tests.builders import limit_evaluation

BALANCE, GOAL = "cartpole_balance", "hidden_point_mass_goal"
AGENTS = {
    "at": {"name": "agentic_transformer", "trajectories": 2},
    "ad": {"name": "algorithm_distillation", "trajectories": 2, "fused": True, "sample": False, "head": "tanh_mse"},
}


@pytest.fixture(scope="module", autouse=True)
def short_episodes():
    with pytest.MonkeyPatch.context() as patch:
        limit_evaluation(patch, 22)  # environment steps: 6 agent steps of up to 4
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_config):
    """Trained runs by name, with contexts of 72 agent steps."""
    paths = {}
    for name, agent in AGENTS.items():
        paths[name] = tmp_path_factory.mktemp("demonstrated") / name
        run_training(tiny_config(agent, training={"steps": 2, "row_steps": 72}), paths[name])
    return paths


def rows_of(path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def forward(agent, fields: dict[str, np.ndarray], steps: int) -> np.ndarray:
    """The agent's actions at the last `steps` steps of a row, by the whole model over all of them."""
    calls, count = agent._policy.calls, len(fields["step"])
    row = {name: value[None] for name, value in fields.items()}
    at = np.arange(count - steps, count, dtype=np.int32)
    return np.concatenate([calls.act(calls.window(row, each[None]), None) for each in at])


def own_trial(session, environments: int, seed: int) -> tuple[Episode, np.ndarray]:
    """A trial of the first of `environments` environments, of which all are the same; and all actions."""
    env, taken = make_env(BALANCE, seed=seed, action_repeat=4, time_limit=22), []
    step = env.step

    def act(observation):
        many = observation if environments == 1 else np.tile(observation, (environments, 1))
        taken.append(session.act(many).reshape(environments, -1))
        return taken[-1][0]

    def stepped(action):
        result = step(action)
        session.observe(result[1], result[2] or result[3])
        return result

    env.step = stepped
    session.new_trial()
    return record_episode(env, act)[0], np.stack(taken)


@pytest.mark.parametrize("name", list(AGENTS))
@pytest.mark.parametrize("environments", [1, 3])
def test_it_acts_as_after_trials_of_its_own(runs, tiny_store, name, environments):
    agent, store = load_agent(runs[name]), open_store(tiny_store)
    shown = [store.episode(index, BALANCE) for index in (2, 6, 3)]
    session = agent.start(environments, trials=2, trial_steps=6)
    session.demonstrate(shown, "ascending")
    assert session.demonstrations == 3
    own, taken = zip(*(own_trial(session, environments, seed) for seed in range(2)), strict=True)
    taken = np.concatenate(taken)
    fields = agent.form().show([*sorted(shown, key=lambda each: each.returns[0]), *own]).fields[0]
    np.testing.assert_allclose(taken[:, 0], forward(agent, fields, 12), atol=2e-5)
    np.testing.assert_allclose(taken, taken[:, :1].repeat(environments, 1), atol=2e-5)
    alone = np.concatenate([own_trial(agent.start(trials=2, trial_steps=6), 1, 0)[1]])
    assert not np.allclose(alone, taken[:6, :1], atol=1e-4)  # the demonstrations change what it does


def test_each_environment_may_begin_with_its_own(runs, tiny_store):
    """Two environments in one session, against each alone with what it is shown."""
    agent, store = load_agent(runs["at"]), open_store(tiny_store)
    form = agent.form()
    shown = [form.show([store.episode(index, BALANCE) for index in some]).fields[0] for some in ((0, 5), (7, 1))]
    both = agent.start(2, trials=1, trial_steps=6)
    both.begin_with(shown)
    _, together = own_trial(both, 2, 0)
    first = agent.start(1, trials=1, trial_steps=6)
    first.begin_with(shown[0])
    np.testing.assert_allclose(together[:, :1], own_trial(first, 1, 0)[1], atol=2e-5)
    assert not np.allclose(together[:, 0], together[:, 1], atol=1e-4)


def test_a_full_context_drops_the_oldest_demonstrations_first(runs, tiny_store):
    """Four demonstrations and five trials take 69 of 72 steps, so the sixth trial's fourth step makes room."""
    agent, store = load_agent(runs["ad"]), open_store(tiny_store)
    shown = [store.episode(index, BALANCE) for index in (0, 1, 2, 3)]
    session = agent.start(trials=6, trial_steps=6)
    session.demonstrate(shown)
    trials = [own_trial(session, 1, seed) for seed in range(6)]
    own, taken = [episode for episode, _ in trials], trials[-1][1][:, 0]
    assert [(each.trials, each.steps) for each in session.policy.dropped] == [(1, 9)]
    for dropped, steps in ((0, slice(0, 3)), (1, slice(3, 6))):
        fields = agent.form().show([*shown[dropped:], *own]).fields[0]
        np.testing.assert_allclose(taken[steps], forward(agent, fields, 6)[steps], atol=2e-5)


def test_a_saved_session_goes_on_after_its_demonstrations(runs, tiny_store, tmp_path):
    agent = load_agent(runs["at"])
    session = agent.start(2, trials=2, trial_steps=6)
    session.demonstrate([open_store(tiny_store).episode(index, BALANCE) for index in (4, 1)])
    own_trial(session, 2, 0)
    session.save(tmp_path / "session")
    resumed = agent.resume(tmp_path / "session")
    assert resumed.demonstrations == 2
    np.testing.assert_allclose(own_trial(resumed, 2, 1)[1], own_trial(session, 2, 1)[1], atol=2e-5)


def test_one_number_is_the_evaluation_itself_and_none_changes_nothing(runs, tiny_store):
    plain = rows_of(evaluate(runs["at"], trials=2, reference=False))
    assert {row["demonstrations"] for row in plain} == {"0"}
    rows = rows_of(evaluate(runs["at"], trials=2, demonstrations=tiny_store, trajectories=3))
    ours, theirs = rows[:4], rows[4:]
    assert {row["demonstrations"] for row in ours} == {"3"} and {row["demonstrations"] for row in theirs} == {"0"}
    assert [row["trial"] for row in ours] == [row["trial"] for row in plain]
    assert [row["return"] for row in ours] != [row["return"] for row in plain]
    about = json.loads((runs["at"] / "evaluation" / "evaluation.json").read_text())
    assert (about["demonstrations"], about["trajectories"], about["order"]) == (str(tiny_store), [3], "ascending")
    returns = np.sort(open_store(tiny_store).returns(BALANCE)[np.random.default_rng(1000).permutation(8)[:3]])
    assert about["returns_of_demonstrations"] == {"3": {"mean": returns.mean(), "best": returns[-1]}}


def test_several_numbers_are_a_table_of_their_own(runs, tiny_store, capsys):
    plain = rows_of(evaluate(runs["ad"], trials=2, reference=False))
    options = {"trials": 2, "demonstrations": str(tiny_store), "trajectories": (0, 2, 4, 2), "order": "random"}
    EvaluateVerb(runs["ad"], **options).run()
    table = runs["ad"] / "evaluation" / "demonstrations.csv"
    assert str(table) in capsys.readouterr().out
    rows = rows_of(table)
    assert [row["demonstrations"] for row in rows] == ["0"] * 4 + ["2"] * 4 + ["4"] * 4
    assert [row["return"] for row in rows[:4]] == [row["return"] for row in plain]
    assert rows_of(runs["ad"] / "evaluation" / "returns.csv") == plain
    (alone,) = repeat(runs["ad"], demonstrations=tiny_store, trajectories=[4], order="random", trials=2)
    assert rows_of(alone) == rows[8:]
    (usual,) = repeat(runs["ad"], demonstrations=tiny_store, trajectories=[4], trials=2)  # in no order, unlike a chain
    assert rows_of(usual) == rows[8:]


def test_ablations_are_of_each_number_that_they_change(runs, tiny_store):
    options = {"trials": 1, "demonstrations": str(tiny_store), "order": "random", "apart": True}
    (intact,) = repeat(runs["ad"], trajectories=(0, 2, 4), **options)
    names = ("blind", "truncated", "shuffled", "foreign")
    tables = repeat(runs["ad"], ablations=names, trajectories=(0, 2, 4), **options)
    assert [table.name for table in tables] == [f"ablation-{name}.csv" for name in names]
    returns = {(row["demonstrations"], row["env"]): float(row["return"]) for row in rows_of(intact)}
    for table, name in zip(tables, names, strict=True):
        rows = rows_of(table)
        numbers = ["0"] * 2 * (name == "blind") + ["2"] * 2 + ["4"] * 2
        assert [row["demonstrations"] for row in rows] == numbers
        assert any(float(row["return"]) != returns[row["demonstrations"], row["env"]] for row in rows)
        about = json.loads(table.with_suffix(".json").read_text())
        assert about["ablation"] == name and about["trajectories"] == sorted({int(number) for number in numbers})
    truncated = {row["env"]: row["return"] for row in rows_of(tables[1]) if row["demonstrations"] == "2"}
    assert truncated != {row["env"]: row["return"] for row in rows_of(tables[2]) if row["demonstrations"] == "2"}
    with pytest.raises(UserError, match="--ablation foreign: all environments are shown the same trajectories"):
        repeat(runs["ad"], ablations=("foreign",), trajectories=(2,), **options | {"apart": False})


def test_what_the_command_line_cannot_mean_is_refused(runs, tiny_store, tmp_path, tiny_config):
    store = str(tiny_store)
    for options, words in (
        ({"demonstrations": store}, "go together"),
        ({"trajectories": (2,)}, "go together"),
        ({"demonstrations": store, "trajectories": (-1,)}, "give whole numbers from 0 on"),
        ({"demonstrations": store, "trajectories": (9,)}, "has 8; give 1 to 8"),
        (
            {"demonstrations": store, "trajectories": (8,)},
            r"one trial take a context of \d+ steps.* of 72; give at most",
        ),
        ({"demonstrations": store, "trajectories": (2,), "targets": (1.0,)}, "an ablation; leave out --targets"),
        ({"demonstrations": store, "trajectories": (0, 2), "video": tmp_path / "film.mp4"}, "all but one number"),
        ({"demonstrations": str(tmp_path / "no"), "trajectories": (2,)}, "does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            EvaluateVerb(runs["at"], trials=1, **options).run()
    single = tmp_path / "bc"
    run_training(tiny_config({"name": "behavior_cloning"}, training={"steps": 1}), single)
    with pytest.raises(UserError, match="context is the present trial alone"):
        evaluate(single, demonstrations=store, trajectories=1)
    with pytest.raises(UserError, match="context is the present trial alone"):
        load_agent(single).start(trial_steps=6).demonstrate([open_store(tiny_store).episode(0, BALANCE)])


def test_contexts_that_have_begun_or_are_too_short_are_refused(runs, tiny_store):
    agent = load_agent(runs["at"])
    episodes = [open_store(tiny_store).episode(index, BALANCE) for index in range(8)]
    session = agent.start(trial_steps=6)
    with pytest.raises(UserError, match="do not fit"):
        session.demonstrate(episodes)
    session.demonstrate(episodes[:2])
    session.act(np.zeros(5, np.float32))
    with pytest.raises(UserError, match="before the first act"):
        session.demonstrate(episodes[:2])


def test_hidden_tasks_are_evaluated_after_demonstrations_of_their_own_task(tmp_path, tiny_config):
    path, sources = tmp_path / "goal.store", [DataSource(str(seed), str(seed), "ad_eps") for seed in range(2)]
    episodes = ((each, seed) for seed in range(2) for each in noisy_history(GOAL, seed, 3, 25, Noise()))
    build(path, episodes, domain="hidden_point_mass", tasks=(GOAL,), sources=sources, provenance={})
    data = {"store": str(path), "task": GOAL, "action_repeat": 25}
    evaluation = {"trials": 1, "envs": 3, "seed": HELD_OUT}
    config = tiny_config(AGENTS["ad"], data=data, training={"steps": 1, "row_steps": 60}, evaluation=evaluation)
    run_training(config, tmp_path / "run")
    rows = rows_of(evaluate(tmp_path / "run", reference=False, demonstrations=path, trajectories=4))
    assert [(row["env"], row["demonstrations"]) for row in sorted(rows, key=lambda row: row["env"])] == [
        ("0", "4"), ("1", "4"), ("2", "4"),
    ]  # fmt: skip
