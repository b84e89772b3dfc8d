"""Configurations: every shipped one loads, overrides apply, and what is wrong is named in one line."""

from pathlib import Path

import pytest
import yaml

from ringrl import errors, recipes
from ringrl.config import RunConfig, change_section, dump_config, load_config, parse_config
from ringrl.errors import UserError
from ringrl.model_config import PRESETS

SHIPPED = [name for name, _ in recipes.listing()["configs"]]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_loads_and_survives_a_round_trip(name, tmp_path):
    config = load_config(name)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "again.yaml")
    assert again == config and type(again.agent) is type(config.agent)
    about = recipes.find("configs", name).read_text().split("\ndata:")[0]
    assert "command:" in about and "hardware:" in about


def test_overrides_are_yaml_and_win():
    config = load_config(
        "demo_at",
        (
            "training.steps=7",
            "optimizer.learning_rate=3e-4",
            "agent.draw=stratified",
            "evaluation.target=null",
            "seed=5",
        ),
    )
    assert (config.training.steps, config.optimizer.learning_rate, config.seed) == (7, 3e-4, 5)
    assert config.agent.draw == "stratified" and config.evaluation.target is None
    assert load_config("demo_at", ("mesh.data=2",)).mesh.data == 2  # a section that the file leaves out


def test_paths_in_the_home_folder_are_written_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config("demo_dt", ("data.store=~/stores/walker",))
    assert config.data.store == f"{tmp_path}/stores/walker"
    values = config.model_dump(mode="json") | {"data": {"store": Path("~/s"), "task": "~"}}
    assert parse_config(values, "test").data.store == f"{tmp_path}/s"
    assert parse_config(values, "test").data.task == "~"  # no path
    own = tmp_path / "own.py"
    own.write_text(recipes.find("agents", "behavior_cloning").read_text())
    assert load_config("demo_bc", ("agent.name=~/own.py",)).agent.name == str(own)


@pytest.mark.parametrize(
    "override, named",
    [
        ("training.stps=3", "`training.stps`: unknown key"),
        ("agent.windw=3", "`agent.windw`: unknown key"),
        ("trainin.steps=3", "`trainin`: unknown key"),
        ("training.steps=abc", "`training.steps`: .*integer"),
        ("training.steps=true", "`training.steps`: true is not"),
        ("training.steps=0", "`training.steps`: .*greater"),
        ("training=null", "`training`"),
        ("optimizer.learning_rate=.nan", "`optimizer.learning_rate`: .*finite"),
        ("evaluation.target=.inf", "`evaluation.target`: .*finite"),
        ("data.task=null", "`data.task`: .*string"),
        ("model.preset=huge", "`model.preset`: .*tiny"),
        ("model.block=0", "`model.block`"),
        ("agent.fused=maybe", "`agent.fused`: .*boolean"),
        ("agent.window=0", "`agent.window`: .*greater"),
        ("agent.window=2.5", "`agent.window`: .*integer"),
        ("agent.name=nope", "nope: agents has no recipe"),
        (f"agent.name={errors.__file__}", "`agent`: .*errors.py has no `Config` that extends"),
        ("agent=3", "`agent`"),
        ("agent={window: 3}", "`agent.name`: Field required"),
        ("seed.x=3", "`seed`"),
        ("agent={name: agentic_transformer, within_source: true, fraction: 0.5}", "`agent`: fraction ranks"),
        ("agent.horizon=0", "`agent.horizon`"),
        ("agent.horizon=5", "`agent`: target_jitter scales whole returns"),
        ("training.steps.x=3", "override `training.steps.x=3`: `steps` is a value"),
        ("training.steps", "a.b=c"),
        ("=3", "a.b=c"),
        ("training.steps=[", "not valid YAML"),
        ("mesh.seq=3", "row_steps 20 must be a multiple of 6"),
        ("mesh.tensor=4", "kv_heads 2 must be a multiple of .*mesh.tensor = 4"),
        ("optimizer.accumulation=7", "batch 160 must be a multiple of .* 7"),
        ("model.width=30", "`model`: .*width 30 must be a multiple"),
        ("model={width: 8, heads: 4, kv_heads: 4, trial_encoding: rotary}", "`model`: .*heads of 4 features or more"),
        ("model={position_encoding: none}", "`model`: .*leaves nothing to rotate"),
        ("model.kv_heads=3", "`model`: .*heads 2 must be a multiple of kv_heads 3"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(override, named):
    with pytest.raises(UserError, match=named) as caught:
        load_config("demo_dt", (override,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["data: [", "- a", "3", "", "a: b: c", "\t- x"])
def test_a_file_that_is_no_mapping_is_named(text, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_several_faults_are_counted():
    with pytest.raises(UserError, match=r"and 1 more"):
        load_config("demo_dt", ("training.steps=x", "training.batch=y"))


def test_presets_fill_in_what_is_not_given():
    values = yaml.safe_load(recipes.find("configs", "demo_dt").read_text())
    for name, shape in PRESETS.items():
        model = parse_config(values | {"model": {"preset": name, "heads": 1, "kv_heads": 1}}, "here").model
        given = {"heads": 1, "kv_heads": 1}
        assert {field: getattr(model, field) for field in shape} == shape | given


def test_a_section_is_changed_under_the_same_checks():
    config: RunConfig = load_config("demo_dt")
    assert change_section(config.evaluation, {"trials": 9}, "here").trials == 9
    with pytest.raises(UserError, match="here: `trials`"):
        change_section(config.evaluation, {"trials": 0}, "here")


def test_a_users_own_agent_brings_its_own_settings(tmp_path):
    recipes.copy("decision_transformer", tmp_path / "mine.py")
    own = tmp_path / "mine.py"
    own.write_text(own.read_text().replace("window: int", "depth: int = 3\n    window: int"))
    config = load_config("demo_dt", (f"agent.name={own}", "agent.depth=4"))
    assert config.agent.depth == 4
    assert load_config("demo_dt").agent.model_dump().get("depth") is None
