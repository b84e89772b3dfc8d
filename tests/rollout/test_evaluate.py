"""Whole evaluations of a run: who is rolled out, under which name, and what is written."""

import csv
import json

import numpy as np
import pytest
from dm_control.suite import cartpole

from ringrl.cli.run_verbs import EvaluateVerb
from ringrl.config import parse_config
from ringrl.envs import HELD_OUT, make_env
from ringrl.errors import UserError
from ringrl.rollout.evaluate import evaluate
from ringrl.rollout.repetitions import repeat
from ringrl.run import RunDirectory
from ringrl.training.loop import run_training
from tests.builders import limit_evaluation

LABEL = "AT, two in context"
LIMIT = 22  # environment steps of an episode: 6 agent steps of up to 4


@pytest.fixture(scope="module", autouse=True)
def short_episodes():
    with pytest.MonkeyPatch.context() as patch:
        limit_evaluation(patch, LIMIT)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
    """A trained run whose agent is conditioned on a return and looks across trials."""
    config = tiny_config({"name": "agentic_transformer", "trajectories": 2}, training={"steps": 2})
    path = tmp_path_factory.mktemp("evaluated") / "run"
    run_training(config.model_copy(update={"label": LABEL}), path)
    return path


def read(path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_label_is_what_tables_call_a_run(run, tiny_config):
    assert RunDirectory(run).label() == RunDirectory(run).config().label == LABEL
    unlabelled = tiny_config({"name": "behavior_cloning"}).model_dump()
    for wrong in ("random", "expert", ""):
        with pytest.raises(UserError, match="`label`"):
            parse_config(unlabelled | {"label": wrong}, "here")


def expert(_, physics) -> np.ndarray:
    """A controller that keeps the pole up."""
    angle = np.arctan2(physics.named.data.xmat["pole_1", "xz"], physics.named.data.xmat["pole_1", "zz"])
    return np.clip(8 * angle + 2 * physics.angular_vel(), -1, 1)


def test_an_expert_is_rolled_out_where_the_task_has_one(run, monkeypatch):
    monkeypatch.setattr(cartpole.Balance, "expert", expert, raising=False)
    rows = read(evaluate(run, trials=2))
    assert [row["agent"] for row in rows] == [LABEL] * 4 + ["random"] * 4 + ["expert"] * 4
    assert {row["target_return"] for row in rows[4:]} == {""}
    for env in range(2):  # in environments of the same seeds, an episode after the other
        alone = make_env("cartpole_balance", seed=1000 + env, action_repeat=4, time_limit=LIMIT)
        for trial in range(2):
            alone.reset()
            earned, done = 0.0, False
            while not done:
                action = expert(None, alone.physics).astype(np.float32)
                _, reward, _, done, _ = alone.step(action)
                earned += reward
            (row,) = [r for r in rows[8:] if (r["env"], r["trial"]) == (str(env), str(trial))]
            assert float(row["return"]) == earned and row["length"] == str(LIMIT)
        alone.close()
    assert read(evaluate(run, trials=2, reference=False)) == rows[:4]


def test_without_an_expert_there_is_only_chance(run):
    assert {row["agent"] for row in read(evaluate(run, trials=1))} == {LABEL, "random"}


def test_targets_repeat_the_evaluation(run):
    evaluate(run, trials=2, target=15.0)
    before = (run / "evaluation" / "returns.csv").read_text()
    (table,) = repeat(run, (15.0, 20.0, 15.0), trials=2)
    assert table == run / "evaluation" / "targets.csv"
    rows = read(table)
    assert [row["target_return"] for row in rows] == ["15.0"] * 4 + ["20.0"] * 4
    assert rows[:4] == [row for row in read(run / "evaluation" / "returns.csv") if row["agent"] == LABEL]
    assert (run / "evaluation" / "returns.csv").read_text() == before
    about = json.loads((run / "evaluation" / "targets.json").read_text())
    assert (about["targets"], about["trials"], about["checkpoint_step"]) == ([15.0, 20.0, 15.0], 2, 2)


def test_ablations_are_written_one_by_one_and_again_the_same(run):
    (intact,) = repeat(run, (20.0,), trials=2)
    tables = repeat(run, ablations=("foreign", "blind"), trials=2, target=20.0)
    assert [table.name for table in tables] == ["ablation-foreign.csv", "ablation-blind.csv"]
    first = [float(row["return"]) for row in read(intact) if row["trial"] == "0"]
    for table in tables:
        rows = read(table)
        assert len(rows) == 4 and {row["agent"] for row in rows} == {LABEL}
        # There is nothing to ablate before the first trial's end, but for its rewards.
        # Batches of one and of two environments round sums differently.
        unlike = [float(row["return"]) for row in rows if row["trial"] == "0"] != pytest.approx(first, rel=1e-5)
        assert unlike == (table.name == "ablation-blind.csv")
    before = tables[0].read_text()
    assert repeat(run, ablations=("foreign",), trials=2, target=20.0)[0].read_text() == before


@pytest.mark.parametrize("when_full, trials", [("stop", 2), ("newest", 4), ("best", 4)])
def test_what_a_full_context_loses_is_recorded(run, when_full, trials):
    table = evaluate(run, trials=4, context=60, when_full=when_full, reference=False)  # two trials of 6 steps, 5 tokens
    assert [row["trial"] for row in read(table) if row["env"] == "1"] == [str(each) for each in range(trials)]
    about = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert about["when_full"] == when_full and about["dropped"]["columns"] == ["env", "at_trial", "trials", "steps"]
    lost = [] if when_full == "stop" else [[env, trial, 1, 6] for env in range(2) for trial in (2, 3)]
    assert sorted(about["dropped"]["rows"]) == lost


def test_what_cannot_be_repeated_is_named(run, tmp_path, tiny_config):
    with pytest.raises(UserError, match="--ablation foreign: .*--envs 2"):
        repeat(run, ablations=("foreign",), envs=1)
    for ablation, trials, tokens in (("truncated", 2, 59), ("foreign", 2, 59), ("shuffled", 3, 89)):
        with pytest.raises(UserError, match=f"--ablation {ablation}: .*--trials {trials}"):
            repeat(run, ablations=(ablation,), trials=trials - 1)
        with pytest.raises(UserError, match=f"--ablation {ablation}: .*{6 * trials} steps.* {tokens // 5};"):
            repeat(run, ablations=(ablation,), trials=trials, context=tokens)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="--targets: `target`: .*finite"):
            repeat(run, (15.0, wrong))
    assert not (run / "evaluation" / "ablation-shuffled.csv").exists()
    run_training(tiny_config({"name": "behavior_cloning"}, training={"steps": 1}), tmp_path / "bc")
    with pytest.raises(UserError, match="--target: behavior_cloning is not conditioned on a return"):
        evaluate(tmp_path / "bc", target=1.0)
    with pytest.raises(UserError, match="--targets: behavior_cloning is not conditioned on a return"):
        repeat(tmp_path / "bc", targets=(1.0,))
    with pytest.raises(UserError, match="--ablation: behavior_cloning's context is the present trial alone"):
        repeat(tmp_path / "bc", ablations=("blind",))
    with pytest.raises(UserError, match="not both"):
        EvaluateVerb(run, targets=(1.0,), target=2.0).run()
    with pytest.raises(UserError, match="--video"):
        EvaluateVerb(run, ablation=("blind",), video=tmp_path / "film.gif").run()


def test_an_agent_of_transitions_takes_neither_target_nor_context_of_the_command_line(tmp_path, tiny_config):
    of_the_file = {"target": 5.0, "context": 30}  # which may be of a config that several agents share
    values = tiny_config({"name": "behavior_cloning"}).model_dump(include={"data"})
    values |= {"agent": {"name": "td3", "batch": 4}, "training": {"steps": 1}, "evaluation": of_the_file}
    run_training(parse_config(values, "td3"), tmp_path / "td3")
    refused = (({"target": 1.0}, "--target: td3 is not conditioned"), ({"context": 9}, "--context: td3 sees one"))
    for given, message in refused:
        with pytest.raises(UserError, match=message):
            evaluate(tmp_path / "td3", **given)
    assert evaluate(tmp_path / "td3", trials=1, envs=1, reference=False).exists()


def test_hidden_tasks_are_evaluated_on_held_out_seeds_alone(run, tmp_path):
    for task in ("hidden_point_mass_goal", "visible_point_mass_goal"):
        for name in ("config.yaml", "dataset.json"):
            text = (run / name).read_text().replace("task: cartpole_balance", f"task: {task}")
            sizes = json.loads(text)["sizes"] if name == "dataset.json" else {}
            if sizes:
                widths = {"observation": 4 + 2 * task.startswith("visible"), "action": 2}
                text = json.dumps(json.loads(text) | {"sizes": sizes | widths})
            (tmp_path / name).write_text(text)
        for given in ({}, {"seed": HELD_OUT - 1}):
            with pytest.raises(UserError, match=f"{task}'s training tasks.*evaluation.seed=1000000"):
                evaluate(tmp_path, **given)
        with pytest.raises(UserError, match="checkpoint"):  # there is none: it got as far as that
            evaluate(tmp_path, seed=HELD_OUT)
