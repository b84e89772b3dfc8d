"""A store's descriptions are verified when it is opened, its chunks when they are read."""

import pickle
import shutil

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.manifest import MANIFEST, check
from ringrl.store.episode_store import build, open_store
from tests.builders import make_episode, unseal


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("store") / "rig", [make_episode(6, seed) for seed in range(4)], domain="rig")


@pytest.fixture
def store(built, tmp_path):
    return shutil.copytree(built, tmp_path / "rig")


def read_all(path):
    """Every number of a store."""
    store = open_store(path)
    episodes = [store.episode(index, "rig") for index in range(store.episodes)]
    return episodes, store.source.sum(), store.returns("rig").sum()


def test_a_flipped_bit_of_any_file_is_noticed(store):
    rng = np.random.default_rng(0)
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        skipped = whole.index(b"\n") if path.name == MANIFEST else 0  # a line that says only how much is missing
        for index in rng.integers(skipped, len(whole), 24):
            path.write_bytes(whole[:index] + bytes([whole[index] ^ 2 ** rng.integers(8)]) + whole[index + 1 :])
            if path.name != MANIFEST:
                with pytest.raises(UserError, match="damaged|has changed|missing"):
                    read_all(store)
        path.write_bytes(whole)
    read_all(store)


def test_a_copy_that_was_cut_off_is_called_that(store):
    (store / "transition/c/0/0").rename(store / "lost")
    with pytest.raises(UserError, match="1 of .* files are missing, the first is transition/c/0/0: a copy that"):
        read_all(store)
    (store / "transition/c/0/0").write_bytes((store / "lost").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"the folder has \d+ of \d+ bytes: a copy that was cut off\?"):
        read_all(store)
    (store / MANIFEST).unlink()
    with pytest.raises(UserError, match=f"{store} is damaged, .*: its {MANIFEST} is missing: a copy that was cut off"):
        open_store(store)


def test_a_store_of_an_earlier_ringrl_is_read_and_said_to_be_unverified(store, caplog):
    unseal(store)
    for _ in range(2):
        assert len(read_all(store)[0]) == 4 and not open_store(store).verified
    pickle.loads(pickle.dumps(open_store(store)))
    assert caplog.text.count(f"{store}: written by an earlier ringrl, without {MANIFEST}: it cannot be verified") == 1


def test_all_files_of_a_store_are_in_its_manifest(store):
    assert check(store) and open_store(store).verified
