"""LeRobot data sets -> stores -> a behavior-cloning run that holds episodes out."""

import json

import numpy as np
import pytest

from benchmarks._recorded_sets import robot_episode, write_lerobot
from ringrl import recipes
from ringrl.errors import UserError
from ringrl.store.episode_store import open_store
from ringrl.training.loop import run_training
from tests.builders import TINY, make_config

pytest.importorskip("pyarrow")
step = recipes.load("data", "import_lerobot")
LENGTHS = (9, 12, 10, 11)


def robot(folder, **options):
    return write_lerobot(folder, [robot_episode(length, seed) for seed, length in enumerate(LENGTHS)], **options)


def import_store(out, *datasets, **options):
    step.main(step.Args(datasets=datasets, out=out, **options))
    return open_store(out)


def test_a_store_says_where_it_comes_from(tmp_path, capsys):
    folder = robot(tmp_path / "cube", instructions=("Push it.", "Lift it."))
    store = import_store(tmp_path / "s", folder)
    assert (store.domain, store.tasks, store.dims) == ("cube", ("cube",), (3, 2, 1, 0))
    assert store.lengths.tolist() == [*LENGTHS] and store.provenance["relabel"] == "recorded"
    (source,) = store.sources
    assert (source.name, source.collector, source.collected["format"]) == ("cube", "arm", "lerobot v3.0")
    assert source.collected["instructions"] == ["Lift it.", "Push it."]
    actions = np.concatenate([robot_episode(length, seed)["action"] for seed, length in enumerate(LENGTHS)])
    np.testing.assert_array_equal(source.collected["action_bounds"], [actions.min(axis=0), actions.max(axis=0)])
    taken = np.concatenate([store.episode(index, "cube").action for index in range(4)])
    assert taken.min(axis=0).tolist() == [-1, -1] and taken.max(axis=0).tolist() == [1, 1]
    printed = capsys.readouterr().out
    assert "left out, for nothing here learns from pictures: observation.images.top" in printed
    assert "the last one is repeated" in printed and "2 instructions, which no observation tells apart" in printed


def test_without_rewards_that_is_said(tmp_path, capsys):
    few = {name: values for name, values in robot_episode(5).items() if not name.startswith("next.")}
    store = import_store(tmp_path / "s", write_lerobot(tmp_path / "cube", [few]))
    assert not store.returns("cube").any()
    printed = capsys.readouterr().out
    assert "no next.reward: every reward is 0" in printed and "whether an episode ended for good" in printed


def test_several_data_sets_are_several_sources_of_one_span(tmp_path):
    sets = [robot(tmp_path / name, version=version) for name, version in (("a", "v2.1"), ("b", "v3.0"))]
    with pytest.raises(UserError, match=r"do not name one task \(.*a of a, .*b of b\); name it with --task"):
        import_store(tmp_path / "s", *sets)
    store = import_store(tmp_path / "s", *sets, task="cube")
    assert [(each.path, each.first, each.last) for each in store.sources] == [("a", 0, 3), ("b", 4, 7)]


def test_an_environments_bounds_are_those_of_its_data(tmp_path):
    steps = robot_episode(6) | {"action": np.linspace(-2, 2, 6, dtype=np.float32)[:, None]}
    folder = write_lerobot(tmp_path / "swing", [steps])
    store = import_store(tmp_path / "s", folder, task="Pendulum-v1")  # whose torque is between -2 and 2
    assert store.domain == "Pendulum" and store.sources[0].collected["action_bounds"] == [[-2], [2]]
    np.testing.assert_allclose(store.episode(0, "Pendulum-v1").action[:, 0], np.linspace(-1, 1, 6), atol=1e-6)
    for options, message in [
        ({"task": "cheetah_run"}, "an action of cheetah_run has 6 numbers, one of the data 1"),
        ({"low": (-1.0,)}, "--low has 1 numbers and --high 0: give one each"),
        ({"low": (3.0,), "high": (2.0,)}, "--low must be below --high"),
        ({"low": (-1.0,), "high": (1.0,)}, "episode 0: an action is 2, outside"),
        ({"task": "no_module_of_mine:Rig-v0"}, "cannot import no_module_of_mine"),
    ]:
        with pytest.raises(UserError, match=message):
            import_store(tmp_path / "t", folder, **options)
        assert not (tmp_path / "t").exists()


def test_a_clone_of_it_is_trained_and_judged_by_held_out_episodes(tmp_path):
    import_store(tmp_path / "s", robot(tmp_path / "cube"))
    config = make_config(
        TINY,
        data={"store": str(tmp_path / "s"), "task": "cube", "action_repeat": 1, "validation_share": 0.25},
        agent={"name": "behavior_cloning", "window": 5},
        training={"steps": 2, "row_steps": 10, "checkpoint_every": 1},
    )
    run_training(config, tmp_path / "run")
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("validation_loss" in each for each in losses)
    assert json.loads((tmp_path / "run" / "dataset.json").read_text())["action_bounds"] is not None
