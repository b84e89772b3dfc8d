"""The same bad episode is refused at every door, in one line that says what is wrong; a good one is let in."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from benchmarks._recorded_sets import write_lerobot, write_vintix
from ringrl import recipes
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.formats import exorl
from ringrl.sampling.normalizer import Normalizer
from ringrl.store.episode_store import build, open_store
from tests.builders import make_episode
from tests.formats.test_store_v2 import write_store

STEPS, TASK = 8, "cartpole_balance"  # of which files, that have no more than noise, are relabelled
Arrays = dict[str, np.ndarray]


def good() -> Arrays:
    """The arrays of an episode, by name: of cartpole's widths."""
    episode = make_episode(STEPS, widths=(5, 1, 1, 4))
    return {name: getattr(episode, name).copy() for name in ("observation", "action", "reward", "discount", "physics")}


def changed(name: str, value: float, step: int = 3) -> Arrays:
    arrays = good()
    arrays[name][step] = value
    return arrays


def with_pixels() -> Arrays:
    return good() | {"observation": np.zeros((STEPS + 1, 3, 8, 8), np.uint8)}


BAD: dict[str, tuple[Arrays, str]] = {
    "glued": (changed("discount", 0), "before the last step|only the last step can end an episode"),
    "observation 3e38": (changed("observation", 3e38), r"observation is 3e\+38 in size, beyond 1e\+10"),
    "reward 3e38": (changed("reward", -3e38), r"reward.* is 3e\+38 in size, beyond 1e\+10"),
    "NaN observation": (changed("observation", np.nan), "observation is NaN or infinite"),
    "NaN reward": (changed("reward", np.nan), "reward.* is NaN or infinite"),
    "NaN discount": (changed("discount", np.nan), "(discount|terminated) (is|has a) NaN or (an )?infinite"),
    "action 1.5": (changed("action", 1.5), r"an action is 1.5"),
    "pixels": (with_pixels(), "as pixels are: give state observations"),
}


def through_episode(arrays: Arrays, folder: Path, clip: bool) -> None:
    Episode(**arrays)


def through_arrays(arrays: Arrays, folder: Path, clip: bool) -> None:
    given = {name: values for name, values in arrays.items() if name != "discount"}
    Episode.from_arrays(**given, terminated=1 - arrays["discount"], clip=clip)


def write_file(arrays: Arrays, folder: Path) -> Path:
    """As ExoRL's, with the dummy row."""
    before = {"action": 0, "reward": 0, "discount": 1}
    rows = {n: np.concatenate([np.full_like(v[:1], before[n]), v]) if n in before else v for n, v in arrays.items()}
    path = folder / "cartpole" / "rnd" / f"episode_000000_{STEPS}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **rows)
    return path


def through_file(arrays: Arrays, folder: Path, clip: bool) -> None:
    exorl.read_episode(write_file(arrays, folder), clip=clip)


def run_step(name: str, **options: object) -> None:
    step = recipes.load("data", name)
    step.main(step.Args(**options))


def through_build_store(arrays: Arrays, folder: Path, clip: bool) -> None:
    source = write_file(arrays, folder).parent
    run_step("build_store", folders=(source,), out=folder / "out", tasks=(TASK,), relabel="recorded", clip=clip)


def through_relabel(arrays: Arrays, folder: Path, clip: bool) -> None:
    source = write_file(arrays, folder).parent
    run_step("relabel", folder=source, out=folder / "out", tasks=(TASK,), jobs=1, clip=clip)


def through_check(arrays: Arrays, folder: Path, clip: bool) -> None:
    try:
        run_step("check", folder=write_file(arrays, folder).parent, clip=clip)
    except SystemExit:
        pass  # it was read, and the noise is not what cartpole would give


def through_minari(arrays: Arrays, folder: Path, clip: bool) -> None:
    gymnasium, minari = pytest.importorskip("gymnasium"), pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    if np.isnan(arrays["discount"]).any():
        pytest.skip("Minari has truth values in place of discounts")
    shape, dtype = arrays["observation"].shape[1:], arrays["observation"].dtype.type
    wide = (0, 255) if dtype == np.uint8 else (-np.inf, np.inf)
    spaces = gymnasium.spaces.Box(*wide, shape, dtype), gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    (folder / "set").mkdir()
    storage = MinariStorage.new(folder / "set" / "data", *spaces)
    storage.update_metadata({"dataset_id": "bad-v0", "minari_version": minari.__version__})
    ends = arrays["discount"] == 0
    flags = {"terminations": ends, "truncations": np.zeros_like(ends)}
    rewards = arrays["reward"][:, 0]
    storage.update_episodes(
        [EpisodeBuffer(observations=arrays["observation"], actions=arrays["action"], rewards=rewards, **flags)]
    )
    run_step("import_minari", datasets=(str(folder / "set"),), out=folder / "out", task="rig", clip=clip)


def through_lerobot(arrays: Arrays, folder: Path, clip: bool) -> None:
    pytest.importorskip("pyarrow")
    if np.isnan(arrays["discount"]).any():
        pytest.skip("LeRobot has truth values in place of discounts")
    steps = {"observation.state": arrays["observation"][:-1], "action": arrays["action"]}
    steps |= {"next.reward": arrays["reward"][:, 0], "next.done": arrays["discount"] == 0}
    write_lerobot(folder / "set", [steps])
    run_step("import_lerobot", datasets=(folder / "set",), out=folder / "out", low=(-1.0,), high=(1.0,), clip=clip)


def through_vintix(arrays: Arrays, folder: Path, clip: bool) -> None:
    pytest.importorskip("h5py")
    if not (arrays["discount"] == 1).all():
        pytest.skip("Vintix does not record the ends of episodes")
    steps = {"proprio_observation": arrays["observation"][:-1], "action": arrays["action"]}
    steps |= {"reward": arrays["reward"][:, 0], "step_num": np.arange(STEPS)}
    write_vintix(folder / "set" / "a.h5", steps, per_group=3)
    run_step("import_vintix", datasets=(folder / "set",), out=folder / "out", task="rig", clip=clip)


def write(store: Path, name: str, rows: np.ndarray) -> None:
    """Rows of an array of a store, with the checksums of chunks, as another program would write them."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / name)}}
    array = ts.open(spec, open=True, write=True).result()
    array[: len(rows)].write(rows).result()


def through_store(arrays: Arrays, folder: Path, clip: bool) -> None:
    """Of a store that another program has written into: what training reads of it first."""
    if arrays["observation"].dtype == np.uint8:
        pytest.skip("a store's observations are float32")
    path = build(folder / "store", [make_episode(STEPS, widths=(5, 1, 1, 4))] * 2, domain="rig")
    action = np.clip(arrays["action"], -1, 1) if clip else arrays["action"]
    row = np.concatenate([arrays["observation"][:-1], action, arrays["discount"][:, None]], axis=1)
    write(path, "transition", row)
    write(path, "reward/rig", arrays["reward"][:, 0])
    for memory_limit in (2**29, 0):  # all of an array, or rows of it
        Normalizer.fit(open_store(path, memory_limit=memory_limit), "rig")


def through_conversion(arrays: Arrays, folder: Path, clip: bool) -> None:
    if arrays["observation"].dtype == np.uint8:
        pytest.skip("a store's observations are float32")
    old = folder / "old"
    write_store(old, lengths=(STEPS, 1, 3))
    stored = np.zeros((STEPS + 1, 6), np.float32)  # row i + 1 has the action and the discount of step i
    stored[:, :3], stored[:, -1] = arrays["observation"][:, :3], 1
    stored[1:, 3:5], stored[1:, -1] = arrays["action"], arrays["discount"]
    write(old, "transition", stored)
    write(old, "reward/walker_run", np.append(0, arrays["reward"][:, 0]).astype(np.float32))
    run_step("convert_store", store=str(old), out=folder / "out", clip=clip)


DOORS = {
    "Episode": through_episode,
    "from_arrays": through_arrays,
    "file": through_file,
    "build_store": through_build_store,
    "relabel": through_relabel,
    "check": through_check,
    "import_minari": through_minari,
    "import_lerobot": through_lerobot,
    "import_vintix": through_vintix,
    "convert_store": through_conversion,
    "store": through_store,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_episode_is_refused_at_every_door(door, bad, tmp_path, monkeypatch):
    if door == "Episode":
        monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as it is for users
    arrays, message = BAD[bad]
    if (door, bad) == ("Episode", "pixels"):
        message = "observation is uint8, not float32"  # from_arrays, which converts, says more
    with pytest.raises(UserError) as refusal:
        DOORS[door](arrays, tmp_path, False)
    assert re.search(message, str(refusal.value)) and "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("door", DOORS)
def test_a_good_episode_is_let_in_at_every_door(door, tmp_path):
    DOORS[door](good(), tmp_path, False)


@pytest.mark.parametrize("door", [door for door in DOORS if door not in ("Episode", "store")])
def test_actions_are_clipped_at_every_door_where_that_is_asked_for(door, tmp_path):
    DOORS[door](changed("action", 40.0), tmp_path, True)
    if door in ("build_store", "convert_store") or door.startswith("import_"):
        store = open_store(tmp_path / "out")
        assert store.read(0, 0, STEPS, store.tasks[0]).action[3].tolist() == [1.0] * store.dims.action
        assert store.provenance["clip"] is True
    if door == "relabel":
        (path,) = exorl.list_episodes(tmp_path / "out")
        assert exorl.read_episode(path).action[3].tolist() == [1.0]
