import json
import zipfile
from pathlib import Path

import pytest

from ringrl.errors import UserError
from ringrl.formats.description import describe_folder

COLLECTED = {"task": "cartpole_swingup", "domain": "cartpole", "collector": "td3", "seed": 4, "mujoco": "3.1"}


def make_folder(path, name=None, content=None):
    path.mkdir(parents=True)
    if name:
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("inside", [".", "buffer"])
def test_collect_json_tells_all(tmp_path, inside):
    folder = make_folder(tmp_path / "seed4", "collect.json", COLLECTED)
    (folder / inside).mkdir(exist_ok=True)
    found = describe_folder(folder / inside)
    assert (found.domain, found.tasks) == ("cartpole", ("cartpole_swingup",))
    source = found.source
    assert (source.name, source.collector, source.task) == ("seed4", "td3", "cartpole_swingup")
    assert source.collected == COLLECTED


def test_relabel_json_tells_the_columns_and_keeps_the_collector(tmp_path):
    tasks = ["cartpole_balance", "cartpole_swingup"]
    about = {"domain": "cartpole", "tasks": tasks, "mode": "exact", "collect": COLLECTED}
    found = describe_folder(make_folder(tmp_path / "x", "relabel.json", about))
    assert (found.domain, found.tasks, found.source.collector) == ("cartpole", tuple(tasks), "td3")
    assert (found.source.relabelled, found.source.collected) == ("exact", COLLECTED)


@pytest.mark.parametrize("inside", [".", "buffer"])
@pytest.mark.parametrize("domain", ["walker", "point_mass_maze"])
def test_exorls_path_tells_domain_and_collector(tmp_path, domain, inside):
    folder = make_folder(tmp_path / domain / "icm_apt" / "buffer").parent
    found = describe_folder(folder / inside)
    assert (found.domain, found.tasks, found.source.collector) == (domain, None, "icm_apt")
    assert found.source.name == f"{domain}/icm_apt" and found.source.path in ("icm_apt", "buffer")


def test_a_bare_folder_needs_the_domain(tmp_path):
    folder = make_folder(tmp_path / "bare")
    with pytest.raises(UserError, match="cannot tell the domain.*--domain"):
        describe_folder(folder)
    assert describe_folder(folder, "walker").domain == "walker"


@pytest.mark.parametrize("inside", [".", "buffer"])
def test_a_link_is_known_by_its_own_path_or_by_that_which_it_leads_to(tmp_path, inside):
    blob = make_folder(tmp_path / "disk7" / "blob" / "buffer").parent
    (tmp_path / "walker").mkdir()
    (tmp_path / "walker" / "rnd").symlink_to(blob)
    found = describe_folder(tmp_path / "walker" / "rnd" / inside)
    assert (found.domain, found.source.name, found.source.collector) == ("walker", "walker/rnd", "rnd")
    real = make_folder(tmp_path / "cheetah" / "icm" / "buffer").parent
    (tmp_path / "mine").symlink_to(real / inside)
    assert describe_folder(tmp_path / "mine").source.name == "cheetah/icm"
    (real / "collect.json").write_text(json.dumps(COLLECTED))
    (tmp_path / "walker" / "buffer").symlink_to(real / "buffer")
    assert describe_folder(tmp_path / "walker" / "buffer").domain == "cartpole"  # said beside what it leads to


def test_a_linked_archive_is_known_by_its_own_path(tmp_path):
    with zipfile.ZipFile(tmp_path / "1f3a.zip", "w") as archive:
        archive.writestr("buffer/episode_000000_6.npz", b"")
    (tmp_path / "walker").mkdir()
    (tmp_path / "walker" / "rnd.zip").symlink_to(tmp_path / "1f3a.zip")
    assert describe_folder(tmp_path / "walker" / "rnd.zip").domain == "walker"


def test_a_folder_of_the_home_is_found(tmp_path, monkeypatch):
    make_folder(tmp_path / "walker" / "rnd")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert describe_folder(Path("~/walker/rnd")).domain == "walker"


def test_a_folder_that_is_not_there_is_said(tmp_path):
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        with pytest.raises(UserError, match=f"{name}: no such folder of episodes"):
            describe_folder(tmp_path / name, "walker")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "collect.json is damaged"),
        ("[]", "damaged: Input should be an object"),
        (COLLECTED, "its domain is cartpole, not walker"),
    ],
)
def test_contradictions_and_damage_are_named(tmp_path, content, message):
    folder = make_folder(tmp_path / "x", "collect.json", content)
    with pytest.raises(UserError, match=message):
        describe_folder(folder, "walker")
