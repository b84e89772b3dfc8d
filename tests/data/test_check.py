"""What `ringrl data check` says of collected files, and of files that are not what they should be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ringrl import recipes
from ringrl.errors import UserError
from ringrl.formats.exorl import list_episodes, read_episode, write_episode
from ringrl.relabelling.rewards import Examined, Relabeler, examine

collect, check = recipes.load("data", "collect"), recipes.load("data", "check")
# Domain -> task, the widths of its observation, and the parts that no state tells.
DOMAINS = {
    "cartpole": ("cartpole_swingup", 5, []),
    "cheetah": ("cheetah_run_backward", 17, []),
    "hopper": ("hopper_hop", 15, [("touch", [13, 15])]),
    "jaco": ("jaco_reach_top_left", 42, [("jaco_arm/joints_torque", [12, 18])]),
    "point_mass_maze": ("point_mass_maze_reach_bottom_right", 4, []),
    "quadruped": ("quadruped_jump", 78, [("imu", [48, 51]), ("force_torque", [54, 78])]),
    "walker": ("walker_flip", 24, []),
}


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A function (task, episodes) -> folder of so many random episodes of it."""
    root, made = tmp_path_factory.mktemp("check"), {}

    def make(task, episodes=1):
        if (task, episodes) not in made:
            folder = made[task, episodes] = root / f"{task}_{episodes}"
            collect.main(collect.Args(task=task, policy="random", episodes=episodes, out=folder, action_repeat=1))
        return made[task, episodes]

    return make


def run(folder, capsys, **options):
    """(exit status, JSON object, last line on stderr); the folder may have been collected just now, saying so."""
    status, error = 0, ""
    try:
        check.main(check.Args(folder, json=True, **options))
    except SystemExit as stop:
        status, error = 1, str(stop)
    return status, json.loads(capsys.readouterr().out.splitlines()[-1]), error


def test_bad_and_foreign_files_are_left_out_where_that_is_asked_for(collected, tmp_path, capsys):
    folder = shutil.copytree(collected("cartpole_swingup", 2), tmp_path / "folder")
    (folder / "buffer" / "stats.npz").touch()
    (folder / "buffer" / "episode_000001_1000.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="stats.npz: bad episode file"):
        run(folder, capsys)
    status, found, _ = run(folder, capsys, skip_bad=True)
    assert (status, found["skipped"], found["episodes"]) == (0, 2, 1)
    assert len(list((folder / "buffer").glob("*.npz"))) == 3
    check.main(check.Args(folder, skip_bad=True))
    assert "2 bad files skipped; the first: " in capsys.readouterr().out


def changed(collected, tmp_path, task, **changes):
    """A bare folder with the episode of a task, some of its arrays replaced: name -> function of the array."""
    (path,) = list_episodes(collected(task))
    with np.load(path) as file:
        arrays = {name: changes.get(name, np.copy)(file[name]) for name in file.files}
    (tmp_path / "changed").mkdir()
    np.savez(tmp_path / "changed" / path.name, **arrays)
    return tmp_path / "changed"


@pytest.mark.parametrize(
    "domain",
    [pytest.param(each, marks=pytest.mark.slow) if each in ("jaco", "quadruped") else each for each in DOMAINS],
)
def test_collected_files_of_every_domain_agree(collected, capsys, domain):
    task, width, unchecked = DOMAINS[domain]
    status, report, error = run(collected(task), capsys)
    assert (status, error, report["agrees"], report["domain"]) == (0, "", True, domain)
    assert report["episodes"] == 1 and report["rows"] == (251 if domain == "jaco" else 1001)
    late = [part for part in report["observation"] if part["share"] is None]
    assert [(part["name"], part["columns"]) for part in late] == unchecked
    assert all("not checkable from stored states" in part["note"] for part in late)
    assert all(part["largest_difference"] == 0.0 for part in report["observation"] if part not in late)
    assert report["observation"][-1]["columns"][1] == width
    exact = [one for one in report["rewards"] if one["mode"] == "exact" and one["name"] == task]
    assert any(one["largest_difference"] == 0.0 for one in exact)


def test_what_is_drawn_for_each_episode_is_not_checked(collected, capsys, tmp_path):
    status, report, error = run(collected("finger_turn_easy", episodes=2), capsys)  # whose targets differ
    assert (status, error) == (0, "")
    unchecked = [(part["name"], part["note"]) for part in report["observation"] if part["share"] is None]
    drawn = "not checkable from stored states: drawn at random for each episode"
    assert unchecked[1:] == [("target_position", drawn), ("dist_to_target", drawn)] and unchecked[0][0] == "touch"
    assert [(one["name"], one["share"]) for one in report["rewards"]] == [("finger_turn_easy", None)]
    assert "cannot be recomputed: it draws site_pos" in report["rewards"][0]["note"]
    # Without a known task it may be either of those that observe as much, so nothing speaks against the rewards.
    status, report, error = run(changed(collected, tmp_path, "finger_turn_easy"), capsys, domain="finger")
    assert (status, error, report["expected_tasks"]) == (0, "", None)
    assert [one["name"] for one in report["rewards"]] == ["finger_turn_easy", "finger_turn_hard"]


def test_rewards_that_are_refused_in_one_mode_may_differ_in_the_other(collected, capsys, tmp_path, monkeypatch):
    def examine_like_a_dog(task, mode):
        return Examined("it rewards contact forces", 18, 24) if mode == "exact" else examine(task, mode)

    monkeypatch.setattr("ringrl.quality.reward_check.examine", examine_like_a_dog)
    folder = changed(collected, tmp_path, "walker_flip", reward=lambda reward: reward * np.float32(0.5))
    for options in ({"domain": "walker"}, {"domain": "walker", "task": ("walker_flip",)}):
        status, report, error = run(folder, capsys, **options)
        assert (status, error) == (0, "")
        flips = [(one["mode"], one["note"]) for one in report["rewards"] if one["name"] == "walker_flip"]
        assert flips == [("exorl", ""), ("", "cannot be recomputed: it rewards contact forces")]


def test_an_episode_that_disagrees_says_where_a_part_is(collected, capsys, tmp_path):
    first, second = (read_episode(path) for path in list_episodes(collected("cartpole_swingup", episodes=2)))
    write_episode(tmp_path, 0, first)
    write_episode(tmp_path, 1, replace(second, observation=second.observation[:, [3, 4, 0, 1, 2]]))
    status, report, _ = run(tmp_path, capsys, domain="cartpole")
    notes = {part["name"]: (part["share"], part["note"]) for part in report["observation"]}
    assert status == 1
    assert notes == {"position": (0.5, "it is in columns 2:5"), "velocity": (0.5, "it is in columns 0:2")}
    # Half of the rows are wrong and no other columns are like them: that their own columns are says nothing.
    for index, episode in enumerate((first, replace(second, observation=second.observation + np.float32(1)))):
        write_episode(tmp_path / "moved", index, episode)
    _, report, _ = run(tmp_path / "moved", capsys, domain="cartpole")
    assert [(part["share"], part["note"]) for part in report["observation"]] == [(0.5, ""), (0.5, "")]


def test_exact_and_exorl_rewards_are_distinguished(collected, capsys, tmp_path):
    _, report, _ = run(collected("cartpole_swingup"), capsys)
    shares = {one["mode"]: one["share"] for one in report["rewards"] if one["name"] == "cartpole_swingup"}
    assert shares["exact"] == 1.0 and shares["exorl"] < 0.5
    # The other way round: rewards that ExoRL's relabelling wrote.
    episode = read_episode(list_episodes(collected("cartpole_swingup"))[0])
    rewards = Relabeler(["cartpole_swingup"], "exorl")(episode)
    folder = changed(collected, tmp_path, "cartpole_swingup", reward=set_row(slice(1, None), rewards))
    status, report, _ = run(folder, capsys, domain="cartpole")
    found = [(one["name"], one["mode"]) for one in report["rewards"] if one["share"] == 1.0]
    # Balance and swingup are paid alike; they differ in where they start.
    assert (status, found) == (0, [("cartpole_balance", "exorl"), ("cartpole_swingup", "exorl")])


def test_without_a_known_task_it_says_which_fits(collected, capsys, tmp_path):
    episode = read_episode(list_episodes(collected("point_mass_maze_reach_bottom_right"))[0])
    rng = np.random.default_rng(0)
    goals = rng.choice([-0.15, 0.15], (1001, 2))
    physics = np.concatenate([goals + rng.uniform(-0.02, 0.02, goals.shape), np.zeros((1001, 2))], axis=1)
    moved = replace(episode, physics=physics, observation=physics.astype(np.float32))
    names = [f"point_mass_maze_reach_{where}" for where in ("bottom_right", "top_left", "bottom_left", "top_right")]
    write_episode(tmp_path, 0, replace(moved, reward=Relabeler(names)(moved)))
    status, report, _ = run(tmp_path, capsys, domain="point_mass_maze")
    fits = [(one["columns"][0], one["name"], one["mode"]) for one in report["rewards"] if one["share"] == 1.0]
    assert (status, report["expected_tasks"]) == (0, None)
    assert sorted(fits) == [(column, name, "exact") for column, name in enumerate(names)]


def swap(columns):
    def change(array):
        array[:, columns] = array[:, columns[::-1]]
        return array

    return change


def set_row(row, value):
    def change(array):
        array[row] = value
        return array

    return change


@pytest.mark.parametrize(
    "task, changes, message",
    [
        ("walker_flip", {"observation": lambda o: o[:, [*range(15, 24), *range(15)]]}, "is in columns 9:23"),
        ("walker_flip", {"observation": swap([3, 7])}, "observation orientations agrees in 0.0% of rows"),
        ("walker_flip", {"reward": lambda reward: reward * np.float32(0.5)}, "reward column 0 agrees with no task"),
        ("walker_flip", {"reward": set_row(0, 0.5)}, "dummy row: not so in some episode"),
        ("walker_flip", {"action": set_row(0, np.nan)}, "dummy row: not so in some episode"),
        ("walker_flip", {"discount": set_row(3, 0.5)}, "discount: 0.5, 1, expected 1; 0 only in the last step"),
        ("jaco_reach_top_left", {"observation": swap([31, 32])}, "observation jaco_arm/jaco_hand/pinch_site_pos"),
    ],
)
def test_it_finds_what_is_wrong(collected, capsys, tmp_path, task, changes, message):
    status, report, error = run(changed(collected, tmp_path, task, **changes), capsys, domain=task.split("_")[0])
    assert (status, report["agrees"]) == (1, False)
    assert message in report["problems"][0] and message in error and len(error.splitlines()) == 1


def test_another_task_and_another_domain_are_found(collected, capsys, tmp_path):
    status, _, error = run(collected("walker_flip"), capsys, task=("walker_walk",))
    assert status == 1 and "reward column 0 agrees with walker_flip, not with walker_walk" in error
    folder = changed(collected, tmp_path, "walker_flip")
    status, report, error = run(folder, capsys, domain="cheetah")  # whose states and actions have the same widths
    assert (status, report["task"], report["rows"]) == (1, None, 0)
    assert "widths: observation 24, action 6, physics 18, expected observation 17, action 6, physics 18" in error


def test_short_episodes_that_did_not_end_are_found(collected, capsys, tmp_path):
    episode = read_episode(list_episodes(collected("walker_flip"))[0])
    lengths = {"observation": 51, "action": 50, "reward": 50, "discount": 50, "physics": 51}
    write_episode(tmp_path, 0, replace(episode, **{name: getattr(episode, name)[:n] for name, n in lengths.items()}))
    status, _, error = run(tmp_path, capsys, domain="walker")
    assert status == 1 and "length: 50, expected 1000" in error


def test_an_end_before_the_last_step_is_no_episode(collected, capsys, tmp_path):
    folder = changed(collected, tmp_path, "walker_flip", discount=set_row(3, 0.0))
    with pytest.raises(UserError, match="000.npz: bad episode file: discount is 0 in step 2 of 1000: only the last"):
        check.main(check.Args(folder, domain="walker"))


def test_an_archive_is_checked_as_it_is(collected, capsys, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "walker"), "zip", collected("walker_flip"))
    status, report, _ = run(Path(archive), capsys)
    assert (status, report["domain"], report["expected_tasks"]) == (0, "walker", ["walker_flip"])


def test_the_table_is_the_default(collected, capsys):
    check.main(check.Args(collected("hopper_hop")))
    lines = capsys.readouterr().out.splitlines()
    assert any("observation: velocity" in line and "100.00%" in line for line in lines)
    assert any("observation: touch" in line and "not checkable" in line for line in lines)
    assert any("reward: hopper_hop exact" in line for line in lines)
    assert lines[-1] == "Numbers agree if they differ by at most 1e-05 + 1e-05 times their size."


@pytest.mark.parametrize(
    "options, message",
    [
        ({"task": ("cheetah_run",)}, "cheetah_run is no task of walker"),
        ({"episodes": -1}, "--episodes is -1"),
        ({"domain": "cheetah"}, "its domain is walker"),
    ],
)
def test_bad_arguments_are_named(collected, options, message):
    with pytest.raises(UserError, match=message):
        check.main(check.Args(collected("walker_flip"), **options))
