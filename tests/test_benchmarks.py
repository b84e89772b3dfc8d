"""The benchmarks of data run, at a size that measures nothing, and end with the line that is read by programs.

Those that train are not run; what they would run is read as the command line reads it.
"""

import json
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import tyro

from benchmarks import recall, results
from benchmarks._recall_runs import STAGES
from ringrl import envs, recipes
from ringrl.agent import make_agent
from ringrl.cli.run_verbs import EvaluateVerb
from ringrl.config import load_config
from ringrl.model.tokens import TokenLayout

ROOT = Path(__file__).parents[1]


def run(*command):
    """What a benchmark prints, and its last line as JSON."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_store(tmp_path):
    command = "benchmarks.store --transitions 200000 --rollouts 5 --rounds 3".split()
    _, figures = run(*command, "--folder", str(tmp_path))
    ratios = {"vs_npz", "vs_h5py", "vs_minari", "vs_npz_1_cpu", "size_vs_npz"}
    assert set(figures) == ratios | {"chain128_ms", "chain128_ms_1_cpu", "build_peak_mb", "open_ms"}
    assert all(value > 0 for value in figures.values()) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_relabel():
    printed, figures = run(*"benchmarks.relabel --rounds 1 --rows 1000 --domains walker --cores 1 10000".split())
    assert set(figures) == {"walker", "walker_one", "bit_equal"} and figures["bit_equal"]
    assert "10000 cores: left out" in printed


@pytest.mark.slow
def test_rollout():
    pytest.importorskip("torch", reason="PyTorch is the peer")
    printed, figures = run(*"benchmarks.rollout --quick --rounds 1".split())
    ratios = {"vs_recompute_4k", "vs_torch", "vs_memory", "nearly_empty_vs_full", "env_vs_dm_control"}
    assert set(figures) == ratios | {"by_case", "steps", "environments", "processor"}
    assert all(figures[name] > 0 for name in ratios) and "PyTorch, static cache" in printed
    step = figures["steps"]["512x16"]  # tokens x environments
    assert step["torch"]["error"] < 1e-4 and 0 < step["ringrl_bfloat16"]["error"] < step["ringrl_int8"]["error"] < 0.1


@pytest.mark.slow
def test_relabelled_loader():
    printed, figures = run(*"benchmarks.relabelled_loader --quick".split())
    added = {"members", "labelled", "at_members"}
    assert set(figures) == {"relabelling_share_of_step", "shares", "ms", "step_ms", "tokens", "device"}
    assert set(figures["shares"]) == added and set(figures["ms"]) == added | {"recorded", "at_recorded"}
    assert figures["relabelling_share_of_step"] == max(figures["shares"].values())
    assert figures["tokens"] == 20 and min(figures["ms"].values()) > 0 and "members and labels" in printed


@pytest.mark.slow
def test_endurance():
    printed, figures = run(*"benchmarks.endurance --steps 40 --trials 40".split())
    assert {name: each["number"] for name, each in figures.items()} == {"steps": 40, "trials": 40}
    assert all(each["arrays_mb"] < 1 for each in figures.values()) and "resident MB" in printed


@pytest.mark.slow
def test_recall(tmp_path):
    row = "none, trained on 64"
    options = "--lengths 64 512 --exact 512 --out".split()
    printed, figures = run("benchmarks.recall", "--only", row, *options, str(tmp_path))
    assert set(figures) == {"lengths", "right", "exact"} and figures["lengths"] == [64, 512]
    assert figures["right"][row][0][0] > 0.95 and row in printed
    assert all(figures["exact"][way]["difference"] < 1e-3 for way in ("cache", "ring4"))
    assert figures["exact"]["cache_int8"]["right"] > 0.9


@pytest.mark.parametrize("name", recall.ROWS)
def test_the_rows_of_recall_load(name):
    settings, longest = recall.ROWS[name]
    config = load_config("recall", tuple(f"{key}={value}" for key, value in settings.items()))
    decoder = make_agent(config.agent).decoder
    assert longest in STAGES and decoder is not None and decoder.tokens.vocabulary == recall.VOCABULARY
    assert (config.training.row_steps, (config.training.batch, config.training.steps)) == next(iter(STAGES.items()))


@pytest.mark.slow
def test_ring_context(tmp_path):
    """Of a student that has hardly learned, on data of 40 episodes."""
    store, run_of = tmp_path / "pm.store", {name: tmp_path / name for name in ("teacher", "student")}
    steps = "--policy random --action-repeat 4 --time-limit 400 --episodes 40"
    collect = f"collect --task point_mass_easy {steps} --out {tmp_path}/pm"
    build = f"build_store {tmp_path}/pm --tasks point_mass_easy --families point_mass_goal_30mm --out {store}"
    few = f"data.store={store} training.steps=2 training.log_every=2 training.checkpoint_every=2"
    small = "agent.trajectories=4 agent.fewest=4 training.row_steps=400"
    for command in (
        f"data {collect}",
        f"data {build}",
        f"train relabelled_teacher {few} --out {run_of['teacher']}",
        f"train relabelled_dpt {few} {small} agent.teacher={run_of['teacher']} --out {run_of['student']}",
    ):
        subprocess.run([sys.executable, "-m", "ringrl.cli", *command.split()], cwd=ROOT, check=True)
    given = f"--run {run_of['student']} --test {store} --envs 2"
    _, figures = run(*f"benchmarks.ring_context --quick {given}".split())
    rates = {f"{of}tokens_per_{unit}" for of in ("", "dense_") for unit in ("s", "core_s")}
    assert set(figures) == rates | {"losses", "gradients", "returns", "mebibytes", "processor", "cores"}
    assert max(figures["losses"].values()) < 1e-5 and max(figures["gradients"].values()) < 1e-4
    assert figures["returns"] < 0.1 and min(figures["tokens_per_s"].values()) > 0
    long = figures["mebibytes"]["4000"]
    assert long["8"] < long["4"] < long["1"] < long["dense"]
    assert not (run_of["student"] / "evaluation").exists()  # the run's own tables are not replaced


JOBS = {job.name: job for row in results.ROWS.values() for job in row}


@pytest.mark.parametrize("name", JOBS)
def test_the_trainings_of_the_evidence_are_of_configs_that_load(name):
    job = JOBS[name]
    config = load_config(job.config, (*(f"{key}={value}" for key, value in job.changes(2).items()), "seed=2"))
    assert config.seed == 2 and set(job.after) <= set(JOBS)
    steps_of = [data for chain in job.data for data in chain]
    made = {data.out: shlex.split(data.command) for data in steps_of}
    arguments = made[Path(config.data.store)]  # what is trained on is made before
    said = dict(pairwise(shlex.split(" ".join(data.command for data in steps_of))))  # --name to its value
    task, family = config.data.task, envs.family_of(config.data.task)
    assert task in envs.tasks(envs.split_task(task)[0]) and (task if family is None else family.name) in arguments
    repeat, trajectories = int(said["--action-repeat"]), getattr(config.agent, "trajectories", 1)
    assert config.data.action_repeat % repeat == 0 if family else config.data.action_repeat == repeat
    steps = -(-envs.make_env(task).time_limit_steps // config.data.action_repeat)
    if make_agent(config.agent).decoder is not None:
        assert steps <= config.model.max_steps
        assert trajectories <= config.model.max_trials or config.model.trial_encoding != "table"
        filled = config.training.packing and config.training.row_steps % (trajectories * steps) == 0
        assert filled or config.training.row_steps == trajectories * steps or hasattr(config.agent, "window")
    if arguments[0] == "collect_histories":
        assert config.evaluation.seed >= envs.HELD_OUT and trajectories <= int(said["--trials"])


@pytest.mark.parametrize("name", [name for name in JOBS if "--trajectories" in " ".join(JOBS[name].evaluations)])
def test_contexts_have_room_for_all_trajectories_and_a_trial(name):
    job = JOBS[name]
    config = load_config(job.config, tuple(f"{key}={value}" for key, value in job.changes(0).items()))
    decoder = make_agent(config.agent).decoder
    for command in [shlex.split(each) for each in job.evaluations if "--trajectories" in each]:
        verb = tyro.cli(EvaluateVerb, args=["RUN", *command])
        if decoder is None:
            assert verb.context is None  # refused
            continue
        assert isinstance(decoder.tokens, TokenLayout)
        room = (verb.context or 0) // decoder.tokens.tokens_per_step or config.training.row_steps
        steps = -(-envs.make_env(config.data.task).time_limit_steps // config.data.action_repeat)
        assert (max(verb.trajectories) + 1) * steps <= room


def test_the_last_line_says_what_is_earned_after_each_number_of_trajectories(tmp_path):
    def estimate(value):
        return {"value": value, "low": value, "high": value}

    student = {"first": estimate(3.0), "last": estimate(3.0), "normalised": {"first": estimate(0.5)}}
    teacher = {"first": estimate(90.0), "last": estimate(91.0), "normalised": None}
    shown = {"numbers": [0, 1, 128], "first": {"points": [estimate(3.0), estimate(9.0), estimate(60.0)]}}
    task = {"agents": {"DPT": student, "TD3": teacher}, "demonstrations": {"DPT": shown}}
    (tmp_path / "summary.json").write_text(json.dumps({"tasks": {"hidden": task}}))
    line = results._last_line(tmp_path)["hidden"]
    assert line["DPT"] == {"first": 3.0, "last": 3.0, "first_normalised": 0.5, "last_normalised": None} | {
        "after_trajectories": {"0": 3.0, "1": 9.0, "128": 60.0}
    }
    assert line["TD3"] == {"first": 90.0, "last": 91.0, "first_normalised": None, "last_normalised": None}


@pytest.mark.parametrize("row", results.ROWS)
def test_the_agents_of_a_task_are_evaluated_alike(row):
    """The same environments, and the largest of the same number of trials."""
    found = {}
    for job in results.ROWS[row]:
        config = load_config(job.config, tuple(f"{key}={value}" for key, value in job.changes(0).items()))
        e = config.evaluation
        assert found.setdefault(config.data.task, (e.trials, e.envs, e.seed)) == (e.trials, e.envs, e.seed)
    assert len({job.name for job in results.ROWS[row]}) == len(results.ROWS[row])  # each has its own run directory


def test_data_are_made_once_and_what_follows_them_again(tmp_path, monkeypatch):
    ran = []

    def make(command, _cores):
        ran.append(command)
        out = Path(shlex.split(command)[shlex.split(command).index("--out") + 1])
        out.mkdir(exist_ok=True)

    monkeypatch.setattr(results, "_ringrl", make)
    files, store = results.Data(tmp_path / "files", "collect"), results.Data(tmp_path / "store", "build_store")
    results._make((files, store), False, {0})
    results._make((files, store), False, {0})
    assert ran == [f"data collect --out {files.out}", f"data build_store --out {store.out}"]
    files.out.rmdir()
    results._make((files, store), False, {0})
    assert ran[2:] == [f"data collect --out {files.out}", f"data build_store --out {store.out} --overwrite"]
    with pytest.raises(SystemExit, match="files was made by another command; remove it"):
        results._make((results.Data(files.out, "collect --seed 1"), store), False, {0})


def test_the_data_of_the_evidence_are_of_steps_that_take_its_arguments():
    steps = [data for job in JOBS.values() for chain in job.data for data in chain]
    for command in {data.command: data for data in steps}.values():
        name, *arguments = shlex.split(command.command)
        step = recipes.load("data", name)
        assert tyro.cli(step.Args, args=[*arguments, "--out", str(command.out)]).out == command.out


def test_a_run_is_copied_without_its_evaluations_once_it_is_finished(tmp_path):
    trained, run = tmp_path / "trained", tmp_path / "copy"
    for name in ("checkpoints/900", "evaluation", "report"):
        (trained / name).mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/900/part", "evaluation/returns.csv"):
        (trained / name).write_text(name)
    with pytest.raises(SystemExit, match="trained is not there, or not finished: it is of another row"):
        results._copy_run(trained, run)
    (trained / "timing.json").write_text("{}")
    results._copy_run(trained, run)
    assert {str(file.relative_to(run)) for file in run.rglob("*")} == {
        "config.yaml", "checkpoints", "checkpoints/900", "checkpoints/900/part",
    }  # fmt: skip
