"""Checkpoints: which are kept, restored on any mesh, and what is said of those that cannot be."""

import gc
import json
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ringrl.config import MeshConfig
from ringrl.errors import UserError
from ringrl.manifest import MANIFEST
from ringrl.training.checkpoint import Checkpoints, describe
from ringrl.training.checkpoint_files import remove_cut_off
from ringrl.training.mesh import make_mesh

VALUES = {"step": np.int32(7), "params": {"kernel": np.arange(64, dtype=np.float32).reshape(8, 8)}}
ONE = MeshConfig()

# Orbax leaves coroutines behind when a restore fails; they complain when they are collected, which may be in another
# test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def place(mesh: MeshConfig, values: dict = VALUES) -> dict:
    """`values` on a mesh, the matrix spread over all of it."""
    made = make_mesh(mesh)
    spread = NamedSharding(made, P(("data", "fsdp", "tensor", "seq", "heads")))
    return jax.tree.map(lambda x: jax.device_put(x, spread if x.ndim else NamedSharding(made, P())), values)


def save(checkpoints: Checkpoints, step: int, loss: float = 1.0, mesh: MeshConfig = ONE) -> None:
    checkpoints.save(step, place(mesh), describe(step, 3, make_mesh(mesh)), loss)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with one checkpoint, of step 7."""
    run = tmp_path_factory.mktemp("saved")
    with Checkpoints(run) as checkpoints:
        save(checkpoints, 7)
    return run


def test_the_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2, best=1) as checkpoints:
        for step, loss in enumerate([5.0, 2.0, 4.0, 3.5, 3.0], start=1):
            save(checkpoints, step, loss)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]
    with Checkpoints(tmp_path, keep=2, best=1) as checkpoints:  # what was best before is known after a restart
        save(checkpoints, 6, 2.5)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert [checkpoints.find(which) for which in ("best", "latest", "5")] == [2, 6, 5]
        for which in ("3", "newest", "-1"):
            with pytest.raises(UserError, match=rf"no checkpoint {which}; give latest, best, or one of \[2, 5, 6\]"):
                checkpoints.find(which)


def test_only_the_newest_are_kept_where_the_best_are_not_asked_for(tmp_path):
    with Checkpoints(tmp_path, keep=1, best=0) as checkpoints:
        for step, loss in ((1, 1.0), (2, 2.0)):
            save(checkpoints, step, loss)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


@pytest.mark.parametrize(
    "written, read",
    [
        (MeshConfig(fsdp=2, seq=4), MeshConfig(seq=2, heads=2)),
        (MeshConfig(data=2, tensor=2), ONE),
        (ONE, MeshConfig(fsdp=8)),
    ],
    ids=["8 to 4", "4 to 1", "1 to 8"],
)
def test_a_checkpoint_is_restored_on_another_mesh(written, read, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 7, mesh=written)
    like = place(read, jax.tree.map(np.zeros_like, VALUES))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        state, about = checkpoints.restore(like)
    jax.tree.map(np.testing.assert_array_equal, state, VALUES)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like)
    assert about["mesh"] == written.model_dump(include=set(about["mesh"]))
    assert (about["step"], about["loader"], about["rng"]) == (7, {"seed": 3, "next_batch": 7}, {"seed": 3})


def broken(saved, tmp_path):
    run = shutil.copytree(saved, tmp_path / "run")
    return run, run / "checkpoints" / "7"


def complaint(run, like=None) -> str:
    with Checkpoints(run, read_only=True) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(place(ONE) if like is None else like)
    message = str(caught.value)
    del caught
    gc.collect()
    assert "\n" not in message
    return message


def as_of_format_2(folder) -> None:
    """Make a checkpoint one of an earlier ringrl, without hashes."""
    (folder / MANIFEST).unlink()
    about = json.loads((folder / "about/metadata").read_text())
    loss = about.pop("loss")
    (folder / "about/metadata").write_text(json.dumps(about | {"format": 2}))
    (folder / "metrics").mkdir()
    (folder / "metrics/metrics").write_text(json.dumps({"loss": loss}))


def test_a_damaged_checkpoint_without_hashes_is_named(saved, tmp_path):
    run, folder = broken(saved, tmp_path)
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert f"{folder}/state/" in complaint(run)
    assert "bytes: a copy that was cut off? copy it again" in complaint(run)
    as_of_format_2(folder)
    assert f"{folder}: cannot be read (" in complaint(run)


def test_a_checkpoint_of_another_model_is_refused(saved):
    like = {"step": jnp.int32(0), "params": {"kernel": jnp.zeros((8, 4))}}
    assert "cannot be read (" in complaint(saved, like)
    assert "cannot be read (" in complaint(saved, {"step": jnp.int32(0), "params": {"other": jnp.zeros(3)}})


def test_a_checkpoint_of_an_older_version_is_refused(saved, tmp_path):
    run, folder = broken(saved, tmp_path)
    (folder / MANIFEST).unlink()
    about = json.loads((folder / "about/metadata").read_text())
    (folder / "about/metadata").write_text(json.dumps(about | {"format": 1}))
    assert complaint(run) == f"{folder}: checkpoint format 1, this ringrl reads 3"
    shutil.rmtree(folder / "about")
    assert "has no about/: a copy that was cut off, or a checkpoint of an earlier version of ringrl" in complaint(run)


def test_what_is_written_late_into_a_removed_checkpoint_is_removed_too(tmp_path):
    (tmp_path / "2").mkdir()
    cut_off = tmp_path / "4.orbax-checkpoint-tmp" / "state"
    cut_off.mkdir(parents=True)

    def write_late():
        for _ in range(3):
            time.sleep(0.1)
            cut_off.mkdir(parents=True, exist_ok=True)

    writer = threading.Thread(target=write_late)
    writer.start()
    remove_cut_off(tmp_path)
    writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_a_run_without_checkpoints_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="train the run first"):
        Checkpoints(tmp_path, read_only=True)
    (tmp_path / "checkpoints").mkdir()
    assert "no complete checkpoint; train the run first" in complaint(tmp_path)
