"""Vintix's histories -> stores, one source a history -> Algorithm Distillation within each."""

import json

import numpy as np
import pytest

from benchmarks._recorded_sets import learner_history, write_vintix
from ringrl import recipes
from ringrl.errors import UserError
from ringrl.store.episode_store import open_store
from ringrl.training.loop import run_training
from tests.builders import TINY, make_config

pytest.importorskip("h5py")
step = recipes.load("data", "import_vintix")
LENGTHS = (8, 3, 12, 9)


def import_store(out, *datasets, **options):
    step.main(step.Args(datasets=datasets, out=out, **options))
    return open_store(out)


@pytest.fixture
def hopper(tmp_path):
    """A data set of two histories of Hopper-v5, in groups of 10 steps."""
    for seed, name in enumerate("ba"):
        history = learner_history(LENGTHS, seed, widths=(11, 3))
        write_vintix(tmp_path / "hopper_v5" / f"{name}.h5", history, task="Hopper-v5")
    return tmp_path / "hopper_v5"


def test_each_history_is_a_source_in_its_order(hopper, tmp_path, capsys):
    store = import_store(tmp_path / "s", hopper)
    assert (store.domain, store.tasks, store.dims) == ("Hopper", ("Hopper-v5",), (11, 3, 1, 0))
    assert [(each.name, each.path, each.first, each.last, each.task) for each in store.sources] == [
        ("hopper_v5/a", "a.h5", 0, 3, "Hopper-v5"),
        ("hopper_v5/b", "b.h5", 4, 7, "Hopper-v5"),
    ]
    assert store.lengths.tolist() == [*LENGTHS, *LENGTHS]
    np.testing.assert_array_equal(store.returns("Hopper-v5"), [0, 3, 24, 27] * 2)  # the reward is the trial's number
    assert store.sources[0].collected["action_bounds"] == [[-1] * 3, [1] * 3]
    assert "2 history file(s)" in capsys.readouterr().out


def test_algorithm_distillation_learns_from_them(hopper, tmp_path):
    import_store(tmp_path / "s", hopper)
    config = make_config(
        TINY,
        data={"store": str(tmp_path / "s"), "task": "Hopper-v5", "action_repeat": 1},
        agent={"name": "algorithm_distillation", "trajectories": 2},
        training={"steps": 2, "row_steps": 24},
    )
    run_training(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "dataset.json").read_text())["source"] == [0] * 4 + [1] * 4


def test_an_environments_bounds_are_mapped_and_others_are_given(tmp_path):
    history = learner_history(LENGTHS, widths=(348, 17))
    history["action"] *= np.float32(0.4)  # the humanoid's bounds
    write_vintix(tmp_path / "humanoid" / "a.h5", history, task="Humanoid-v5")
    store = import_store(tmp_path / "s", tmp_path / "humanoid")
    np.testing.assert_allclose(store.episode(0, "Humanoid-v5").action, history["action"][:8] / 0.4, rtol=1e-5)
    store = import_store(tmp_path / "t", tmp_path / "humanoid", task="mine", low=(-4.0,), high=(4.0,))
    np.testing.assert_allclose(store.episode(0, "mine").action, history["action"][:8] / 4, rtol=1e-5)


def test_several_tasks_go_under_a_name_of_their_own(tmp_path):
    folders = [tmp_path / name for name in ("reach-v2", "push-v2")]
    for folder in folders:
        write_vintix(folder / "a.h5", learner_history(LENGTHS), task=folder.name)
    with pytest.raises(UserError, match="do not name one task .reach-v2 of reach-v2, push-v2 of push-v2.; .*--task"):
        import_store(tmp_path / "s", *folders)
    store = import_store(tmp_path / "s", *folders, task="metaworld")
    assert store.tasks == ("metaworld",) and [each.task for each in store.sources] == ["reach-v2", "push-v2"]
    write_vintix(tmp_path / "wide" / "a.h5", learner_history(LENGTHS, widths=(5, 2)), task="wide")
    with pytest.raises(UserError, match="widths"):
        import_store(tmp_path / "t", *folders, tmp_path / "wide", task="metaworld")
    write_vintix(tmp_path / "own" / "a.h5", learner_history(LENGTHS), task="some_module:Rig-v0")
    with pytest.raises(UserError, match="own: its task some_module:Rig-v0 may be one of a module, which is run"):
        import_store(tmp_path / "t", tmp_path / "own")
    with pytest.raises(UserError, match="no data set given"):
        import_store(tmp_path / "t")
    assert not (tmp_path / "t").exists()
