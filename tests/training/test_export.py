"""Exports: the same model again, to the bit, and nothing half-written."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from ringrl.agent import make_agent
from ringrl.errors import UserError
from ringrl.policy import RolloutSetting
from ringrl.returns import TrialReturn
from ringrl.rollout.model_calls import ModelCalls
from ringrl.rollout.sequence_policy import SequencePolicy
from ringrl.rollout.trained_agent import load_trained
from ringrl.run import RunDirectory
from ringrl.training.checkpoint import Checkpoints, describe
from ringrl.training.export import export, load_export
from ringrl.training.mesh import make_mesh
from ringrl.training.start import train
from ringrl.training.state import init_state, split_model
from ringrl.training.trained_model import load_model, refuse_earlier_tokens
from tests.builders import unseal


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
    """A run that was just begun: its first state is its checkpoint."""
    config = tiny_config({"name": "decision_transformer", "fused": True, "window": 4}, model={"remat": "none"})
    agent, mesh, path = make_agent(config.agent), make_mesh(config.mesh), tmp_path_factory.mktemp("export") / "run"
    source = agent.make_trainer(config).data
    source.prepare(path)
    RunDirectory(path).write(config, source.card, source.normalizer, agent.description)
    _, state = init_state(config, agent.decoder, source.sizes, mesh)
    with Checkpoints(path) as checkpoints:
        checkpoints.save(3, state._replace(step=state.step + 3), describe(3, config.seed, mesh), 1.0)
    return path


@pytest.fixture
def exported(run, tmp_path):
    config = RunDirectory(run).config()
    model, step = load_model(run, config, RunDirectory(run).dataset()["sizes"])
    return model, export(model, config, step, run, tmp_path / "export")


def first_actions(model, run) -> np.ndarray:
    config, card = RunDirectory(run).config(), RunDirectory(run).dataset()
    spec = make_agent(config.agent).policy.rollout_spec(config.training.row_steps, np.asarray(card["returns"]))
    scales = RunDirectory(run).normalizer()
    setting = RolloutSetting(2, trial_steps=4, trials=1)
    policy = SequencePolicy(ModelCalls(model), scales, spec, setting, card["sizes"], across_trials=False)
    policy.begin_trial(np.ones(2, bool))
    return policy.act(np.arange(10, dtype=np.float32).reshape(2, 5))


def test_an_export_is_the_same_model(run, exported):
    model, path = exported
    loaded, config, about = load_export(path)
    jax.tree.map(np.testing.assert_array_equal, split_model(loaded)[1], split_model(model)[1])
    np.testing.assert_array_equal(first_actions(loaded, run), first_actions(model, run))
    expected = RunDirectory(run).config()
    assert Path(config.agent.name) == path / "agent.py" and config.agent.window == expected.agent.window == 4
    assert config.model_dump(exclude={"agent"}) == expected.model_dump(exclude={"agent"})
    assert about["config"]["agent"]["name"] == about["agent"].name == "decision_transformer"
    assert about["step"] == 3 and set(about["versions"]) == {"ringrl", "jax", "flax", "safetensors"}
    assert about["normalizer"] == json.loads((run / "normalizer.json").read_text())
    arrays = load_file(path / "model.safetensors")
    assert {x.dtype for x in arrays.values()} == {np.dtype(np.float32)} and "layers.before.query.kernel" in arrays


def test_what_was_trained_on_fused_tokens_of_an_earlier_ringrl_is_refused(run, exported, tmp_path):
    _, path = exported
    unseal(path)
    about = json.loads((path / "config.json").read_text())
    assert about.pop("tokens") == RunDirectory(run).tokens == 1
    (path / "config.json").write_text(json.dumps(about))
    words = "its fused tokens are of version 0, and this ringrl's of 1"
    with pytest.raises(UserError, match=words):
        load_export(path)
    earlier = RunDirectory(shutil.copytree(run, tmp_path / "earlier"))
    unseal(earlier.path)
    record = json.loads(earlier.record_file.read_text())
    del record["tokens"]
    earlier.record_file.write_text(json.dumps(record))
    assert earlier.tokens == 0
    for use in (lambda: load_trained(earlier.path, "latest", {}), lambda: train(resume=earlier.path)):
        with pytest.raises(UserError, match=words) as refused:
            use()
        assert "\n" not in str(refused.value)


def test_interleaved_tokens_are_what_they_were(tiny_config, tmp_path):
    decoder = make_agent(tiny_config({"name": "decision_transformer", "window": 4}).agent).decoder
    assert decoder is not None
    refuse_earlier_tokens(decoder, 0, tmp_path)


def test_an_export_is_not_overwritten_unasked(run, exported, tmp_path):
    model, path = exported
    config = RunDirectory(run).config()
    with pytest.raises(UserError, match="exists already"):
        export(model, config, 3, run, path)
    assert load_export(export(model, config, 4, run, path, overwrite=True))[2]["step"] == 4
    assert [each.name for each in tmp_path.iterdir()] == ["export"]


def test_what_is_no_whole_export_is_refused(exported, tmp_path):
    _, path = exported
    with pytest.raises(UserError, match="not a whole export"):
        load_export(tmp_path)
    source = (path / "agent.py").read_text()
    (path / "agent.py").write_text(source + "\n")
    with pytest.raises(UserError, match="agent.py: has changed since it was written"):
        load_export(path)
    unseal(path)
    with pytest.raises(UserError, match="agent.py: was changed"):
        load_export(path)
    (path / "agent.py").write_text(source)
    save_file({"output.kernel": np.zeros((2, 2), np.float32)}, path / "model.safetensors")
    with pytest.raises(UserError, match="not those of the model"):
        load_export(path)
    (path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="not a whole export") as caught:
        load_export(path)
    assert "\n" not in str(caught.value)


def test_its_card_says_what_it_is_and_what_it_earned(run, exported, tmp_path):
    model, path = exported
    text = (path / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "ringrl" and head["tags"][-1] == "cartpole_balance"
    assert "# decision_transformer on cartpole_balance" in text and "Observations of 5 numbers, actions of 1" in text
    assert "Not evaluated." in text
    evaluated = Path(shutil.copytree(run, tmp_path / "evaluated"))
    rows = [
        TrialReturn("decision_transformer", "cartpole_balance", 0, e, t, 10.0 * t, 9, 1.0)
        for e in (0, 1)
        for t in (0, 1)
    ]
    RunDirectory(evaluated).write_table("returns", rows, {})
    config, step = RunDirectory(evaluated).config(), 3
    text = (export(model, config, step, evaluated, tmp_path / "second") / "README.md").read_text()
    assert "| decision_transformer | 0.0 | 10.0 | 2 |" in text
