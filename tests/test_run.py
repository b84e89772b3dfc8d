"""The run directory: what it keeps of its agent and its store, and that it is read wherever it goes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from ringrl import recipes
from ringrl.agent import AgentDescription
from ringrl.agent_record import AgentRecord
from ringrl.cli.run_verbs import ExportVerb
from ringrl.config import parse_config
from ringrl.errors import UserError
from ringrl.manifest import MANIFEST
from ringrl.model_config import EARLIER
from ringrl.rollout.evaluate import evaluate
from ringrl.run import RunDirectory
from ringrl.training.export import load_export
from ringrl.training.loop import run_training
from tests.builders import limit_evaluation, unseal

SAID = AgentDescription("Mine", across_trials=True)


def config(store: Path | str, agent: str = "behavior_cloning"):
    return parse_config({"data": {"store": str(store), "task": "t"}, "agent": {"name": agent, "window": 7}}, "test")


@pytest.fixture
def agent_file(tmp_path) -> Path:
    """An agent of the user's own."""
    return recipes.copy("behavior_cloning", tmp_path / "mine" / "my_agent.py")


@pytest.fixture
def run(tmp_path, agent_file, monkeypatch) -> RunDirectory:
    """A run of the user's own agent, begun in `tmp_path` with paths relative to it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stores" / "walker").mkdir(parents=True)
    run = RunDirectory("runs/one")
    run.write(config("stores/walker", "mine/my_agent.py"), {"returns": [1.0], "sizes": {}}, None, SAID)
    return run


def test_a_run_says_what_it_was_begun_with(run, agent_file):
    record = json.loads(run.record_file.read_text())
    assert record["schema"] == 2 and record["ringrl"]
    assert record["store"]["given"] == "stores/walker" and record["store"]["relative"] == "../../stores/walker"
    agent = run.agent()
    assert agent == AgentRecord("mine/my_agent.py", "Mine", True, agent.sha256)
    assert run.agent_file.read_bytes() == agent_file.read_bytes()
    assert run.settings()["agent"]["name"] == "mine/my_agent.py" and run.label() == "my_agent"
    assert run.dataset() == {"returns": [1.0], "sizes": {}} and not run.normalizer_file.exists()


def test_a_run_keeps_its_own_copy_of_the_agent(run, agent_file):
    began = config("stores/walker", "mine/my_agent.py")
    agent_file.write_text(agent_file.read_text().replace("window: int", "width: int"))
    with pytest.raises(UserError, match="window"):
        config("stores/walker", "mine/my_agent.py")
    resumed = run.config()
    assert resumed.agent.window == 7 and Path(resumed.agent.name) == run.agent_file
    assert run.with_own_agent(began).agent == resumed.agent
    assert run.with_own_agent(resumed) is resumed
    agent_file.unlink()
    run.write(resumed, {"returns": []}, None, SAID)
    assert run.settings()["agent"]["name"] == "mine/my_agent.py" and run.config() == resumed


@pytest.mark.parametrize("lost", [False, True], ids=["edited", "lost"])
def test_a_line_says_that_the_copy_is_used_of_an_agent_that_was_edited_or_lost(run, agent_file, lost, caplog):
    run.config()
    assert caplog.messages == []
    if lost:
        agent_file.unlink()
    else:
        agent_file.write_text(agent_file.read_text() + "# better\n")
    assert run.config().agent.window == 7 and run.config().agent.window == 7
    what = "is not there any more" if lost else "has changed since the run began"
    assert caplog.messages == [f"{agent_file}: {what}; the run's own copy, {run.agent_file}, is used"]


def test_what_was_killed_before_it_was_a_run_begins_anew(run, agent_file):
    (run.path / MANIFEST).unlink()
    run.config_file.unlink()
    agent_file.write_text(agent_file.read_text() + "# better\n")
    began = config("stores/walker", "mine/my_agent.py")
    assert run.with_own_agent(began) is began
    run.write(began, {"returns": [2.0]}, None, SAID)
    assert run.agent_file.read_bytes() == agent_file.read_bytes() and run.config().agent.window == 7
    (run.path / MANIFEST).unlink()
    run.config_file.unlink()
    run.write(config("stores/other", "decision_transformer"), {"returns": [2.0]}, None, SAID)
    agent = run.agent()
    assert agent is not None and agent.name == "decision_transformer" and run.config().data.store == "stores/other"


@pytest.mark.parametrize(
    "name, use", [("config.yaml", "check_new"), ("run.json", "config"), ("dataset.json", "dataset")]
)
def test_a_run_that_has_lost_a_file_is_no_earlier_run_nor_a_new_one(run, name, use):
    (run.path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing, which SHA256SUMS names"):
        getattr(run, use)()


def test_a_changed_copy_of_the_agent_is_refused(run):
    source = run.agent_file.read_text()
    run.agent_file.write_text(source + "# better\n")
    for use in (run.config, lambda: run.with_own_agent(config("stores/walker", "mine/my_agent.py"))):
        with pytest.raises(UserError, match="agent.py: was changed; the recorded source of mine/my_agent.py") as caught:
            use()
        assert "\n" not in str(caught.value)
    run.agent_file.unlink()
    with pytest.raises(UserError, match="agent.py: is missing"):
        run.config()


def test_another_agent_is_refused_but_not_the_same_source_by_another_name(run, agent_file):
    with pytest.raises(UserError, match="its agent is mine/my_agent.py, not decision_transformer"):
        run.with_own_agent(config("stores/walker", "decision_transformer"))
    assert run.with_own_agent(config("stores/walker", str(agent_file))).agent.window == 7


def test_the_store_is_found_from_another_directory_and_when_run_and_store_move(run, tmp_path, monkeypatch):
    assert run.config().data.store == "stores/walker"
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "stores" / "walker").mkdir(parents=True)  # which is not the store that the run means
    monkeypatch.chdir(elsewhere)
    assert RunDirectory(tmp_path / "runs/one").config().data.store == str(tmp_path / "stores/walker")
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("runs", "stores"):
        shutil.move(tmp_path / name, moved / name)
    again = RunDirectory(moved / "runs/one")
    assert again.config().data.store == str(moved / "stores/walker")
    again.write(again.config(), {"returns": []}, None, SAID)
    assert again.settings()["data"]["store"] == str(moved / "stores/walker")
    shutil.rmtree(moved / "stores")
    monkeypatch.chdir(tmp_path)
    assert again.config().data.store == str(moved / "stores/walker")  # the error of opening it names this path


def test_the_teacher_is_found_likewise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("stores/walker", "runs/teacher"):
        (tmp_path / folder).mkdir(parents=True)
    run = RunDirectory("runs/student")
    agent = {"name": "decision_pretrained", "teacher": "runs/teacher"}
    student = parse_config({"data": {"store": "stores/walker", "task": "t"}, "agent": agent}, "test")
    run.write(student, {"returns": []}, None, SAID)
    assert run.config().agent.teacher == "runs/teacher"
    run.write(run.config(), {"returns": []}, None, SAID)
    assert run.settings()["agent"]["teacher"] == "runs/teacher"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert RunDirectory(tmp_path / "runs/student").config().agent.teacher == str(tmp_path / "runs/teacher")
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert RunDirectory(tmp_path / "moved/student").config().agent.teacher == str(tmp_path / "moved/teacher")


def test_a_path_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "stores" / "walker").mkdir(parents=True)
    run = RunDirectory(tmp_path / "run")
    run.write(config("~/stores/walker"), {"returns": []}, None, SAID)
    assert run.config().data.store == str(tmp_path / "stores/walker")
    monkeypatch.setenv("HOME", "/elsewhere")
    assert run.config().data.store == str(tmp_path / "stores/walker")


def test_a_store_behind_an_address_stays_as_given(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.write(config("gs://bucket/walker"), {"returns": []}, None, SAID)
    assert run.config().data.store == "gs://bucket/walker"
    assert json.loads(run.record_file.read_text())["store"] == {
        "given": "gs://bucket/walker",
        "absolute": None,
        "relative": None,
    }


def test_a_run_of_before_is_read_and_brought_to_the_present_schema(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.agent() is None and run.settings() == {}
    values = {"data": {"store": "nowhere", "task": "t"}, "agent": {"name": "agentic_transformer"}}
    run.config_file.write_text(yaml.safe_dump(values))
    assert run.agent() == AgentRecord("agentic_transformer", "Agentic Transformer", True)
    before = run.config()
    assert before.agent.name == "agentic_transformer" and run.with_own_agent(before) is before
    run.write(before, {"returns": []}, None, AgentDescription("Agentic Transformer", across_trials=True))
    assert run.agent().sha256 and Path(run.config().agent.name) == run.agent_file
    values["agent"]["name"] = "mine/my_agent.py"
    unseal(run.path)
    run.record_file.unlink()
    run.config_file.write_text(yaml.safe_dump(values))
    assert run.agent() == AgentRecord("mine/my_agent.py", "my_agent", False)


def make_schema_1(run: RunDirectory) -> None:
    """What schema 1 did not say is taken out again."""
    unseal(run.path)
    values = yaml.safe_load(run.config_file.read_text())
    for name in EARLIER:
        del values["model"][name]
    run.config_file.write_text(yaml.safe_dump(values))
    run.record_file.write_text(json.dumps(json.loads(run.record_file.read_text()) | {"schema": 1}))


def test_a_run_that_says_nothing_of_positions_is_what_it_was(run):
    long = {"model": {"rope_base": 5e8}, "training": {"row_steps": 10**6}}
    began = parse_config(config("stores/walker").model_dump(mode="json") | long, "test")
    run.write(began, {"returns": []}, None, SAID)
    assert run.config().model == began.model
    make_schema_1(run)
    before = run.config()
    assert before.model == began.model.model_copy(update=EARLIER) and before.model.rope_base == 10_000
    run.write(before, {"returns": []}, None, SAID)
    assert json.loads(run.record_file.read_text())["schema"] == 2 and run.config() == before
    assert yaml.safe_load(run.config_file.read_text())["model"].items() >= EARLIER.items()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"schema": 3}, "schema 3, this ringrl reads 2"),
        ({"store": None}, "run.json: `store`: Input should be an object"),
        ({"agent": {"name": "x"}}, "`agent.display_name`: Field required"),
    ],
)
def test_a_record_that_cannot_be_understood_is_refused(run, change, words):
    unseal(run.path)
    run.record_file.write_text(json.dumps(json.loads(run.record_file.read_text()) | change))
    with pytest.raises(UserError, match=words) as caught:
        run.config()
    assert "\n" not in str(caught.value)


def test_tables_have_their_settings_beside_them(run):
    rows = RunDirectory(run.path)
    for name in ("returns", "targets", "ablation-blind"):
        assert rows.table_settings(name) == {}
        rows.write_table(name, [], {"seconds": 1})
        assert rows.table_settings(name) == {"seconds": 1}
    found = {path.name for path in run.evaluation.iterdir()}
    assert found == {"returns.csv", "evaluation.json", "targets.csv", "targets.json", "ablation-blind.csv",
                     "ablation-blind.json", "SHA256SUMS"}  # fmt: skip
    for old in ("blind", "foreign"):
        (run.evaluation / f"probe-{old}.csv").write_text("")
    assert run.ablation_tables() == {"blind": "ablation-blind", "foreign": "probe-foreign"}


def test_a_moved_run_of_a_deleted_agent_file_is_resumed_evaluated_and_exported(
    tiny_store, tiny_config, agent_file, tmp_path, monkeypatch
):
    began, moved = tmp_path / "began", tmp_path / "moved"
    shutil.copytree(tiny_store, began / "stores" / "cartpole")
    monkeypatch.chdir(began)
    data = {"store": "stores/cartpole"}
    run_training(
        tiny_config({"name": str(agent_file)}, data=data, training={"steps": 1, "row_steps": 20}), Path("runs/mine")
    )
    agent_file.unlink()
    monkeypatch.chdir(tmp_path)
    began.rename(moved)
    run = RunDirectory("moved/runs/mine")
    longer = run.config().training.model_copy(update={"steps": 2})
    run_training(run.config().model_copy(update={"training": longer}), run.path)
    assert [line["step"] for line in run.metrics()] == [1, 2]
    limit_evaluation(monkeypatch, 8)
    evaluate(run.path, trials=1, envs=1, reference=False)
    assert [row.agent for row in run.read_table()] == ["my_agent"]
    said = run.agent()
    assert said is not None and (said.display_name, said.across_trials) == ("Behavior Cloning", False)
    ExportVerb(run.path).run()
    assert Path(load_export(run.export)[1].agent.name) == run.export / "agent.py"


def test_a_run_says_that_it_is_finished_and_how_long_it_took(run):
    assert not run.finished_file.exists() and not run.timing_file.exists()
    run.mark_finished()
    run.write_timing({"train_s": 1.5, "resumed": False})
    assert run.finished_file.read_bytes() == b"" and json.loads(run.timing_file.read_text()) == {
        "train_s": 1.5,
        "resumed": False,
    }


def test_what_is_no_run_is_refused(tmp_path):
    run = RunDirectory(tmp_path)
    for read in (run.config, run.dataset):
        with pytest.raises(UserError, match="not a run directory"):
            read()
