"""Evaluations in another task than the run's: a domain's own, or a family's, after trajectories of its members."""

import csv
import json

import pytest

from ringrl.cli.run_verbs import EvaluateVerb
from ringrl.collect.noisy_expert import Noise, noisy_history
from ringrl.envs import HELD_OUT, VALIDATION
from ringrl.errors import UserError
from ringrl.reporting import write_report
from ringrl.rollout.evaluate import evaluate
from ringrl.store.episode_store import DataSource, build
from ringrl.training.loop import run_training
from tests.agents.taught import make_taught
from tests.builders import TINY, limit_evaluation, make_config
from tests.rollout.reward_free import FAMILY, HIDDEN, VISIBLE, reward_free_store

GOAL = "hidden_point_mass_goal"


@pytest.fixture(scope="module", autouse=True)
def short_episodes():
    with pytest.MonkeyPatch.context() as patch:
        limit_evaluation(patch, 22)  # environment steps: one agent step of up to 25
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
    """An agent of hidden goals, learned from histories."""
    folder = tmp_path_factory.mktemp("other")
    sources = [DataSource(str(seed), str(seed), "ad_eps") for seed in range(2)]
    episodes = ((each, seed) for seed in range(2) for each in noisy_history(GOAL, seed, 3, 25, Noise()))
    path = build(folder / "s", episodes, domain="hidden_point_mass", tasks=(GOAL,), sources=sources, provenance={})
    agent = {"name": "algorithm_distillation", "trajectories": 2, "fused": True, "sample": False, "head": "tanh_mse"}
    sections = {"training": {"steps": 1, "row_steps": 60}, "evaluation": {"trials": 1, "envs": 3, "seed": HELD_OUT}}
    run_training(
        tiny_config(agent, data={"store": str(path), "task": GOAL, "action_repeat": 25}, **sections), folder / "run"
    )
    return folder / "run"


def rows_of(path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_another_task_has_tables_of_its_own(run):
    own = evaluate(run, reference=False)
    other = evaluate(run, reference=False, task="point_mass_easy")
    assert own == run / "evaluation" / "returns.csv"
    assert other == run / "evaluation" / "point_mass_easy" / "returns.csv"
    assert {row["task"] for row in rows_of(own)} == {GOAL}
    assert {row["task"] for row in rows_of(other)} == {"point_mass_easy"}
    assert json.loads((other.parent / "evaluation.json").read_text())["task"] == "point_mass_easy"


def test_the_runs_own_task_may_be_named(run):
    assert evaluate(run, reference=False, task=GOAL) == run / "evaluation" / "returns.csv"


def test_a_family_is_evaluated_after_trajectories_of_its_members(run, tmp_path, capsys):
    store = reward_free_store(tmp_path / "free.store")
    options = {"task": HIDDEN, "demonstrations": str(store.path), "trajectories": (0, 2, 4), "order": "random"}
    EvaluateVerb(run, **options).run()
    table = run / "evaluation" / HIDDEN / "demonstrations.csv"
    assert str(table) in capsys.readouterr().out
    found = [(row["task"], row["demonstrations"], row["env"]) for row in rows_of(table)]
    assert sorted(found) == sorted((HIDDEN, number, env) for number in "024" for env in "012")
    evaluate(run, task=HIDDEN)
    page = write_report(run, tmp_path / "report")
    tasks = json.loads((page.parent / "summary.json").read_text())["tasks"]
    assert tasks[HIDDEN]["demonstrations"]["Algorithm Distillation"]["numbers"] == [0, 2, 4]


def test_tasks_of_other_widths_and_training_tasks_are_refused(run):
    with pytest.raises(UserError, match=f"--task {VISIBLE}: its observation has 6 numbers, the agent .* trained on 4"):
        evaluate(run, task=VISIBLE)
    with pytest.raises(UserError, match="unknown task"):
        evaluate(run, task="point_mass_hard_to_find")
    with pytest.raises(UserError, match=f"is of {HIDDEN}'s training tasks"):
        evaluate(run, task=HIDDEN, seed=3)
    with pytest.raises(UserError, match=f"is of {HIDDEN}'s training tasks.*--seed 500000 to choose settings by"):
        evaluate(run, task=HIDDEN, seed=VALIDATION - 1)
    with pytest.raises(UserError, match="seeds 999998 to 1000000 are of .* validation and its held-out tasks"):
        evaluate(run, task=HIDDEN, seed=HELD_OUT - 2)
    with pytest.raises(UserError, match=f"is of {GOAL}'s training tasks"):  # its data are of seeds of validation too
        evaluate(run, seed=VALIDATION)


def test_members_of_validation_choose_settings_and_the_table_says_so(run):
    for seed, split in ((VALIDATION, "validation"), (HELD_OUT, "held_out")):
        table = evaluate(run, task=HIDDEN, seed=seed, envs=1, trials=1, reference=False)
        assert json.loads((table.parent / "evaluation.json").read_text())["split"] == split
    other = evaluate(run, task="point_mass_easy", envs=1, trials=1, reference=False)
    assert "split" not in json.loads((other.parent / "evaluation.json").read_text())


@pytest.mark.slow
def test_a_student_of_libraries_acts_in_libraries_of_other_sizes(tmp_path):
    """After trajectories of their members, and on trials of its own; what sees one member is no retrieval there."""
    taught = make_taught(tmp_path, (FAMILY,), updates=2, batch=4)
    task, other = f"library2_{FAMILY}", f"library3_{FAMILY}"
    agent = {"name": "decision_pretrained", "trajectories": 3, "teacher": str(taught / "teacher")}
    data = {"store": str(taught / "pm.store"), "task": task, "action_repeat": 2, "library": [1, 2]}
    sections = {"training": {"steps": 1}, "evaluation": {"trials": 2, "envs": 2, "seed": HELD_OUT}}
    run_training(make_config(TINY, data=data, agent=agent, **sections), tmp_path / "run")
    options = {"demonstrations": str(taught / "pm.store"), "trajectories": (0, 4), "context": 200}
    EvaluateVerb(tmp_path / "run", task=other, **options).run()
    rows = rows_of(tmp_path / "run" / "evaluation" / other / "demonstrations.csv")
    assert len(rows) == 8 and {row["task"] for row in rows} == {other}
    assert len(rows_of(evaluate(tmp_path / "run"))) == 8  # the agent's and random actions'
    with pytest.raises(UserError, match=f"is of {other}'s training tasks"):
        evaluate(tmp_path / "run", task=other, seed=3)
    with pytest.raises(UserError, match=f"--task {other}: retrieval keeps one state, and a library has several"):
        evaluate(taught / "teacher", task=other, envs=1, seed=HELD_OUT)
