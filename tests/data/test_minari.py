"""Real Minari data sets of real Gymnasium environments: imported, trained on, evaluated, and written back."""

import csv
import json
import warnings

import gymnasium
import numpy as np
import pytest

from ringrl import envs, recipes
from ringrl.config import dump_config, parse_config
from ringrl.errors import UserError
from ringrl.formats.minari import (
    changed_settings,
    read_episodes,
)
from ringrl.rollout.evaluate import evaluate
from ringrl.store.episode_store import DataSource, build, open_store
from ringrl.training.loop import run_training
from tests.builders import make_episode

minari = pytest.importorskip("minari")
export_step, import_step = (recipes.load("data", f"{way}_minari") for way in ("export", "import"))


class WithState(minari.StepDataCallback):
    """Keeps MuJoCo's state beside every observation."""

    def __call__(self, env, **step):
        data = env.unwrapped.data
        return super().__call__(env, **step) | {"info": {"qpos": data.qpos.copy(), "qvel": data.qvel.copy()}}


def collect(dataset_id: str, task: str, episodes: int, most: int = 1000, states: bool = True, **settings):
    """Random actions in a real environment, recorded as Minari says it is done."""
    plain = gymnasium.make(task, disable_env_checker=True, **settings)
    options = {"record_infos": True, "step_data_callback": WithState} if states else {}
    collector = minari.DataCollector(plain, **options)
    collector.action_space.seed(0)
    for seed in range(episodes):
        collector.reset(seed=seed)
        for _ in range(most):
            _, _, terminated, truncated, _ = collector.step(collector.action_space.sample())
            if terminated or truncated:
                break
    folders = [collector._tmp_dir]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is set to None", UserWarning)  # of the author, the algorithm ...
        dataset = collector.create_dataset(dataset_id, algorithm_name="random", description="for a test")
    for folder in (*folders, collector._tmp_dir):
        folder.cleanup()  # Minari leaves that to the garbage collector, which warns
    plain.close()
    return dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where Minari keeps its data sets: hopper/a-v0 and hopper/b-v0 (no states), cheetah/a-v0."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        collect("hopper/a-v0", "Hopper-v5", 4)
        collect("hopper/b-v0", "Hopper-v5", 3, states=False)
        collect("cheetah/a-v0", "HalfCheetah-v5", 2, most=30)
        yield folder


def import_store(out, *datasets, **options):
    import_step.main(import_step.Args(datasets=datasets, out=out, **options))
    return open_store(out)


def test_import_keeps_what_minari_has(root, tmp_path, capsys):
    store, dataset = import_store(tmp_path / "hopper", "hopper/a-v0"), minari.load_dataset("hopper/a-v0")
    assert (store.domain, store.tasks, store.dims) == ("Hopper", ("Hopper-v5",), (11, 3, 1, 12))
    assert store.sources[0].name == "hopper/a-v0" and store.sources[0].collector == "random"
    assert store.sources[0].task == "Hopper-v5" and store.provenance["relabel"] == "recorded"
    for index, data in enumerate(dataset):
        episode = store.episode(index, "Hopper-v5")
        np.testing.assert_array_equal(episode.observation, data.observations.astype(np.float32))
        np.testing.assert_array_equal(episode.action, data.actions)
        np.testing.assert_array_equal(episode.reward[:, 0], data.rewards.astype(np.float32))
        np.testing.assert_array_equal(episode.discount, ~data.terminations)
        np.testing.assert_array_equal(episode.physics, np.hstack([data.infos["qpos"], data.infos["qvel"]]))
        assert store.returns("Hopper-v5")[index] == pytest.approx(data.rewards.sum(), rel=1e-6)
    assert data.terminations[-1] and episode.discount[-1] == 0
    assert "4 episodes of Hopper" in capsys.readouterr().out


def test_the_stored_states_are_those_of_our_environment(root):
    dataset = minari.load_dataset("hopper/a-v0")
    env = envs.make_env("Hopper-v5")
    for seed, episode in enumerate(read_episodes(dataset)):
        observation, info = env.reset(seed=seed)
        for row in range(episode.length):
            np.testing.assert_array_equal(observation, episode.observation[row])
            observation, reward, terminated, _, info = env.step(episode.action[row])
            np.testing.assert_array_equal(info["physics"], episode.physics[row + 1])
            assert np.float32(reward) == episode.reward[row, 0] and info["discount"] == episode.discount[row]
        assert terminated


def test_several_data_sets_are_several_sources(root, tmp_path):
    store = import_store(tmp_path / "two", str(root / "hopper" / "b-v0"), str(root / "hopper" / "b-v0" / "data"))
    assert [(source.path, source.first, source.last) for source in store.sources] == [("b-v0", 0, 2), ("b-v0", 3, 5)]
    assert store.dims.physics == 0
    with pytest.raises(UserError, match="no physics states"):
        store.physics(0)


def test_a_random_hopper_is_imported_trained_on_and_evaluated(root, tmp_path):
    import_store(tmp_path / "hopper", "hopper/b-v0")
    config = parse_config(
        {
            "data": {"store": str(tmp_path / "hopper"), "task": "Hopper-v5"},
            "agent": {"name": "decision_transformer", "window": 5},
            "model": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2},
            "training": {"steps": 3, "batch": 2, "row_steps": 5, "log_every": 1},
            "evaluation": {"trials": 3, "envs": 2},
        },
        "hopper",
    )
    run_training(config, tmp_path / "run")
    with evaluate(tmp_path / "run").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["agent"], row["env"], row["trial"]) for row in rows) == sorted(
        (agent, env, trial) for agent in ("decision_transformer", "random") for env in "01" for trial in "012"
    )
    lengths = [int(row["length"]) for row in rows]
    assert len(set(lengths)) > 2 and max(lengths) < 1000  # they fell, at different times


def test_data_of_other_settings_are_named_and_not_evaluated(root, tmp_path, capsys):
    settings = {"exclude_current_positions_from_observation": False, "max_episode_steps": 8}
    dataset = collect("hopper/wide-v0", "Hopper-v5", 1, **settings)
    assert changed_settings(dataset) == settings and not changed_settings(minari.load_dataset("hopper/a-v0"))
    store = import_store(tmp_path / "wide", "hopper/wide-v0")
    assert f"hopper/wide-v0 was collected with {settings}" in capsys.readouterr().out
    assert store.sources[0].collected["changed_settings"] == {name: repr(value) for name, value in settings.items()}
    assert store.read(0, 0, 8, "Hopper-v5").discount.all()  # a time limit is no end
    values = {
        "data": {"store": str(tmp_path / "wide"), "task": "Hopper-v5"},
        "agent": {"name": "behavior_cloning"},
    }
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(parse_config(values, "wide")))
    (run / "dataset.json").write_text(json.dumps({"returns": [1.0], "sizes": {"observation": 12, "action": 3}}))
    with pytest.raises(UserError, match="run: Hopper-v5's observation has 11 numbers, the data's has 12"):
        evaluate(run)  # refused before it looks for a model


@pytest.mark.parametrize("name, task", [("hopper/a-v0", "Hopper-v5"), ("cheetah/a-v0", "HalfCheetah-v5")])
def test_a_store_goes_to_minari_and_back(root, tmp_path, name, task):
    store = import_store(tmp_path / "first", name)
    export_step.main(export_step.Args(store=str(tmp_path / "first"), id=f"back/{name}"))
    dataset = minari.load_dataset(f"back/{name}")
    assert dataset.env_spec.id == task and name.split("/")[0] in dataset.id
    assert dataset.total_steps == store.lengths.sum() and f"back/{name}" in minari.list_local_datasets()
    assert all(data.terminations[-1] ^ data.truncations[-1] for data in dataset)
    with dataset.recover_environment() as env:
        assert env.observation_space.shape == dataset.observation_space.shape
        assert env.action_space == dataset.action_space
    again = import_store(tmp_path / "second", f"back/{name}")
    for first, second in ([each.episode(index, task) for each in (store, again)] for index in range(store.episodes)):
        for field, values in vars(first).items():
            np.testing.assert_array_equal(values, getattr(second, field), err_msg=field)
            assert values is None or values.dtype == getattr(second, field).dtype


def test_any_store_can_be_written_one_task_and_some_episodes(root, tmp_path):
    tasks, ended = ("walker_walk", "walker_run"), np.float32([1, 1, 1, 0])
    episodes = [make_episode(4, seed, (24, 6, 2, 18), ended if seed == 1 else None) for seed in range(3)]
    pairs, source = [(episode, 0) for episode in episodes], DataSource("random", "random")
    build(tmp_path / "s", pairs, domain="walker", tasks=tasks, sources=[source], provenance={})
    args = export_step.Args(store=str(tmp_path / "s"), task="walker_run", id="walker-v3", episodes=(2, 1))
    export_step.main(args)
    dataset = minari.load_dataset("walker-v3")
    assert dataset.env_spec is None and dataset.total_episodes == 2
    for data, index in zip(dataset, (2, 1), strict=True):
        np.testing.assert_array_equal(data.rewards, episodes[index].reward[:, 1])
        np.testing.assert_array_equal(data.infos["physics"], episodes[index].physics)
        assert (data.terminations[-1], data.truncations[-1]) == (index == 1, index != 1)
    store = import_store(tmp_path / "t", "walker-v3", task="walker_run")
    assert (store.domain, store.dims.physics) == ("walker", 18)
    with pytest.raises(UserError, match="walker-v3 exists already"):
        export_step.main(args)


def write_raw(name: str, observation_space=None, action_space=None, **changes) -> None:
    """A data set of one episode of two steps, made by Minari itself."""
    box = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    data = {
        "observations": np.zeros((3, 1), np.float32),
        "actions": np.zeros((2, 1), np.float32),
        "rewards": np.zeros(2),
        "terminations": np.array([False, False]),
        "truncations": np.array([False, True]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(
            name,
            [minari.data_collector.EpisodeBuffer(**data | changes)],
            observation_space=observation_space or box,
            action_space=action_space or box,
        )


DISCRETE = gymnasium.spaces.Discrete(3)


@pytest.mark.parametrize(
    "number, changes, message",
    [
        (0, {"actions": np.full((2, 1), 1.5, np.float32)}, "bad-v0, episode 0: an action is 1.5, outside"),
        (1, {"rewards": np.array([0, np.nan])}, "bad-v1, episode 0: reward is NaN or infinite in step 1"),
        (2, {"observations": np.zeros((5, 1), np.float32)}, "bad-v2, episode 0: .* 5 of observation for 3"),
        (3, {"action_space": DISCRETE, "actions": np.zeros(2, np.int64)}, "bad-v3: its actions are Discrete; only Box"),
        (
            4,
            {"observation_space": DISCRETE, "observations": np.zeros(3, np.int64)},
            "bad-v4, episode 0: observations have a Discrete part",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(root, tmp_path, number, changes, message):
    write_raw(f"bad-v{number}", **changes)
    with pytest.raises(UserError, match=message):
        import_store(tmp_path / "bad", f"bad-v{number}", task="t")
    assert not list(tmp_path.iterdir())


def test_wrong_names_and_mixtures_are_named(root, tmp_path):
    out = tmp_path / "s"
    for datasets, options, message in [
        (("hopper/none-v0",), {}, "hopper/none-v0: no such folder.*`minari download hopper/none-v0`"),
        (("not a name",), {}, "not a name: "),
        ((), {}, "no data set given"),
        (("hopper/a-v0", "cheetah/a-v0"), {}, "do not tell one environment .hopper/a-v0 of Hopper-v5.*--task"),
        (("hopper/a-v0", "cheetah/a-v0"), {"task": "t"}, "cheetah/a-v0 has other bounds of actions"),
        (("hopper/a-v0", "hopper/b-v0"), {}, "widths"),
        ((str(root / "hopper"),), {}, "hopper: not a data set that Minari reads"),
    ]:
        with pytest.raises(UserError, match=message):
            import_store(out, *datasets, **options)
        assert not out.exists()


def test_a_damaged_file_is_named_and_nothing_is_left(root, tmp_path):
    write_raw("cut-v0")
    file = root / "cut-v0" / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(UserError, match="cut-v0, episode 0: cannot be read"):
        import_store(tmp_path / "s", "cut-v0", task="t")
    assert not list(tmp_path.iterdir())


def test_gymnasiums_tasks_can_be_collected_and_stored(tmp_path):
    steps = {name: recipes.load("data", name) for name in ("collect", "build_store")}
    options = {"task": "Hopper-v5", "policy": "random", "episodes": 2, "action_repeat": 1, "out": tmp_path / "raw"}
    steps["collect"].main(steps["collect"].Args(**options))
    args = steps["build_store"].Args(folders=(tmp_path / "raw",), out=tmp_path / "s", relabel="recorded")
    steps["build_store"].main(args)
    store = open_store(tmp_path / "s")
    assert (store.domain, store.tasks, store.dims) == ("Hopper", ("Hopper-v5",), (11, 3, 1, 12))
    for index, length in enumerate(store.lengths.tolist()):
        assert store.read(index, 0, length, "Hopper-v5").discount[-1] == 0
