"""The actions of a demonstrator in a store: where all episodes have them, and read only where they are asked for."""

from dataclasses import replace

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.store.builder import build
from ringrl.store.episode_store import open_store
from tests.builders import make_episode

TASK = "rig_run"
SPANS = [(3, 0, 30), (0, 2, 3), (2, 4, 9), (1, 0, 1), (3, 29, 30)]


@pytest.fixture
def episodes():
    return [make_episode(length, seed, (3, 2, 1, 4)) for seed, length in enumerate([5, 1, 9, 30])]


def built(path, episodes):
    return build(path, episodes, domain="rig", tasks=[TASK])


@pytest.mark.parametrize("memory_limit", [0, 2**20])
def test_it_is_read_where_it_is_asked_for(tmp_path, episodes, memory_limit):
    shown = [replace(episode, demonstrator=episode.action[::-1] / 2) for episode in episodes]
    store = open_store(built(tmp_path / "s", shown), memory_limit=memory_limit)
    assert store.demonstrator
    plain = store.read_many(SPANS, TASK)
    asked = store.read_many(SPANS, TASK, demonstrator=True)
    for (index, start, stop), steps, without in zip(SPANS, asked, plain, strict=True):
        np.testing.assert_array_equal(steps.demonstrator, shown[index].demonstrator[start:stop])
        assert without.demonstrator is None
        for name, values in vars(replace(steps, demonstrator=None)).items():
            np.testing.assert_array_equal(values, getattr(without, name))
    for index, episode in enumerate(shown):
        for name, values in vars(episode).items():
            np.testing.assert_array_equal(getattr(store.episode(index, TASK), name), values)
    # Rows as those of the other arrays: zeros beside an episode's last observation.
    rows = store._arrays.whole("demonstrator")
    np.testing.assert_array_equal(rows[:5], shown[0].demonstrator)
    assert rows.shape == (49, 2) and not rows[[5, 7, 17, 48]].any()


@pytest.mark.parametrize("lacking", [0, 3])
def test_a_store_where_an_episode_has_none_has_none(tmp_path, episodes, lacking):
    mixed = [e if i == lacking else replace(e, demonstrator=e.action) for i, e in enumerate(episodes)]
    path, plain = built(tmp_path / "mixed", mixed), built(tmp_path / "plain", episodes)
    found, expected = ({file.relative_to(at) for file in at.rglob("*")} for at in (path, plain))
    assert found == expected and "demonstrator" not in (path / "store.json").read_text()
    store = open_store(path)
    assert not store.demonstrator and store.episode(1, TASK).demonstrator is None
    with pytest.raises(UserError, match="has no actions of a demonstrator: not all its episodes"):
        store.read_many(SPANS, TASK, demonstrator=True)


def test_a_lost_file_of_it_is_found_out(tmp_path, episodes):
    path = built(tmp_path / "s", [replace(episode, demonstrator=episode.action) for episode in episodes])
    (path / "demonstrator" / "zarr.json").unlink()
    with pytest.raises(UserError, match="is damaged"):
        open_store(path)
