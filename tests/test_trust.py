"""Agents that a run or an export brings along are programs: whose are run, and whose only after a yes."""

import importlib.util
import py_compile
import shutil
import sys
from pathlib import Path

import pytest
import yaml

import ringrl
from ringrl import recipes, trust
from ringrl.agent import AgentDescription
from ringrl.agent_record import sha256
from ringrl.cli import main
from ringrl.config import parse_config
from ringrl.errors import UserError
from ringrl.run import RunDirectory

SAID = AgentDescription("Mine", across_trials=True)


def config(agent: str, task: str = "t"):
    return parse_config({"data": {"store": "nowhere", "task": task}, "agent": {"name": agent}}, "test")


@pytest.fixture(autouse=True)
def stranger(tmp_path, monkeypatch):
    """A user who has trained nothing yet, in a process that knows nothing."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setattr(trust, "_accepted", set())
    monkeypatch.chdir(tmp_path)


def forget(monkeypatch, record: bool = True) -> None:
    """Be another process; with `record`, of another user."""
    monkeypatch.setattr(trust, "_accepted", set())
    if record:
        trust.record_file().unlink()


@pytest.fixture
def foreign(tmp_path, monkeypatch) -> RunDirectory:
    """A run whose agent, its own, leaves a file where it is run. Another user made it."""
    source = recipes.copy("behavior_cloning", tmp_path / "theirs.py")
    source.write_text(source.read_text() + "\nfrom pathlib import Path\nPath('was_run').touch()\n")
    run = RunDirectory("run")
    run.write(config("theirs.py"), {"returns": [1.0], "sizes": {"observation": 2, "action": 1}}, None, SAID)
    source.unlink()
    forget(monkeypatch)
    Path("was_run").unlink()
    return run


def test_a_strangers_agent_is_not_run_and_the_line_says_what_to_do(foreign):
    with pytest.raises(UserError, match="run/agent.py: is a program that you have neither trained with") as caught:
        foreign.config()
    digest = sha256(foreign.agent_file.read_bytes())
    assert digest in str(caught.value) and "--trust" in str(caught.value) and "trust=True" in str(caught.value)
    other = config("behavior_cloning")
    other = other.model_copy(update={"agent": other.agent.model_copy(update={"name": "theirs.py"})})
    with pytest.raises(UserError, match="is a program"):
        foreign.with_own_agent(other)
    assert not Path("was_run").exists()


@pytest.mark.parametrize("verb", [["evaluate", "run"], ["export", "run"], ["train", "--resume", "run"]], ids=str)
def test_every_verb_that_would_run_it_refuses_in_one_line(foreign, verb, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ringrl", *verb])
    with pytest.raises(SystemExit) as stopped:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and "pass --trust" in line, line
    assert not Path("was_run").exists()
    monkeypatch.setattr(sys, "argv", ["ringrl", *verb, "--trust"])
    with pytest.raises(SystemExit):  # for another reason: it has no checkpoint, and no store
        main()
    assert Path("was_run").exists() and "--trust" not in capsys.readouterr().err


def test_load_agent_refuses_it_unless_trusted(foreign):
    with pytest.raises(UserError, match="trust=True"):
        ringrl.load_agent("run")
    with pytest.raises(UserError, match="checkpoints: no such folder"):
        ringrl.load_agent("run", trust=True)


def test_trust_holds_for_one_call(foreign):
    with trust.trusting(True), trust.trusting(False):
        assert foreign.config().agent.name == "run/agent.py"
    assert Path("was_run").exists() and not trust.record_file().exists()
    with pytest.raises(UserError, match="is a program"):
        foreign.config()


@pytest.mark.parametrize("answer, runs", [("y\n", True), ("YES\n", True), ("\n", False), ("n\n", False), ("", False)])
def test_at_a_terminal_there_is_a_question(foreign, monkeypatch, capsys, answer, runs):
    class Terminal:
        def __init__(self, stream):
            self.write, self.flush = stream.write, stream.flush

        def isatty(self):
            return True

        def readline(self):
            return answer

    monkeypatch.setattr(sys, "stdin", Terminal(sys.stdout))
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    if not runs:
        with pytest.raises(UserError, match="is a program"):
            foreign.config()
        return
    foreign.config()
    assert trust.record_file().stat().st_mode & 0o777 == 0o600
    assert str(foreign.agent_file.absolute()) in trust.record_file().read_text()
    forget(monkeypatch, record=False)
    monkeypatch.setattr(sys, "stdin", None)  # no terminal, no question
    assert foreign.config()


def test_what_this_user_trains_with_is_never_asked_about(tmp_path, monkeypatch):
    recipes.copy("behavior_cloning", tmp_path / "mine.py")
    Path("mine.py").write_text(Path("mine.py").read_text() + "# mine\n")
    run = RunDirectory("run")
    run.write(config("mine.py"), {"returns": []}, None, SAID)
    Path("mine.py").unlink()
    forget(monkeypatch, record=False)
    shutil.copytree("run", "copied")
    assert run.config() and RunDirectory("copied").config()


def test_shipped_agents_are_never_asked_about(monkeypatch):
    run = RunDirectory("run")
    run.write(config("behavior_cloning"), {"returns": []}, None, SAID)
    forget(monkeypatch)
    assert run.config() and not trust.record_file().exists()


def test_an_agent_that_a_run_of_before_names_by_its_path_is_not_run(foreign):
    values = {"data": {"store": "s", "task": "t"}, "agent": {"name": str(foreign.agent_file)}}
    Path("old").mkdir()
    Path("old/config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="is a program"):
        RunDirectory("old").config()
    assert not Path("was_run").exists()


def test_compiled_code_beside_an_agent_is_not_run(monkeypatch):
    """It is valid for the source by its time and size, or says that it is not to be compared at all."""
    run = RunDirectory("run")
    run.write(config("behavior_cloning"), {"returns": []}, None, SAID)
    forget(monkeypatch)
    Path("evil.py").write_text("raise SystemExit('compiled code was run')")
    compiled = importlib.util.cache_from_source(str(run.agent_file))
    py_compile.compile("evil.py", compiled, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert run.config().agent.name == "run/agent.py"
    shutil.rmtree(Path(compiled).parent)
    RunDirectory(run.path.absolute()).config()
    assert not Path(compiled).parent.exists()  # nor is any left


def test_a_module_of_the_working_folder_that_a_runs_task_names_is_not_imported(monkeypatch):
    Path("their_rig.py").write_text("raise SystemExit('was imported')")
    run = RunDirectory("run")
    run.write(config("behavior_cloning", "their_rig:Rig-v0"), {"returns": []}, None, SAID)
    assert run.config()  # it is this user's: editing it changes nothing
    Path("their_rig.py").write_text("raise SystemExit('was edited')")
    forget(monkeypatch, record=False)
    assert run.config()
    forget(monkeypatch)
    with pytest.raises(UserError, match=r"their_rig.py: is a program .* \(their_rig:Rig-v0 of a run would import it\)"):
        run.config()
    Path("their_rig.py").unlink()
    assert run.config()  # what is nowhere, or installed, is no program of the run's


def test_a_record_that_others_may_write_is_not_used(foreign, monkeypatch, caplog):
    record = trust.record_file()
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(f"{sha256(foreign.agent_file.read_bytes())}  theirs\n")
    record.chmod(0o600)
    assert foreign.config()
    record.chmod(0o660)
    with pytest.raises(UserError, match="is a program"):
        foreign.config()
    assert "others may write it" in caplog.text
    record.rename(record.with_name("elsewhere"))
    record.with_name("elsewhere").chmod(0o600)
    record.symlink_to(record.with_name("elsewhere"))
    with pytest.raises(UserError, match="is a program"):
        foreign.config()


def test_where_nothing_can_be_remembered_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    source = recipes.copy("behavior_cloning", tmp_path / "mine.py")
    trust.remember_trained(source.read_bytes(), source, "t")
    assert not caplog.text
    trust.remember_trained(b"# mine", source, "t")
    assert "mine.py: cannot be remembered as trusted" in caplog.text


def test_without_settings_of_its_own_the_record_is_in_the_home(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert trust.record_file() == tmp_path / ".config/ringrl/trusted"
