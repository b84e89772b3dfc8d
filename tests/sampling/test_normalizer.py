"""The scales of a data set: measured as NumPy does, and kept to the bit."""

from dataclasses import fields

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.sampling.normalizer import Normalizer
from tests.sampling.stores import MemoryStore


def test_normalizer_measures_what_numpy_does():
    store = MemoryStore([40, 30, 50, 20])
    fitted = Normalizer.fit(store, "any", np.array([0, 2, 3], np.int64))
    observation = np.concatenate([store.observation[e] for e in (0, 2, 3)]).astype(np.float64)
    reward = np.concatenate([store.reward[e] for e in (0, 2, 3)]).astype(np.float64)
    np.testing.assert_allclose(fitted.observation_mean, observation.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted.observation_std, observation.std(axis=0) + 1e-6, rtol=1e-6)
    assert fitted.return_scale == pytest.approx(store.returns("any")[[0, 2, 3]].max())
    assert fitted.reward_scale == pytest.approx(reward.std())
    normal = fitted.normalize_observation(observation.astype(np.float32))
    assert normal.dtype == np.float32
    np.testing.assert_allclose([normal.mean(), normal.std()], [0, 1], atol=1e-5)


def test_normalizer_counts_agent_steps_under_an_action_repeat():
    store = MemoryStore([7, 6])
    fitted = Normalizer.fit(store, "any", action_repeat=3)
    observation = np.concatenate([each[::3] for each in store.observation])
    reward = [each[first : first + 3].sum() for each in store.reward for first in range(0, len(each), 3)]
    np.testing.assert_allclose(fitted.observation_mean, observation.mean(axis=0), rtol=1e-6)
    assert fitted.reward_scale == pytest.approx(np.std(reward), rel=1e-6)


def test_normalizer_leaves_constants_alone():
    store = MemoryStore([6, 6])
    for observation, reward in zip(store.observation, store.reward, strict=True):
        observation[:, 1] = 0.1
        reward[:] = 0
    fitted = Normalizer.fit(store, "any")
    assert fitted.observation_std[1] == 1
    assert (fitted.return_scale, fitted.reward_scale) == (1.0, 1.0)


def test_normalizer_subsamples_evenly_but_counts_every_return():
    store = MemoryStore([4] * 9)
    store.reward[1][:] = 100
    fitted = Normalizer.fit(store, "any", max_episodes=3)
    assert [span[0] for span in store.spans] == [0, 4, 8]
    assert fitted.return_scale == 400
    with pytest.raises(UserError, match="no episodes"):
        Normalizer.fit(store, "any", np.array([], np.int64))


def test_normalizer_survives_the_disk(tmp_path):
    fitted = Normalizer.fit(MemoryStore([5, 6]), "any")
    path = tmp_path / "normalizer.json"
    path.write_bytes(fitted.to_json())
    loaded = Normalizer.load(path)
    for field in fields(Normalizer):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(fitted, field.name))
    assert [each.name for each in tmp_path.iterdir()] == ["normalizer.json"]
    with pytest.raises(UserError, match="no such file"):
        Normalizer.load(tmp_path / "absent.json")
    path.write_text('{"return_scale": 1}')
    with pytest.raises(UserError, match="`observation_mean`: Field required"):
        Normalizer.load(path)
