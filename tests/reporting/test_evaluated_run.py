"""Reading run directories and arranging them: what is tolerated, what is refused, and in which words."""

import json
import shutil

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.reporting.statistics.evaluated_run import read_dataset, read_metrics, read_run, read_runs
from ringrl.reporting.statistics.series import arrange
from ringrl.reporting.statistics.task_statistics import agent_statistics, verdict
from ringrl.run import RunDirectory


def test_a_run_without_evaluation_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=f"ringrl evaluate {tmp_path}"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="not a run directory"):
        read_run(tmp_path / "nowhere")


def test_metrics_keep_the_last_line_of_a_step_and_skip_what_has_no_loss(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 9}\n{"step": 1, "loss": 3, "mfu": 0.5}\n\n{"step": 2, "loss": 4}\n'
                    '{"step": 3, "loss": NaN}\n{"step": 4}\n{"step": 5, "lo')  # fmt: skip
    metrics = read_metrics(RunDirectory(tmp_path))
    assert metrics.step.tolist() == [1, 2]
    assert metrics.loss.tolist() == [3, 4]
    assert metrics.mfu[0] == 0.5 and np.isnan(metrics.mfu[1]) and np.isnan(metrics.tokens).all()
    assert len(read_metrics(RunDirectory(tmp_path / "none")).step) == 0


@pytest.mark.parametrize("line", ["{", "[1]"])
def test_a_broken_line_within_the_metrics_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"step": 1, "loss": 1}}\n')
    with pytest.raises(UserError, match="line 1: (Invalid JSON|Input should be an object)"):
        read_metrics(RunDirectory(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"relabel": ...}, "dataset.json: `relabel`: Field required"),
        ({"source": [0]}, "equally many"),
        ({"source": [0, 0, 7]}, "must index the 1 entries"),
        ({"returns": ["a", 1, 2]}, "`returns.0`: Input should be a valid number"),
    ],
)
def test_broken_dataset_cards_are_refused(tmp_path, change, words):
    card = {
        "task": "t", "domain": "d", "store": "s", "episodes": 3, "steps": 9, "relabel": "exact",
        "sources": [{"name": "a", "collector": "rnd", "episodes": 3}], "returns": [1, 2, 3], "source": [0, 0, 0],
    }  # fmt: skip
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(card))
    good = read_dataset(path)
    assert good is not None and good.returns.tolist() == [1, 2, 3] and good.sources[0].collector == "rnd"
    path.write_text(json.dumps({key: value for key, value in (card | change).items() if value is not ...}))
    with pytest.raises(UserError, match=words):
        read_dataset(path)


def test_config_and_evaluation_are_optional_but_must_parse(make_run):
    path = make_run()
    for name in ("config.yaml", "evaluation/evaluation.json", "metrics.jsonl", "dataset.json"):
        (path / name).unlink()
    run = read_run(path)
    assert run.config == {} and run.evaluation == {} and run.dataset is None and len(run.metrics.step) == 0
    (path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="config.yaml: not valid YAML"):
        read_run(path)
    (path / "config.yaml").write_text("seed: 0")
    (path / "evaluation/evaluation.json").write_text("{")
    with pytest.raises(UserError, match="evaluation.json: Invalid JSON.*line 1"):
        read_run(path)


def test_runs_of_one_agent_are_pooled_as_seeds(make_run):
    runs = [read_run(make_run(f"run{seed}", seed=seed, envs=3, trials=2)) for seed in (0, 1)]
    (section,) = arrange(runs)
    (series,) = section.series
    assert series.label == "Agentic Transformer" and series.seeds == (0, 1) and series.returns.shape == (2, 3, 2)
    assert series.returns[1, 2, 1] == next(r.return_ for r in runs[1].returns if r.env == 2 and r.trial == 1)
    assert len(section.random) == 6 and len(section.datasets) == 1 and not section.notes


def test_random_episodes_that_several_runs_repeat_count_once(make_run):
    """Evaluation in the same environments gives every run the same random episodes under the run's own seed."""
    paths = [make_run("a", seed=0, envs=3), make_run("b", seed=1, envs=3)]
    rows = [line.split(",") for line in (paths[0] / "evaluation/returns.csv").read_text().splitlines()]
    copies = [",".join([*row[:2], "1", *row[3:]]) for row in rows if row[0] == "random"]
    table = paths[1] / "evaluation/returns.csv"
    table.write_text("\n".join([x for x in table.read_text().splitlines() if not x.startswith("random")] + copies))
    (both,) = arrange([read_run(path) for path in paths])
    (one,) = arrange([read_run(paths[0])])
    np.testing.assert_array_equal(both.random, one.random)


def test_single_random_episodes_that_coincide_are_not_left_out(make_run):
    """Of other environments an episode may have the same return by chance: only whole evaluations are repeated."""
    paths = [make_run("a", seed=0, envs=3), make_run("b", seed=1, envs=3)]
    same = next(x for x in (paths[0] / "evaluation/returns.csv").read_text().splitlines() if x.startswith("random"))
    table = paths[1] / "evaluation/returns.csv"
    lines = table.read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("random"))
    lines[first] = same.replace(",0,0,0,", ",1,0,0,")
    table.write_text("\n".join(lines))
    (section,) = arrange([read_run(path) for path in paths])
    assert section.random.shape == (6, 2) and (section.random == float(same.split(",")[5])).sum() == 2


def test_a_card_that_does_not_know_the_relabelling_is_read(make_run):
    path = make_run() / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"relabel": None}))
    data = read_dataset(path)
    assert data is not None and data.relabel == ""


def test_the_same_seed_twice_is_no_repetition(make_run):
    runs = [read_run(make_run(name, seed=4)) for name in ("short", "long")]
    (section,) = arrange(runs)
    assert [series.label for series in section.series] == ["Agentic Transformer · short", "Agentic Transformer · long"]
    assert "same seed" in section.notes[0]
    assert len(section.random) == 8  # the random policy's episodes are the same ones, and count once


def test_the_configs_seed_tells_repetitions_apart_where_the_table_does_not(make_run):
    runs = []
    for seed in (0, 1):
        path = make_run(f"run{seed}", seed=9)
        (path / "config.yaml").write_text(f"seed: {seed}\nmodel: {{layers: {seed}}}\n")
        runs.append(read_run(path))
    (section,) = arrange(runs)
    assert section.series[0].seeds == (0, 1)
    assert section.notes == ("Agentic Transformer: the runs pooled as seeds also differ in model.layers.",)


def test_pooled_runs_of_different_size_are_cut_to_what_all_have_and_say_so(make_run):
    runs = [read_run(make_run(f"r{s}", seed=s, envs=8 - s, trials=3 + s)) for s in (0, 1)]
    (section,) = arrange(runs)
    assert section.series[0].returns.shape == (2, 7, 3)
    assert "first 7 environments and 3 trials" in section.notes[0]


def test_a_missing_trial_is_refused(make_run):
    path = make_run(envs=2, trials=2, random=False)
    table = path / "evaluation" / "returns.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    with pytest.raises(UserError, match="no trial 1 in env 1"):
        arrange([read_run(path)])


def test_a_run_with_the_random_policy_alone_is_refused(make_run):
    path = make_run()
    table = path / "evaluation" / "returns.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.startswith("agentic")))
    with pytest.raises(UserError, match="only reference policies'"):
        arrange([read_run(path)])


def test_what_settings_and_data_disagree_about_is_in_the_report_once(make_run):
    """Said by the training of both runs and by one's evaluation."""
    paths = [make_run(f"run{seed}", seed=seed) for seed in (0, 1)]
    for path in paths:
        card = json.loads((path / "dataset.json").read_text())
        (path / "dataset.json").write_text(json.dumps(card | {"notes": ["model.max_steps is 9"]}))
    about = json.loads((path / "evaluation" / "evaluation.json").read_text())
    notes = {"notes": ["target return 900: far outside", "model.max_steps is 9"]}
    (path / "evaluation" / "evaluation.json").write_text(json.dumps(about | notes))
    (section,) = arrange([read_run(path) for path in paths])
    assert section.notes == ("run0, run1: model.max_steps is 9.", "run1: target return 900: far outside.")


def test_data_of_another_task_is_not_taken_for_this_ones(make_run):
    path = make_run(task="walker_run")
    card = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps(card | {"task": "walker_walk"}))
    (section,) = arrange([read_run(path)])
    assert not section.datasets and "Trained on data of walker_walk" in section.notes[0]


def test_a_copied_agent_gets_the_verdicts_of_the_original(make_run):
    """What a run says of its agent decides, not the name of its file."""
    original = make_run("a", seed=0)
    (expected,) = arrange([read_run(original)])
    copied = make_run("b", agent="mine/my_agent.py", seed=0)
    (unknown,) = arrange([read_run(copied)])
    said = {"name": "mine/my_agent.py", "display_name": "Agentic Transformer", "across_trials": True, "sha256": "0"}
    (copied / "run.json").write_text(
        json.dumps({"schema": 1, "agent": said, "store": {"given": "s", "absolute": None, "relative": None}})
    )
    (found,) = arrange([read_run(copied)])
    words = [verdict(each.series[0], agent_statistics(each.series[0].returns)) for each in (expected, found)]
    assert found.series[0].label == "Agentic Transformer" and words[0] == words[1] and "in context" in words[0]
    guess = verdict(unknown.series[0], agent_statistics(unknown.series[0].returns))
    assert unknown.series[0].label == "my_agent" and "last trial higher than first" in guess
    (both,) = arrange([read_run(original), read_run(copied)])
    labels = ["Agentic Transformer (agentic_transformer)", "Agentic Transformer (my_agent)"]
    assert [series.label for series in both.series] == labels


def test_tasks_become_sections_and_known_agents_come_first(make_run):
    runs = [
        read_run(make_run("a", task="walker_run", agent="behavior_cloning")),
        read_run(make_run("b", task="cheetah_run", agent="mine/my_agent.py")),
        read_run(make_run("c", task="walker_run", agent="decision_transformer")),
    ]
    cheetah, walker = arrange(runs)
    assert cheetah.task == "cheetah_run" and [s.label for s in cheetah.series] == ["my_agent"]
    assert [s.label for s in walker.series] == ["Decision Transformer", "Behavior Cloning"]


def test_another_tasks_tables_need_its_evaluation(make_run):
    path = make_run()
    other = path / "evaluation" / "walker_run"
    other.mkdir()
    shutil.copy(path / "evaluation" / "returns.csv", other / "demonstrations.csv")
    wanted = r"no evaluation/walker_run/returns.csv\): run `ringrl evaluate .* --task walker_run` first"
    with pytest.raises(UserError, match=wanted):
        read_runs(path)
    for table in (path / "evaluation").glob("*.csv"):
        table.unlink()
    with pytest.raises(UserError, match=wanted):
        read_runs(path)
