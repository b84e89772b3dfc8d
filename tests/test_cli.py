"""The command line: a failure is one line on stderr and a status, `--debug` is a traceback, `--help` is everywhere."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from ringrl import __version__, cli, recipes
from ringrl.cli import entry
from ringrl.cli.entry import VERBS
from ringrl.cli.failures import explain
from ringrl.config import dump_config
from ringrl.formats.exorl import write_episode
from ringrl.run import RunDirectory


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "Expected one of {demo, train, evaluate"),
        ("nope", "nope: no verb of that name; there are demo, train"),
        ("trian", "trian: no verb of that name; did you mean train?"),
        ("demo --scale 3", "--scale 3.0"),
        ("demo --scale x", "--scale"),
        ("train", "needs a CONFIG"),
        ("train nope", "nope: configs has no recipe"),
        ("train nope.yaml", "nope.yaml: no such file"),
        ("train demo_dt training.stps=3", "demo_dt.yaml: `training.stps`: unknown key; did you mean steps"),
        ("train demo_dt trainng.steps=3", "demo_dt.yaml: `trainng`: unknown key; did you mean training?"),
        ("train demo_dt agent.windw=3", "demo_dt.yaml: `agent.windw`: unknown key; the agent's file has all"),
        ("train demo_dt evaluation.mesh.sq=3", "demo_dt.yaml: `evaluation.mesh.sq`: unknown key"),
        ("train demo_dt training.steps=x", "`training.steps`"),
        ("train demo_dt training.steps", "a.b=c"),
        ("train demo_dt --bogus", "Unrecognized options: --bogus"),
        ("train demo_dt --resume run", "give it no CONFIG"),
        ("train --resume nowhere", "nowhere: not a run directory"),
        ("train --resume nowhere training.steps=3 seed=1", "nowhere: not a run directory"),
        ("train demo_dt data.store=nowhere --out run", "nowhere does not exist"),
        ("evaluate", "RUN"),
        ("evaluate nowhere", "nowhere: not a run directory"),
        ("evaluate nowhere --trials x", "--trials"),
        ("evaluate nowhere --ablation blind", "nowhere: not a run directory"),
        ("evaluate nowhere --probe blind", "nowhere: not a run directory"),  # the earlier name of --ablation
        ("report", "needs one RUN or more"),
        ("report nowhere", "nowhere: not a run directory"),
        ("plan", "plan needs a CONFIG"),
        ("plan demo_dt", "plan needs a CONFIG (see `ringrl ls`) and a --topology"),
        ("plan --tables --exchanges", "plan takes one of --find-max-context"),
        ("plan nope --topology v5e:2x4", "nope: configs has no recipe"),
        ("ls x", "Unrecognized options: x"),
        ("cp", "Missing from ringrl cp"),
        ("cp nope there", "nope: no recipe of that name"),
        ("data", "needs a STEP: build_store, card, check, collect"),
        ("data nope", "nope: data has no recipe"),
        ("data collect --bogus", "Unrecognized options: --bogus"),
        ("data collect --policy x", "--policy"),
        ("data build_store", "--out"),
        ("data build_store nowhere --out store", "nowhere"),
    ],
)
def test_a_failure_is_one_line_and_status_two(arguments, message, ringrl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = ringrl(*arguments.split())
    assert (status, out) == (2, "")
    assert err.startswith("ringrl: ") and err.count("\n") == 1 and err.endswith("\n") and message in err
    assert not (tmp_path / "run" / "config.yaml").exists() and not (tmp_path / "store").exists()


@pytest.mark.parametrize("arguments", ["train nope", "evaluate nowhere", "data nope"])
def test_debug_shows_the_traceback(arguments, monkeypatch):
    from ringrl.errors import UserError

    monkeypatch.setattr(sys, "argv", ["ringrl", *arguments.split(), "--debug"])
    with pytest.raises(UserError):
        cli.main()


@pytest.mark.parametrize("error", [ValueError("two\nlines"), RuntimeError("out of memory"), OSError("disk full")])
def test_an_unforeseen_error_is_one_line_too(error, ringrl, monkeypatch):
    def fail() -> None:
        raise error

    monkeypatch.setattr(recipes, "listing", fail)
    status, out, err = ringrl("ls")
    first = f"ringrl: {type(error).__name__}: {' '.join(str(error).split())}"
    assert (status, out, err) == (1, "", f"{first} (--debug shows where)\n")
    with pytest.raises(type(error)):
        ringrl("ls", "--debug")


def test_an_interrupt_is_one_line(ringrl, monkeypatch):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "listing", interrupt)
    assert ringrl("ls") == (130, "", "ringrl: interrupted\n")


@pytest.mark.parametrize(
    "argument, expanded",
    [
        ("~/runs/a", "/home/me/runs/a"),
        ("--out=~/runs/a", "/home/me/runs/a"),
        ("--out=~", "/home/me"),
        ("data.store=~/stores/a", "/home/me/stores/a"),
        ("agent.teacher=~", "~"),  # YAML's null
        ("runs/~/a", "runs/~/a"),
        ("~nobody-here/a", "~nobody-here/a"),
    ],
)
def test_the_home_folder_is_written_out_where_shells_leave_it(argument, expanded, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = []
    monkeypatch.setattr(entry, "_dispatch", given.extend)
    monkeypatch.setattr(sys, "argv", ["ringrl", "evaluate", argument])
    cli.main()
    assert given == ["evaluate", argument.partition("~")[0] + expanded if "=" in argument else expanded]


@pytest.mark.parametrize("verb", ["", *VERBS, "data", "data collect", "data build_store", "data relabel"])
def test_every_verb_has_help(verb, ringrl):
    status, out, err = ringrl(*verb.split(), "--help")
    assert (status, err) == (0, "") and "usage: ringrl" in out.lower()


def test_ls_cp_and_version(ringrl, tmp_path):
    status, out, _ = ringrl("ls")
    assert status == 0 and {"agents/", "data/", "configs/"} <= set(out.split()) and "decision_transformer" in out
    status, out, _ = ringrl("cp", "decision_transformer", tmp_path / "mine.py")
    assert (status, out) == (0, f"copied to {tmp_path / 'mine.py'}\n") and (tmp_path / "mine.py").is_file()
    status, _, err = ringrl("cp", "decision_transformer", tmp_path / "mine.py")
    assert status == 2 and "already exists" in err
    assert ringrl("--version") == (0, f"ringrl {__version__}\n", "")


def test_ls_imports_neither_jax_nor_mujoco():
    code = "import sys; from ringrl.cli import main; sys.argv = ['ringrl', 'ls']; main(); " + (
        "print([name for name in ('jax', 'mujoco', 'dm_control', 'flax', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_usage_error_is_one_line_in_any_encoding(encoding):
    command = [sys.executable, "-m", "ringrl.cli", "cp"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("ringrl: Missing from ringrl cp: STR") and "--- " not in done.stderr


@pytest.mark.parametrize("arguments", [["ls"], ["--help"], ["data", "--help"]])
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_closed_output_is_no_error(arguments, buffered):
    reading, writing = os.pipe()
    os.close(reading)
    command, environment = [sys.executable, "-m", "ringrl.cli", *arguments], os.environ | {"PYTHONUNBUFFERED": buffered}
    with os.fdopen(writing) as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device here")
def test_a_full_output_is_one_line(unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ringrl.cli", "ls"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "standard output" in line and "No space left on device" in line


def test_a_stream_that_is_closed_from_the_start_is_no_error_and_no_file(tmp_path):
    """The copy would otherwise be opened as the standard output, and end in what is said about it."""
    script = "import sys; from ringrl.cli import main; main()"
    command = f"'{sys.executable}' -c '{script}' cp decision_transformer '{tmp_path}/mine.py' <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, check=False).returncode == 0
    assert (tmp_path / "mine.py").read_bytes() == recipes.find("agents", "decision_transformer").read_bytes()


@pytest.mark.parametrize(
    "error, status, sentence",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x.csv"),
            2,
            "runs/x.csv: No space left on device; make",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "a", None, "b"), 2, "a -> b: Permission denied; check its"),
        (
            OSError(errno.EROFS, "Read-only file system"),
            2,
            "the standard output, or a file whose name is not known: Re",
        ),
        (ConnectionError("no route"), 1, "ConnectionError: no route (--debug shows where)"),
        (MemoryError(), 1, "out of memory: give"),
        (AssertionError(), 1, "AssertionError: no more is known (--debug shows where)"),
    ],
    ids=str,
)
def test_an_error_of_the_system_is_a_sentence(error, status, sentence):
    found = explain(error)
    assert found[0] == status and found[1].startswith(sentence)


@pytest.mark.parametrize("platform", ["cuda", "no_such"])
def test_devices_that_are_not_there_are_named(platform):
    lines = "import jax", "from ringrl.cli.failures import explain", "try: jax.devices()"
    code = "\n".join([*lines, "except Exception as error: print(explain(error)[1])"])
    environment = os.environ | {"JAX_PLATFORMS": platform}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    if done.stdout:  # else there are such devices
        assert done.stdout.startswith(f"JAX_PLATFORMS={platform}: there are no such devices for JAX here")


def test_the_number_of_simulated_devices_is_checked(ringrl, monkeypatch):
    monkeypatch.setenv("RINGRL_CPU_DEVICES", "many")
    status, _, err = ringrl("ls")
    assert status == 2 and err.count("\n") == 1 and "RINGRL_CPU_DEVICES=many" in err


def test_train_prints_progress_refuses_a_second_run_and_stops_at_nan(ringrl, tiny_config, tmp_path):
    config = tiny_config(
        {"name": "behavior_cloning", "fused": True, "window": 4, "fraction": 1.0},
        training={"steps": 4, "row_steps": 4, "log_every": 2},
        optimizer={"warmup_steps": 0},
        model={"remat": "none"},
    )
    (tmp_path / "c.yaml").write_text(dump_config(config))
    run = tmp_path / "run"
    status, out, err = ringrl("train", tmp_path / "c.yaml", "--out", run)
    first, second, last = out.splitlines()
    assert (status, err, last) == (0, "", f"run: {run}")  # nothing from Orbax, JAX or Grain
    assert first.startswith("behavior_cloning: step 2/4, loss 1.") and "tokens/s, ETA 0:00:" in first
    assert second.endswith("ETA 0:00:00")
    status, out, err = ringrl("train", tmp_path / "c.yaml", "--out", run)
    assert (status, out) == (2, "") and "there is a run already" in err and err.count("\n") == 1
    assert ringrl("train", "--resume", run) == (0, f"run: {run}\n", "")
    again = tmp_path / "again.store"
    shutil.copytree(config.data.store, again)
    status, out, err = ringrl("train", "--resume", run, f"data.store={again}", "training.steps=6")
    assert (status, err) == (0, "") and "step 6/6" in out
    assert RunDirectory(run).settings()["data"]["store"] == str(again)
    for change, message in (
        ("seed=1", "was trained with seed 0, not 1"),
        ("agent.name=decision_transformer", "its agent is behavior_cloning, not decision_transformer"),
        ("data.task=cartpole_swingup", "not the data that"),
        ("data.action_repeat=2", "began with data.action_repeat=4, not 2"),
        ("model.width=32", "began with model.width=16, not 32"),
        ("model.rope_base=5e5", "began with model.rope_base=10000.0, not 500000.0"),
    ):
        status, out, err = ringrl("train", "--resume", run, change)
        assert (status, out) == (2, "") and message in err and err.count("\n") == 1, change
    wild = ("optimizer.learning_rate=1e30", "optimizer.clip_norm=1e30")
    status, _, err = ringrl("train", tmp_path / "c.yaml", *wild, "--out", tmp_path / "wild")
    assert status == 1 and err.startswith("ringrl: FloatingPointError: ") and err.count("\n") == 1
    assert "weight_max is " in err and " at step 1: lower optimizer.learning_rate (1e+30 there)" in err


def test_one_truncated_file_is_named_and_leaves_no_store(tmp_path):
    from ringrl import envs
    from ringrl.collect.record import record_episode

    collect = recipes.load("data", "collect")
    env = envs.make_env("cartpole_swingup", seed=0, time_limit=20)
    for index in range(3):
        episode, _ = record_episode(env, collect.RandomCollector(1, seed=index).act)
        path = write_episode(tmp_path / "cartpole" / "mine" / "buffer", index, episode)
    path.write_bytes(path.read_bytes()[:-200])
    command = [sys.executable, "-m", "ringrl.cli", "data", "build_store", "cartpole/mine", "--out", "store"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    (last,) = done.stderr.splitlines()
    assert last.startswith("ringrl: ") and path.name in last and "truncated" in last
    assert os.listdir(tmp_path) == ["cartpole"]


def test_help_names_debug_and_a_completion_that_can_be_written(ringrl, tmp_path):
    status, out, _ = ringrl("--help")
    assert status == 0 and "--debug" in out and "--tyro-write-completion" in out
    assert ringrl("--tyro-write-completion", "bash", tmp_path / "completion")[0] == 0
    written = (tmp_path / "completion").read_text()
    assert "ringrl" in written and "--heartbeat-timeout" in written
