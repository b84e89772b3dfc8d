"""Held-out episodes: never trained on, their loss logged, and checkpoints kept by it."""

import json

import numpy as np
import pytest

from ringrl.agent import make_agent
from ringrl.config import parse_config
from ringrl.errors import UserError
from ringrl.run import RunDirectory
from ringrl.sampling.held_out import split_episodes
from ringrl.store.episode_store import DataSource, build, open_store
from ringrl.training.checkpoint_files import losses_of
from ringrl.training.loop import run_training
from ringrl.training.training_data import open_episodes
from tests.builders import make_episode

AGENT = {"name": "agentic_transformer", "trajectories": 2, "fused": True}


@pytest.fixture
def store(tmp_path):
    """Eight episodes of two sources; the actions of those that a share of a quarter holds out are all 0.5."""
    source, episodes = np.repeat(np.arange(2, dtype=np.int32), 4), []
    out = split_episodes(source, 0.25)[1]
    for index in range(8):
        episode = make_episode(12, seed=index, widths=(5, 1, 1, 4))
        episode.action[:] = 0.5 if index in out else -0.5
        episodes.append((episode, int(source[index])))
    sources = [DataSource(name, name) for name in "ab"]
    path = build(
        tmp_path / "s", episodes, domain="cartpole", tasks=("cartpole_balance",), sources=sources, provenance={}
    )
    return path


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def configure(tiny_config, store, share=0.25, mesh=None, steps=6):
    data = {"store": str(store), "action_repeat": 1, "validation_share": share}
    training = {"steps": steps, "log_every": 4, "checkpoint_every": 2, "keep_checkpoints": 1, "keep_best": 1}
    return tiny_config(AGENT, data=data, training=training, mesh=mesh or {}, optimizer={"learning_rate": 0.01})


def test_what_is_held_out_is_not_trained_on_and_its_loss_is_kept(store, tmp_path, tiny_config):
    config = configure(tiny_config, store)
    run_training(config, tmp_path / "run")
    lines = {line["step"]: line for line in logged(tmp_path / "run")}
    assert sorted(lines) == [2, 4, 6]  # every checkpoint is logged
    # It is trained on actions of -0.5 alone, and measured on those of 0.5.
    assert lines[6]["loss"] < lines[2]["loss"]
    assert lines[2]["validation_loss"] < min(lines[step]["validation_loss"] for step in (4, 6))
    folder = RunDirectory(tmp_path / "run").checkpoints
    assert losses_of(folder) == {step: pytest.approx(lines[step]["validation_loss"]) for step in (2, 6)}
    dataset = RunDirectory(tmp_path / "run").dataset()
    assert dataset["validation_share"] == 0.25 and dataset["episodes"] == 6
    assert [source["episodes"] for source in dataset["sources"]] == [3, 3]


def test_the_parts_of_a_store_are_its_episodes(store, tiny_config):
    whole, data = open_store(store), configure(tiny_config, store).data
    train, out = open_episodes(data), open_episodes(data, held_out=True)
    assert [part.numbers.tolist() for part in (train, out)] == [[0, 1, 3, 4, 5, 7], [2, 6]]
    for part in (train, out):
        np.testing.assert_array_equal(part.returns(data.task), whole.returns(data.task)[part.numbers])
        np.testing.assert_array_equal(part.source, whole.source[part.numbers])
        for index, number in enumerate(part.numbers.tolist()):
            one, other = part.read(index, 2, 7, data.task), whole.read(number, 2, 7, data.task)
            np.testing.assert_array_equal(one.observation, other.observation)
            np.testing.assert_array_equal(part.physics(index), whole.physics(number))
    assert {float(out.read(index, 0, 12, data.task).action.max()) for index in range(2)} == {0.5}


def test_the_loss_is_the_same_on_a_ring_and_after_a_resume(store, tmp_path, tiny_config):
    for name, mesh, legs in (("one", {}, (6,)), ("ring", {"seq": 4}, (6,)), ("resumed", {}, (2, 6))):
        for steps in legs:
            run_training(configure(tiny_config, store, mesh=mesh, steps=steps), tmp_path / name)
    one, ring, resumed = (
        [line["validation_loss"] for line in logged(tmp_path / n)] for n in ("one", "ring", "resumed")
    )
    np.testing.assert_allclose(ring, one, rtol=2e-5)
    assert len(resumed) == 3 and resumed[0] != one[0]  # its learning rate ended after two steps


def test_held_out_episodes_too_few_for_a_context_are_an_error_before_there_is_a_run(store, tmp_path, tiny_config):
    config = configure(tiny_config, store)
    longer = config.model_copy(
        update={
            "agent": config.agent.model_copy(update={"trajectories": 3}),
            "training": config.training.model_copy(update={"row_steps": 36}),
        }
    )
    message = "data.validation_share: of the 2 held-out episodes a chain of 3 trajectories cannot be drawn"
    with pytest.raises(UserError, match=message):
        run_training(longer, tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_agents_without_such_a_loss_refuse(store):
    data = {"store": str(store), "task": "cartpole_balance", "validation_share": 0.25}
    with pytest.raises(UserError, match="data.validation_share: td3 has no loss that would say"):
        config = parse_config({"data": data, "agent": {"name": "td3"}}, "test")
        make_agent(config.agent).make_trainer(config)
