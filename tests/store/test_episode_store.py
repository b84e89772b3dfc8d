import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.episode import StepSpan
from ringrl.errors import UserError
from ringrl.sampling.chains import EpisodeReader
from ringrl.store import builder, zarr
from ringrl.store import episode_store as stores
from tests import builders

TASKS = ["walker_run", "walker_walk"]
SOURCES = [stores.DataSource("a", "a", "rnd"), stores.DataSource("b", "buffer", collected={"seed": 3})]


def make_episode(length, seed=0, widths=(3, 2, 2, 4)):
    """An episode whose steps have discounts of their own, and which may have ended."""
    rng = np.random.default_rng(seed)
    discount = np.append(rng.uniform(0.1, 1, length - 1), rng.integers(0, 2)).astype(np.float32)
    return builders.make_episode(length, seed, widths, discount)


def build(out, episodes, sources=None, **options):
    sources = sources or [0] * len(episodes)
    options = {"domain": "walker", "tasks": TASKS, "sources": SOURCES, "provenance": {"relabel": "exact"}} | options
    return stores.build(out, iter(zip(episodes, sources, strict=True)), **options)


@pytest.fixture
def small_files(monkeypatch):
    """Arrays of many chunks and files from little data."""
    monkeypatch.setattr(builder, "_MIN_CHUNK_ROWS", 4)
    monkeypatch.setattr(zarr, "_SHARD_BYTES", 300)


@pytest.fixture
def episodes():
    return [make_episode(length, seed) for seed, length in enumerate([5, 1, 9, 30])]


def assert_steps(steps, episode, start, stop, column):
    np.testing.assert_array_equal(steps.observation, episode.observation[start : stop + 1])
    np.testing.assert_array_equal(steps.action, episode.action[start:stop])
    np.testing.assert_array_equal(steps.reward, episode.reward[start:stop, column])
    np.testing.assert_array_equal(steps.discount, episode.discount[start:stop])
    assert steps.demonstrator is None
    named = dataclasses.asdict(steps).items()
    assert {array.dtype for name, array in named if name != "demonstrator"} == {np.dtype(np.float32)}


def test_what_is_built_is_read_back(tmp_path, episodes, small_files):
    store = stores.open_store(build(tmp_path / "walker", episodes, [0, 0, 1, 1]))
    assert (store.domain, store.tasks, store.episodes) == ("walker", tuple(TASKS), 4)
    assert tuple(store.dims) == (3, 2, 2, 4)
    np.testing.assert_array_equal(store.lengths, np.array([5, 1, 9, 30]))
    np.testing.assert_array_equal(store.source, [0, 0, 1, 1])
    assert store.lengths.dtype == np.int64 and store.source.dtype == np.int32
    for column, task in enumerate(TASKS):
        expected = [episode.reward[:, column].sum(dtype=np.float64) for episode in episodes]
        np.testing.assert_allclose(store.returns(task), expected, rtol=1e-12)
        assert store.returns(task).dtype == np.float64
        spans = [(3, 0, 30), (0, 2, 3), (2, 4, 9), (1, 0, 1), (3, 29, 30)]
        for span, steps in zip(spans, store.read_many(spans, task), strict=True):
            assert_steps(steps, episodes[span[0]], *span[1:], column)
    for index, episode in enumerate(episodes):
        np.testing.assert_array_equal(store.physics(index), episode.physics)
    assert len(list((tmp_path / "walker" / "transition").rglob("c/*/*"))) == 5  # 49 rows, 12 a file


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), data=st.data())
def test_any_span_of_any_lengths(tmp_path_factory, lengths, data):
    episodes = [make_episode(length, seed) for seed, length in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "_MIN_CHUNK_ROWS", 4)
        patch.setattr(zarr, "_SHARD_BYTES", 100)
        store = stores.open_store(build(tmp_path_factory.mktemp("store") / "s", episodes))
    episode = data.draw(st.integers(0, len(lengths) - 1))
    start = data.draw(st.integers(0, lengths[episode] - 1))
    stop = data.draw(st.integers(start + 1, lengths[episode]))
    assert_steps(store.read(episode, start, stop, TASKS[1]), episodes[episode], start, stop, 1)


def test_whole_episodes_are_what_was_stored(tmp_path, episodes, small_files):
    store = stores.open_store(build(tmp_path / "s", episodes))
    for index, episode in enumerate(episodes):
        found = store.episode(index, TASKS[1])
        for name, values in vars(episode).items():
            np.testing.assert_array_equal(getattr(found, name), values[:, 1:] if name == "reward" else values)
    with pytest.raises(IndexError, match="episode 4: 4 episodes"):
        store.episode(4, TASKS[0])


def test_it_is_what_chains_and_loaders_ask_for(tmp_path, episodes):
    store = stores.open_store(build(tmp_path / "s", episodes))
    assert isinstance(store, EpisodeReader) and isinstance(store.read(0, 0, 2, TASKS[0]), StepSpan)


def test_metadata_says_where_the_data_come_from(tmp_path, episodes):
    build(tmp_path / "s", episodes, [0, 1, 1, 1])
    metadata = json.loads((tmp_path / "s" / "store.json").read_text())
    assert (metadata["version"], metadata["episodes"], metadata["steps"]) == (3, 4, 45)
    assert metadata["dims"] == {"observation": 3, "action": 2, "reward": 2, "physics": 4}
    store = stores.open_store(tmp_path / "s")
    assert {"created", "mujoco", "dm_control", "ringrl", "relabel"} <= set(store.provenance)
    assert [(s.name, s.collector, s.episodes, s.first, s.last) for s in store.sources] == [
        ("a", "rnd", 1, 0, 0),
        ("b", None, 3, 1, 3),
    ]
    assert store.sources[1].collected == {"seed": 3}
    assert str(tmp_path) not in (tmp_path / "s" / "store.json").read_text()


def test_a_source_without_episodes_is_kept(tmp_path, episodes):
    empty = stores.open_store(build(tmp_path / "s", episodes, [1, 1, 1, 1])).sources[0]
    assert (empty.episodes, empty.first, empty.last) == (0, None, None)


def test_a_store_can_be_pickled(tmp_path, episodes):
    store = pickle.loads(pickle.dumps(stores.open_store(build(tmp_path / "s", episodes))))
    assert_steps(store.read(2, 0, 9, TASKS[0]), episodes[2], 0, 9, 0)


def test_an_existing_store_is_replaced_only_with_overwrite(tmp_path, episodes):
    out = build(tmp_path / "s", episodes)
    with pytest.raises(UserError, match="exists already.*--overwrite"):
        build(out, episodes[:1])
    assert stores.open_store(out).episodes == 4
    build(out, episodes[:1], overwrite=True)
    assert stores.open_store(out).episodes == 1
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_no_store_is_never_replaced(tmp_path, episodes):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="has no store.json"):
        build(tmp_path / "mine", episodes, overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def failing(error):
    yield make_episode(5), 0
    raise error


@pytest.mark.parametrize("error", [UserError("truncated"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        stores.build(tmp_path / "s", failing(error), domain="walker", tasks=TASKS, sources=SOURCES, provenance={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "second, message",
    [
        (make_episode(3, widths=(4, 2, 2, 4)), "episode 1 has widths observation 4.*expected observation 3"),
        (make_episode(3, widths=(3, 2, 1, 4)), "episode 1 has widths .*reward 1.*expected .*reward 2"),
    ],
)
def test_unlike_episodes_are_refused(tmp_path, second, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path / "s", [make_episode(3), second])
    with pytest.raises(UserError, match="no episodes to build"):
        build(tmp_path / "s", [])
    with pytest.raises(ValueError, match="of source 7, but there are 2"):
        build(tmp_path / "s", [make_episode(3)], [7])
    assert list(tmp_path.iterdir()) == []


def test_bad_requests(tmp_path, episodes):
    store = stores.open_store(build(tmp_path / "s", episodes))
    with pytest.raises(UserError, match="no rewards of 'walker_stand'; it has walker_run, walker_walk"):
        store.returns("walker_stand")
    with pytest.raises(UserError, match="no rewards of 'run'"):
        store.read(0, 0, 1, "run")
    for span in [(0, 0, 6), (0, 2, 2), (0, -1, 2), (4, 0, 1), (-1, 0, 1)]:
        with pytest.raises(IndexError, match=f"steps {span[1]}:{span[2]} of episode {span[0]}"):
            store.read(*span, TASKS[0])
    with pytest.raises(IndexError):
        store.physics(4)


def spoil(out, name):
    builders.unseal(out)
    if name == "missing folder":
        return out.with_name("nowhere"), "does not exist"
    if name == "foreign folder":
        (out / "store.json").unlink()
        return out, "is not an episode store"
    if name == "foreign json":
        (out / "store.json").write_text("[1]")
        return out, "is not an episode store"
    if name == "broken json":
        (out / "store.json").write_text('{"format"')
        return out, "is damaged.*store.json"
    if name == "older":
        text = (out / "store.json").read_text()
        (out / "store.json").write_text(text.replace('"version": 3', '"version": 1', 1))
        return out, "store format 1, this ringrl reads 3; build it again"
    if name == "missing key":
        text = (out / "store.json").read_text()
        (out / "store.json").write_text(text.replace('"dims"', '"sizes"'))
        return out, "is damaged.*dims"
    if name == "lost array":
        (out / "reward" / TASKS[0] / "zarr.json").unlink()
        return out, "is damaged"
    if name == "wrong shape":
        text = (out / "transition" / "zarr.json").read_text()
        (out / "transition" / "zarr.json").write_text(text.replace('"shape":[49,6]', '"shape":[48,6]'))
        return out, r"is damaged.*transition has shape \(48, 6\), not \(49, 6\)"
    text = (out / "store.json").read_text()
    (out / "store.json").write_text(text.replace('"reward": 2', '"reward": 1'))
    return out, "is damaged.*disagree"


SPOILT = ["missing folder", "foreign folder", "foreign json", "broken json", "older", "missing key", "lost array"]


@pytest.mark.parametrize("name", [*SPOILT, "wrong shape", "wrong width"])
def test_damaged_stores_do_not_open(tmp_path, episodes, name):
    path, message = spoil(build(tmp_path / "s", episodes), name)
    with pytest.raises(UserError, match=message) as caught:
        stores.open_store(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("array", ["transition", f"reward/{TASKS[0]}", "offsets", "physics"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "lost"])
def test_lost_and_damaged_rows_are_errors_not_zeros(tmp_path, episodes, array, damage):
    out = build(tmp_path / "s", episodes)
    file = next(path for path in (out / array / "c").rglob("*") if path.is_file())
    content = bytearray(file.read_bytes())
    content[20] ^= 255
    file.write_bytes(content if damage == "flipped" else b"")
    if damage == "lost":
        file.unlink()
    store = stores.open_store(out)
    with pytest.raises(UserError, match="is damaged, build it again") as caught:
        store.physics(0) if array == "physics" else store.read(0, 0, 3, TASKS[0])
    assert "\n" not in str(caught.value)


def test_wrong_offsets_are_found_out(tmp_path, episodes):
    out = build(tmp_path / "s", episodes)
    shutil.rmtree(out / "offsets")
    zarr.write_array(out / "offsets", np.array([0, 6, 6, 18, 49], np.int64))
    with pytest.raises(UserError, match="is damaged.*offsets"):
        _ = stores.open_store(out).lengths


def test_opening_reads_nothing_of_the_episodes(tmp_path, episodes):
    out = build(tmp_path / "s", episodes)
    for file in out.rglob("c/**/*"):
        if file.is_file():
            file.unlink()
    assert (stores.open_store(out).episodes, stores.open_store(out).tasks) == (4, tuple(TASKS))


def test_episodes_without_physics_states(tmp_path):
    episodes = [make_episode(4, seed, widths=(3, 2, 2, 0)) for seed in range(2)]
    out = build(tmp_path / "s", episodes)
    store = stores.open_store(out)
    assert store.dims.physics == 0 and not (out / "physics").exists()
    assert_steps(store.read(1, 1, 4, TASKS[0]), episodes[1], 1, 4, 0)
    with pytest.raises(UserError, match="s has no physics states: what it was built from had none"):
        store.physics(0)


def test_an_episode_may_end_early(tmp_path):
    ended = dataclasses.replace(make_episode(3), discount=np.array([1, 1, 0], np.float32))
    store = stores.open_store(build(tmp_path / "s", [make_episode(5), ended]))
    np.testing.assert_array_equal(store.read(1, 0, 3, TASKS[0]).discount, [1, 1, 0])


@pytest.mark.parametrize("memory_limit", [0, 2**29])
def test_a_span_knows_what_was_earned_before_it(tmp_path, episodes, memory_limit):
    store = stores.open_store(build(tmp_path / "s", episodes), memory_limit=memory_limit)
    for start in (0, 1, 8):
        earlier = store.read(2, start, 9, TASKS[1]).earlier
        np.testing.assert_array_equal(earlier, episodes[2].reward[:start, 1])
    assert store.read_many([], TASKS[0]) == []


def test_rows_of_zeros_are_kept(tmp_path):
    nothing = dataclasses.replace(make_episode(4), reward=np.zeros((4, 2), np.float32))
    store = stores.open_store(build(tmp_path / "s", [nothing]))
    np.testing.assert_array_equal(store.read(0, 0, 4, TASKS[0]).reward, np.zeros(4, np.float32))


def test_files_and_chunks_are_bounded():
    assert zarr.shard_rows(4, 1001) == 1001 * (2**25 // 4004)
    assert zarr.shard_rows(31 * 4, 1001) * 31 * 4 <= 2**25
    assert zarr.shard_rows(10**9, 1001) == 1001
