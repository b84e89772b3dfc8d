"""What the context is worth: trajectories in it, target returns, ablations; from synthetic runs to words."""

import json

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.reporting import write_report
from ringrl.reporting.statistics.bootstrap import Estimate
from ringrl.reporting.statistics.context_effects import AblationEffect, finding
from ringrl.reporting.statistics.evaluated_run import read_run
from ringrl.reporting.statistics.series import arrange
from ringrl.reporting.statistics.task_statistics import Analysis, analyse

SMALL = {"points": 0, "data": False, "target": None}


def analysis(*paths) -> Analysis:
    (section,) = arrange([read_run(path) for path in paths])
    return analyse(section)


def distillation(make_run, trajectories: int, seed: int = 0, **options):
    """A labelled run of Algorithm Distillation with that many trajectories in its context."""
    label = options.pop("label", f"AD, {trajectories} trials in context")
    options = SMALL | {"agent": "algorithm_distillation", "label": label, "trajectories": trajectories} | options
    return make_run(f"{label}-{trajectories}-{seed}", seed=seed, **options)


def test_labels_are_shown_as_they_are_in_order_of_their_numbers_and_pooled_over_seeds(make_run):
    runs = [distillation(make_run, n, seed, envs=3) for n in (16, 2) for seed in (0, 1)]
    runs.append(make_run("v", label="Mine v1.5", envs=3, **SMALL))
    (section,) = arrange([read_run(run) for run in runs])
    assert [series.label for series in section.series] == [
        "Mine v1.5", "AD, 2 trials in context", "AD, 16 trials in context",
    ]  # fmt: skip
    assert [series.agent.stem for series in section.series[1:]] == ["algorithm_distillation"] * 2
    assert [series.seeds for series in section.series] == [(0,), (0, 1), (0, 1)] and not section.notes


def test_runs_without_a_label_are_distinguished_by_their_trajectories(make_run):
    paths = [make_run(f"n{n}", trajectories=n, seed=n, **SMALL) for n in (4, 1)]
    (section,) = arrange([read_run(path) for path in paths])
    assert [s.label for s in section.series] == [
        "Agentic Transformer, 1 trajectory", "Agentic Transformer, 4 trajectories",
    ]  # fmt: skip


def test_expert_rows_are_a_level_and_the_hundred(make_run):
    found = analysis(make_run(expert=480.0), make_run("other", seed=1, expert=480.0))
    assert list(found.statistics) == ["Agentic Transformer"]
    assert found.levels.expert is not None and found.levels.random is not None
    assert found.section.expert.shape == (8, 2)  # the same environments in both runs count once
    assert found.levels.expert.value == pytest.approx(479.875)  # 479, 480, 481, 479, 480, 481, 479, 480
    assert found.levels.scale == (found.levels.random.value, found.levels.expert.value)


def test_a_curve_over_trajectories_rises_or_does_not(make_run):
    gains = {1: 0.0, 2: 30.0, 4: 20.0, 8: 60.0}
    runs = [distillation(make_run, n, seed, gain=gain) for n, gain in gains.items() for seed in (0, 1)]
    (curve,) = analysis(*runs).curves
    assert curve.label == "Algorithm Distillation" and curve.trajectories == (1, 2, 4, 8) and curve.trials == 4
    assert [curve.gain[measure].above for measure in ("last", "max_of_n")] == [True, True]
    assert [(step.fewer, step.more, step.above) for step in curve.neighbours["last"]] == [
        (1, 2, True), (2, 4, False), (4, 8, True),
    ]  # fmt: skip
    assert curve.gain["last"].difference.value == pytest.approx(
        180, abs=1
    )  # three trials of 60 more: the noise is the same
    assert curve.differ == ()
    words = finding(curve, "last")
    assert "8 trajectories" in words and "above it (+180" in words
    assert "it rises between 1 and 2, between 4 and 8; it falls between 2 and 4." in words


def test_a_level_curve_claims_nothing(make_run):
    flat = [distillation(make_run, n, seed=2 * n + k, gain=0.0) for n in (1, 2, 4) for k in (0, 1)]
    (curve,) = analysis(*flat).curves
    assert curve.gain["last"].above is None
    assert "no difference shown between 1 and 2, between 2 and 4." in finding(curve, "last")


def test_a_curve_of_single_seeds_allows_no_verdict(make_run):
    steep = [distillation(make_run, n, gain=50.0 * n) for n in (1, 2, 4)]
    (curve,) = analysis(*steep).curves
    assert curve.gain["last"].difference.low > 0 and curve.gain["last"].above is None
    assert "one training seed, so no verdict (+" in finding(curve, "last")
    assert finding(curve, "last").endswith("no verdict between neighbours either.")


def test_two_numbers_are_no_curve_and_labels_that_differ_in_words_are_two_curves(make_run):
    two = [distillation(make_run, n, envs=2) for n in (1, 2)]
    assert analysis(*two).curves == ()
    six = [distillation(make_run, n, label=f"{kind} {n}", envs=2) for kind in ("sorted", "file") for n in (1, 2, 4)]
    assert [curve.label for curve in analysis(*six).curves] == ["file", "sorted"]


def test_the_label_of_a_single_trial_belongs_to_the_curve(make_run):
    words = {1: "AD, 1 trial", 2: "AD, 2 trials", 4: "AD, 4 trials"}
    runs = [distillation(make_run, n, label=label, envs=2) for n, label in words.items()]
    runs.append(distillation(make_run, 2, label="Another", envs=2))
    (curve,) = analysis(*runs).curves
    assert curve.label == "AD, trials" and curve.trajectories == (1, 2, 4)


def test_a_sweep_over_targets_is_pooled_and_shown(make_run):
    runs = [make_run(f"s{s}", seed=s, envs=3, targets=(200.0, 400.0, 10.0 + s)) for s in (0, 1)]
    found = analysis(*runs)
    (series,) = found.section.series
    assert series.sweep is not None and series.sweep.targets == (200.0, 400.0)  # those that both seeds have
    assert series.sweep.returns.shape == (2, 2, 3, 4)
    points = found.sweeps["Agentic Transformer"]
    assert [point.mean.value for point in points] == pytest.approx([180, 360], abs=5)
    assert points[0].max_of_n.value > points[0].mean.value


def test_a_sweep_without_targets_is_refused(make_run):
    run = make_run(targets=(200.0,))
    file = run / "evaluation" / "targets.csv"
    file.write_text(file.read_text().replace("200.0", ""))
    with pytest.raises(UserError, match=r"targets.csv line 2: a sweep over targets needs a target_return"):
        read_run(run)


def test_an_ablation_without_a_trial_is_refused_by_its_name(make_run):
    run = make_run(ablations={"blind": 0.0})
    file = run / "evaluation" / "ablation-blind.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))
    with pytest.raises(UserError, match=r"ablation-blind.csv: agentic_transformer has no trial 3 in env 7"):
        arrange([read_run(run)])


def test_ablations_are_paired_pooled_and_put_into_words(make_run):
    costs = {"other": 30.0, "blind": 0.0, "foreign": -50.0, "truncated": 60.0}
    found = analysis(*(make_run(f"s{s}", seed=s, ablations=costs) for s in (0, 1, 2)))
    results = found.ablations["Agentic Transformer"]
    assert [result.name for result in results] == ["truncated", "foreign", "blind", "other"]
    truncated, foreign, blind, other = results
    assert truncated.seeds == 3 and truncated.envs == 8
    assert truncated.cost.value == pytest.approx(60, abs=2) and truncated.cost.high - truncated.cost.low < 4
    assert truncated.intact == found.statistics["Agentic Transformer"].by_trial
    assert truncated.sentence.startswith("Without earlier trials the last trial earns ")
    assert " less [" in truncated.sentence
    assert foreign.sentence.startswith("With another environment’s earlier trials the last trial earns ")
    assert " more [4" in foreign.sentence or " more [5" in foreign.sentence
    assert blind.matters is None and "no difference shown" in blind.sentence
    assert other.sentence.startswith("Under the ablation “other” the last trial earns")


def test_ablation_sentences_say_what_the_interval_carries():
    def result(cost: Estimate, envs: int = 8) -> AblationEffect:
        return AblationEffect("truncated", 1, envs, (), (), cost)

    words = "Without earlier trials the last trial earns 60.0 less [40.0, 80.0]."
    assert result(Estimate(60.0, 40.0, 80.0)).sentence == words
    assert "earns 60.0 more [40.0, 80.0]." in result(Estimate(-60.0, -80.0, -40.0)).sentence
    assert "too few environments (5)" in result(Estimate(60.0, 40.0, 80.0), envs=5).sentence


def test_ablations_and_sweeps_of_another_checkpoint_or_seed_are_noted(make_run):
    run = make_run(ablations={"blind": 5.0, "foreign": 5.0}, targets=(200.0, 400.0))
    assert arrange([read_run(run)])[0].notes == ()
    for table, change in (("ablation-blind", {"checkpoint_step": 500}), ("targets", {"seed": 7, "context": None})):
        file = run / "evaluation" / f"{table}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (run / "evaluation" / "ablation-foreign.json").unlink()  # what does not say is not compared
    assert arrange([read_run(run)])[0].notes == (
        "run: ablation-blind.csv is of checkpoint 500, returns.csv of checkpoint 1000: evaluate again.",
        "run: targets.csv is of evaluation seed 7, context not given, returns.csv of evaluation seed 1000, context "
        "16000: evaluate again.",
    )


def test_tables_of_runs_of_schema_0_are_read_under_their_old_name(make_run):
    run = make_run(ablations={"blind": 5.0})
    expected = analysis(run).ablations
    for suffix in ("csv", "json"):
        (run / "evaluation" / f"ablation-blind.{suffix}").rename(run / "evaluation" / f"probe-blind.{suffix}")
    assert analysis(run).ablations == expected and arrange([read_run(run)])[0].notes == ()


def test_only_the_seeds_that_were_ablated_are_compared(make_run):
    found = analysis(make_run("a", seed=0, ablations={"blind": 5.0}), make_run("b", seed=1))
    (ablation,) = found.section.series[0].ablations
    assert ablation.intact.shape == ablation.ablated.shape == (1, 8, 4)
    np.testing.assert_array_equal(ablation.intact, found.section.series[0].returns[:1])


def test_the_page_and_the_summary_carry_all_of_it(make_run, tmp_path):
    options = {"envs": 6, "expert": 480.0, "target": 400.0}
    runs = [distillation(make_run, n, gain=10.0 * n, **options) for n in (1, 2)]
    runs.append(
        distillation(make_run, 4, ablations={"truncated": 60.0, "mine": 5.0}, targets=(200.0, 400.0), **options)
    )
    out = tmp_path / "report"
    text = write_report(runs, out).read_text()
    names = {path.name for path in out.iterdir()}
    assert {"trajectories.png", "ablations.png", "target_return.png"} <= names
    task = json.loads((out / "summary.json").read_text())["tasks"]["walker_run"]
    curve = task["by_trajectories"]["Algorithm Distillation"]
    assert curve["trajectories"] == [1, 2, 4] and len(curve["max_of_n"]["points"]) == 3
    assert curve["last"]["finding"].split(":")[0] in text
    label = "AD, 4 trials in context"
    assert [point["target"] for point in task["targets"][label]] == [200, 400]
    assert set(task["targets"][label][0]) == {"target", "first", "last", "mean", "max_of_n"}
    assert set(task["ablations"][label]) == {"truncated", "mine"}
    assert task["ablations"][label]["truncated"]["matters"] is True
    assert task["references"]["expert"]["value"] == 480 and task["references"]["hundred"] == "mean of the expert"
    for words in ("Return against trajectories in the context", "What the earlier trials are worth",
                  "What each target achieved", "Expert", "Without earlier trials the last trial earns"):  # fmt: skip
        assert words in text
