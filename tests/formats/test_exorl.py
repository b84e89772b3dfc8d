import dataclasses
import io
import pickle
import zipfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.episode import Dims, Episode
from ringrl.errors import UserError
from ringrl.formats import exorl
from tests.builders import make_episode


def raw(episode):
    """The arrays of its file: a dummy row before the first step's action, reward and discount."""
    return {
        "observation": episode.observation,
        "action": np.pad(episode.action, ((1, 0), (0, 0))),
        "reward": np.pad(episode.reward, ((1, 0), (0, 0))),
        "discount": np.pad(episode.discount, (1, 0), constant_values=1)[:, None],
        "physics": episode.physics,
    }


def save(folder, arrays, name="episode_000000_6.npz"):
    path = Path(folder) / name
    np.savez(path, **arrays)
    return path


def equal(left, right):
    for name, array in dataclasses.asdict(left).items():
        other = getattr(right, name)
        np.testing.assert_array_equal(array, other)
        assert array is other is None or array.dtype == other.dtype


floats = st.floats(-1e6, 1e6, width=32)


@st.composite
def episodes(draw):
    steps = draw(st.integers(1, 8))
    wide = lambda dtype, rows, elements: hnp.arrays(dtype, (rows, draw(st.integers(1, 4))), elements=elements)  # noqa: E731
    action = draw(wide(np.float32, steps, st.floats(-1, 1, width=32)))
    return Episode(
        observation=draw(wide(np.float32, steps + 1, floats)),
        action=action,
        demonstrator=draw(st.sampled_from([None, -action[::-1]])),
        reward=draw(wide(np.float32, steps, floats)),
        discount=np.array([1.0] * (steps - 1) + [draw(st.sampled_from([0.0, 1.0]))], np.float32),
        physics=draw(wide(np.float64, steps + 1, st.floats(-1e9, 1e9))),
    )


@settings(deadline=None, max_examples=25)
@given(episode=episodes(), index=st.integers(0, 10**7))
def test_written_episodes_are_read_back_unchanged(tmp_path_factory, episode, index):
    folder = tmp_path_factory.mktemp("buffer")
    path = exorl.write_episode(folder, index, episode)
    assert path.name == f"episode_{index:06d}_{episode.length}.npz"
    assert list(folder.iterdir()) == [path]
    equal(exorl.read_episode(path, dims=episode.dims), episode)
    again = exorl.write_episode(folder / "again", index, exorl.read_episode(path))
    assert again.read_bytes() == path.read_bytes()


def test_written_layout_is_exorls(tmp_path):
    episode = make_episode(widths=(3, 2, 4, 5))
    with np.load(exorl.write_episode(tmp_path / "new" / "buffer", 12, episode), allow_pickle=False) as file:
        shapes = {name: (file[name].shape, file[name].dtype.name) for name in file.files}
    assert shapes == {
        "observation": ((7, 3), "float32"),
        "action": ((7, 2), "float32"),
        "reward": ((7, 4), "float32"),
        "discount": ((7, 1), "float32"),
        "physics": ((7, 5), "float64"),
    }


def test_a_demonstrators_actions_are_as_the_actions(tmp_path):
    episode = make_episode()
    shown = dataclasses.replace(episode, demonstrator=-episode.action)
    path = exorl.write_episode(tmp_path, 0, shown)
    with np.load(path) as file:
        np.testing.assert_array_equal(file["demonstrator"], -file["action"])
        assert file["demonstrator"].dtype == np.float32 and not file["demonstrator"][0].any()
    equal(exorl.read_episode(path), shown)


def test_any_dummy_row_is_dropped(tmp_path):
    episode, arrays = make_episode(), raw(make_episode())
    assert exorl.read_with_dummy_row(save(tmp_path, arrays))[1].standard
    arrays["action"][0], arrays["reward"][0], arrays["discount"][0] = 0.25, np.nan, 0.0
    found, dummy = exorl.read_with_dummy_row(save(tmp_path, arrays))
    equal(found, episode)
    assert dummy.action.tolist() == [0.25, 0.25] and np.isnan(dummy.reward).all() and dummy.discount == 0.0
    assert not dummy.standard


def test_unknown_keys_are_ignored_and_flat_rewards_taken(tmp_path):
    episode = make_episode()
    arrays = raw(episode) | {"reward": raw(episode)["reward"][:, 0], "skill": np.zeros((7, 16), np.float32)}
    equal(exorl.read_episode(save(tmp_path, arrays, "20220101T120000_3_6.npz")), episode)


def test_urlbs_files_have_no_physics_and_are_written_without(tmp_path):
    arrays = raw(make_episode()) | {"step_type": np.int32([0, 1, 1, 1, 1, 1, 2]), "skill": np.zeros((7, 2))}
    del arrays["physics"]
    found = exorl.read_episode(save(tmp_path, arrays))
    equal(found, dataclasses.replace(make_episode(), physics=np.zeros((7, 0))))
    again = exorl.write_episode(tmp_path / "again", 0, found)
    assert "physics" not in np.load(again).files
    equal(exorl.read_episode(again), found)


def test_actions_are_clipped_where_that_is_asked_for(tmp_path):
    episode, arrays = make_episode(), raw(make_episode())
    arrays["demonstrator"] = arrays["action"] = 5 * arrays["action"]
    path = save(tmp_path, arrays)
    with pytest.raises(UserError, match="clip the actions"):
        exorl.read_episode(path)
    found = exorl.read_episode(path, clip=True)
    np.testing.assert_array_equal(found.action, np.clip(5 * episode.action, -1, 1))
    np.testing.assert_array_equal(found.demonstrator, found.action)
    arrays["action"][3] = np.inf
    with pytest.raises(UserError, match="action is NaN or infinite in step 2"):
        exorl.read_episode(save(tmp_path, arrays), clip=True)


def with_value(name, value):
    def change(arrays):
        array = arrays[name].copy()
        array[3] = value
        return arrays | {name: array}

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (with_value("reward", np.nan), "reward is NaN or infinite in step 2"),
        (with_value("observation", np.inf), "observation is NaN or infinite in step 3"),
        (with_value("physics", -np.inf), "physics is NaN or infinite in step 3"),
        (with_value("action", 1.5), r"an action is 1.5, outside \[-1, 1\]"),
        (with_value("discount", 0.0), "discount is 0 in step 2 of 6: only the last step can end an episode"),
        (lambda a: a | {"action": a["action"][:-1]}, "action has 6 rows, but the name says 6 transitions, so 7 rows"),
        (lambda a: {name: array[:-1] for name, array in a.items()}, "observation has 6 rows, but the name says 6"),
        (lambda a: a | {"physics": a["physics"].astype(np.float32)}, "physics is float32, not float64"),
        (lambda a: a | {"observation": a["observation"].astype(np.float64)}, "observation is float64, not float32"),
        (lambda a: a | {"observation": a["observation"][:, 0]}, r"observation has shape \(7,\)"),
        (lambda a: a | {"discount": np.ones((7, 2), np.float32)}, r"discount has shape \(7, 2\), not \(7, 1\)"),
        (lambda a: {name: a[name] for name in a if name != "reward"}, "it has no reward; it has observation, action"),
        (with_value("observation", 3e38), "observation is 3e[+]38 in size, beyond 1e[+]10, first in step 3"),
        (with_value("discount", np.nan), "discount is NaN or infinite in step 2"),
        (lambda a: a | {"observation": np.zeros((7, 9, 8, 8), np.uint8)}, "as pixels are: give state observations"),
        (lambda a: a | {"step_type": np.uint8([0, 1, 1, 2, 0, 1, 2])}, "row 4 begins another episode"),
        (lambda a: a | {"step_type": np.zeros(7, "i4,f4")}, "step_type is .*, not whole numbers"),
        (lambda a: a | {"step_type": np.int64([[0], [1], [1], [0], [1], [1], [2]])}, "row 3 begins another episode"),
        (lambda a: a | {"reward": np.array([{}] * 7, object)}, "pickled objects, which are never loaded"),
        (lambda a: a | {"demonstrator": a["action"].astype(np.float64)}, "demonstrator is float64, not float32"),
        (lambda a: a | {"demonstrator": a["action"][1:]}, "demonstrator has 6 rows, but the name says 6 transitions"),
        (lambda a: a | {"demonstrator": a["action"] + 2}, "a demonstrator's action is"),
    ],
)
def test_bad_contents_are_named(tmp_path, change, message):
    path = save(tmp_path, change(raw(make_episode())))
    with pytest.raises(UserError, match=message) as caught:
        exorl.read_episode(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unpickling_never_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.write_text, (tmp_path / "ran", "boom")

    save(tmp_path, raw(make_episode()) | {"reward": np.array([Bomb()] * 7, object)})
    (tmp_path / "episode_000001_6.npz").write_bytes(pickle.dumps(Bomb()))
    for path in exorl.list_episodes(tmp_path):
        with pytest.raises(UserError, match=path.name):
            exorl.read_episode(path)
    assert not (tmp_path / "ran").exists()


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0, 0.999))
def test_a_file_cut_anywhere_is_a_user_error(tmp_path_factory, share):
    path = exorl.write_episode(tmp_path_factory.mktemp("cut"), 0, make_episode())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="episode_000000_6.npz: bad episode file: it is truncated"):
        exorl.read_episode(path)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_byte_is_a_user_error_or_harmless(tmp_path_factory, data):
    episode = make_episode()
    path = exorl.write_episode(tmp_path_factory.mktemp("flip"), 0, episode)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        equal(exorl.read_episode(path), episode)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("at", ["its name", "the comment before it"])
def test_an_array_that_the_archive_hides_is_missed(at, tmp_path):
    """One wrong byte in its directory. Without `physics` it would pass for an episode that has none."""
    path = exorl.write_episode(tmp_path, 0, make_episode())
    content = bytearray(path.read_bytes())
    name = content.rfind(b"physics.npy")
    content[name if at == "its name" else content.rfind(b"PK\1\2", 0, name - 46) + 33] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated or damaged"):
        exorl.read_episode(path)


def with_header(folder, header):
    """An episode file whose observation has this .npy header."""
    path = Path(folder) / "episode_000000_6.npz"
    with zipfile.ZipFile(path, "w") as made:
        for name, array in raw(make_episode()).items():
            content = io.BytesIO()
            np.save(content, array)
            made.writestr(f"{name}.npy", content.getvalue())
        made.filelist, made.NameToInfo = made.filelist[1:], {info.filename: info for info in made.filelist[1:]}
        made.writestr("observation.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"('''",
        b"{[]: 1}",
        b"{1: 2, 'a': 3}",
        b"{'descr': '<f4',",
        b"(" * 3000,
        b"[-" * 4000,
        b"{'descr': (), 'fortran_order': False, 'shape': (7, 3)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, %d)}" % 10**30,
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 0)}",
        b"{'descr': '\\d', 'fortran_order': False, 'shape': (7L, 3L)}",
        b"\0\xff",
        b"",
    ],
)
def test_a_damaged_array_header_is_a_bad_file(tmp_path, header):
    path = with_header(tmp_path, header)
    with pytest.raises(UserError, match="episode_000000_6.npz: bad episode file") as caught:
        exorl.read_episode(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000 + len(str(path))


_WORDS = [*"{}()[],:'-1730L#\\\n", '"""', "<f4", "O", "V0"]
_WORDS += ["'descr'", "'fortran_order'", "'shape'", "False", "(7, 3)", "{'descr': '<f4', 'fortran_order': ", " "]


@settings(deadline=None, max_examples=150)
@given(
    st.binary(max_size=60) | st.lists(st.sampled_from(_WORDS), max_size=25).map(lambda words: "".join(words).encode())
)
def test_any_array_header_without_its_data_is_a_bad_file(tmp_path_factory, header):
    path = with_header(tmp_path_factory.getbasetemp(), header)
    with pytest.raises(UserError, match="episode_000000_6.npz: bad episode file"):
        exorl.read_episode(path)


def test_widths_must_be_those_asked_for(tmp_path):
    path = exorl.write_episode(tmp_path, 0, make_episode())
    with pytest.raises(
        UserError, match="widths are observation 3, action 2, reward 1, physics 4; expected observation 9"
    ):
        exorl.read_episode(path, dims=Dims(9, 2, 1, 4))


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(KeyboardInterrupt):
        exorl.write_episode(tmp_path, 0, make_episode())
    assert list(tmp_path.iterdir()) == []
