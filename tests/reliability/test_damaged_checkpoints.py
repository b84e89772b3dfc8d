"""A damaged checkpoint is named, and the newest good one used; nothing damaged is used silently."""

import shutil

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.manifest import MANIFEST
from ringrl.training.checkpoint import Checkpoints
from tests.training.test_checkpoint import ONE, as_of_format_2, place, save

# As in test_checkpoint: Orbax's coroutines complain when they are collected, which may be in another test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run with checkpoints of steps 1, 2 and 3."""
    run = tmp_path_factory.mktemp("three")
    with Checkpoints(run, keep=3) as checkpoints:
        for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0)):
            save(checkpoints, step, loss)
    return run


@pytest.fixture
def run(three, tmp_path):
    return shutil.copytree(three, tmp_path / "run")


def restore(run, which="latest", *, strict=False, read_only=True) -> int:
    """The step of the checkpoint that is used."""
    with Checkpoints(run, keep=3, read_only=read_only) as checkpoints:
        state, about = checkpoints.restore(place(ONE), which, strict=strict)
    np.testing.assert_array_equal(state["params"]["kernel"], place(ONE)["params"]["kernel"])
    return about["step"]


def flip(path, index=None):
    body = bytearray(path.read_bytes())
    body[len(body) // 2 if index is None else index] ^= 1
    path.write_bytes(bytes(body))


def state_files(run, step):
    return sorted(path for path in (run / f"checkpoints/{step}/state").rglob("*") if path.is_file())


def test_every_file_of_a_state_is_checked(run, caplog):
    for path in [*state_files(run, 3), run / "checkpoints/3/about/metadata"]:
        flip(path)
        assert restore(run) == 2
        assert f"{path}: has changed since it was written" in caplog.text and "checkpoint 2 is used" in caplog.text
        with pytest.raises(UserError, match="has changed since it was written"):
            restore(run, strict=True)
        with pytest.raises(UserError, match="has changed since it was written"):
            restore(run, "3")
        flip(path)
        caplog.clear()
    assert restore(run) == 3 and "is used" not in caplog.text


def test_a_copy_that_was_cut_off_is_called_that(run, caplog):
    for path in state_files(run, 3)[3:]:
        path.unlink()
    assert restore(run) == 2 and "files are missing, the first is state/" in caplog.text
    (run / "checkpoints/2" / MANIFEST).unlink()
    assert restore(run) == 1 and f"its {MANIFEST} is missing: a copy that was cut off?" in caplog.text
    shutil.rmtree(run / "checkpoints/1/about")
    with pytest.raises(UserError, match=f"^{run}/checkpoints/3: .* files are missing"):
        restore(run)


def test_files_that_are_not_needed_stop_nothing(run, caplog):
    (run / "checkpoints/3/_CHECKPOINT_METADATA").write_bytes(b"x")
    (run / "checkpoints/2/_CHECKPOINT_METADATA").unlink()
    (run / "checkpoints/1/commit_success.txt").write_bytes(b"")
    assert [restore(run, which) for which in ("latest", "2", "1")] == [3, 2, 1]
    assert restore(run, "best") == 2


def test_checkpoints_of_an_earlier_ringrl_are_read(run, caplog):
    for step in (1, 2, 3):
        as_of_format_2(run / f"checkpoints/{step}")
    assert restore(run) == 3 and restore(run, "best") == 2
    assert caplog.text.count(f"checkpoints/3: written by an earlier ringrl, without {MANIFEST}") == 1
    (run / "checkpoints/2/metrics/metrics").write_bytes(b"{")  # once, this hid all three
    assert restore(run) == 3 and restore(run, "best") == 1
    for path in state_files(run, 3):
        path.write_bytes(b"")
    assert restore(run) == 2 and "checkpoints/3: cannot be read (" in caplog.text
    with pytest.raises(UserError, match="checkpoints/3: cannot be read"):
        restore(run, strict=True)


def test_training_goes_on_before_a_damaged_one_and_writes_it_again(run, caplog):
    flip(state_files(run, 3)[0])
    with Checkpoints(run, keep=3) as checkpoints:
        _, about = checkpoints.restore(place(ONE))
        assert about["step"] == 2 and "checkpoints/3: renamed to 3.damaged" in caplog.text
        save(checkpoints, 3, 0.5)
    assert restore(run) == 3 == restore(run, "best", strict=True)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["1", "2", "3", "3.damaged"]


def test_one_that_a_live_training_removes_meanwhile_is_no_damage(run, monkeypatch, caplog):
    from ringrl.training import checkpoint

    verify = checkpoint.verify

    def removing(folder):
        if folder.name == "3":
            shutil.rmtree(folder / "state")
            monkeypatch.setattr(checkpoint, "verify", verify)
            try:
                return verify(folder)
            finally:
                shutil.rmtree(folder)
        return verify(folder)

    monkeypatch.setattr(checkpoint, "verify", removing)
    assert restore(run) == 2 and "is used" not in caplog.text
