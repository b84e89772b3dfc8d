"""Recipes are found, listed, copied and loaded, from a checkout and from an installed wheel."""

import dataclasses
import os
import pickle
import platform
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from ringrl import recipes
from ringrl.errors import UserError

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """A small installation: two agents, a data step and two configs."""
    files = {
        "agents/decision_transformer.py": '"""Chooses actions by return.\n\nMore."""\nimport dataclasses\n\n\n'
        "@dataclasses.dataclass(frozen=True)\nclass Options:\n    width: int = 3\n",
        "agents/demo.py": '"""An agent called demo."""\n',
        "agents/_shared.py": '"""Not a recipe."""\n',
        "data/collect.py": "count = 1\n",
        "configs/demo.yaml": "# ringrl train demo: two minutes on two cores\nsteps: 3\n",
        "configs/walker.yaml": "steps: 3\n",
    }
    root = tmp_path / "shipped"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(recipes, "root", lambda: root)
    monkeypatch.chdir(tmp_path)
    return root


def test_root_is_the_checkout():
    assert recipes.root() == CHECKOUT


def test_root_of_an_installed_wheel_is_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "ringrl"
    (package / "_recipes" / "agents").mkdir(parents=True)
    monkeypatch.setattr(recipes, "__file__", str(package / "recipes.py"))
    assert recipes.root() == package / "_recipes"
    # Another project's `agents` beside the package does not make a checkout of site-packages.
    (tmp_path / "site-packages" / "agents").mkdir()
    assert recipes.root() == package / "_recipes"


def test_find_by_name(shipped):
    assert recipes.find("agents", "demo") == shipped / "agents" / "demo.py"
    assert recipes.find("configs", "demo") == shipped / "configs" / "demo.yaml"
    for spelling in ("configs/demo.yaml", "demo.yaml"):
        assert recipes.find("configs", spelling) == shipped / "configs" / "demo.yaml"


def test_a_users_own_file_comes_first(shipped, tmp_path):
    own = tmp_path / "demo.yaml"
    own.write_text("steps: 4\n")
    assert recipes.find("configs", "demo.yaml") == own
    assert recipes.find("configs", own) == own
    assert recipes.find("configs", "demo") == shipped / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("agents", "decision_transfomer", "did you mean decision_transformer.* there are: decision_transformer, demo"),
        ("agents", "_shared", "no recipe of that name"),
        ("configs", "mine/demo.yaml", "mine/demo.yaml: no such file"),
        ("configs", "absent.yml", "absent.yml: no such file"),
    ],
)
def test_what_cannot_be_found(shipped, kind, name, message):
    with pytest.raises(UserError, match=message) as raised:
        recipes.find(kind, name)
    assert "\n" not in str(raised.value)


def test_listing_shows_the_first_line(shipped):
    assert recipes.listing() == {
        "agents": [("decision_transformer", "Chooses actions by return."), ("demo", "An agent called demo.")],
        "data": [("collect", "")],
        "configs": [("demo", "ringrl train demo: two minutes on two cores"), ("walker", "")],
    }


def test_copy_to_a_file_and_into_a_folder(shipped, tmp_path):
    assert recipes.copy("walker", tmp_path / "new" / "mine.yaml").read_text() == "steps: 3\n"
    assert recipes.copy("decision_transformer", tmp_path) == tmp_path / "decision_transformer.py"
    assert recipes.copy("agents/demo", f"{tmp_path}/other/") == tmp_path / "other" / "demo.py"
    assert recipes.copy("configs/demo.yaml", tmp_path) == tmp_path / "demo.yaml"
    assert not list(tmp_path.rglob("*.partial"))


def test_copy_removes_what_a_killed_one_left(shipped, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / f".partial-{platform.node()}-{os.getpid()}-0123-walker.yaml").touch()
    recipes.copy("walker", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["walker.yaml"]


def test_copy_refuses(shipped, tmp_path):
    (tmp_path / "walker.yaml").write_text("mine")
    with pytest.raises(UserError, match="walker.yaml: already exists"):
        recipes.copy("walker", tmp_path)
    assert (tmp_path / "walker.yaml").read_text() == "mine"
    with pytest.raises(UserError, match="agents, configs; write one of agents/demo"):
        recipes.copy("demo", tmp_path)
    with pytest.raises(UserError, match="did you mean walker"):
        recipes.copy("wallker", tmp_path)


def test_load_makes_a_module_whose_objects_pickle(shipped):
    module = recipes.load("agents", "decision_transformer")
    assert recipes.load("agents", "decision_transformer") is module
    assert sys.modules[module.__name__] is module
    options = dataclasses.replace(module.Options(), width=5)
    assert pickle.loads(pickle.dumps(options)) == options


def test_two_files_of_one_name_are_two_modules(shipped, tmp_path):
    (tmp_path / "demo.py").write_text("mine = True\n")
    assert recipes.load("agents", "demo.py").mine
    assert recipes.load("agents", "demo").__doc__ == "An agent called demo."


def test_a_step_that_imports_what_ringrl_no_longer_has_is_named(shipped, tmp_path):
    for source, missing in (
        ("from ringrl.experience.store import build\n", "No module named 'ringrl.experience'"),
        ("from ringrl.episode import make_episode\n", "cannot import name 'make_episode' from 'ringrl.episode'"),
    ):
        (tmp_path / "collect.py").write_text(source)
        with pytest.raises(UserError) as caught:
            recipes.load("data", "./collect.py")
        assert str(caught.value) == (
            f"{tmp_path}/collect.py: written for an earlier ringrl ({missing}); its modules have moved: "
            "`ringrl cp collect NEW.py` copies one to start from"
        )
    (tmp_path / "collect.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        recipes.load("data", "./collect.py")


def test_load_of_a_broken_file(shipped, tmp_path):
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(UserError, match=r"broken\.py, line 2: .*; correct the file"):
        recipes.load("agents", "broken.py")
    (tmp_path / "stops.py").write_text("raise RuntimeError('on import')\n")
    with pytest.raises(RuntimeError, match="on import"):
        recipes.load("agents", "stops.py")
    assert not [name for name in sys.modules if name.startswith(("ringrl_agents_broken", "ringrl_agents_stops"))]


@pytest.mark.parametrize("kind", recipes.SUFFIXES)
def test_every_shipped_recipe_says_what_it_is(kind):
    listed = recipes.listing()[kind]
    assert listed
    for name, headline in listed:
        assert headline, f"{kind}/{name} has no first line"


@pytest.mark.parametrize("kind", ["agents", "data"])
def test_every_shipped_program_loads(kind):
    for name, _ in recipes.listing()[kind]:
        assert recipes.load(kind, name).__doc__


def test_no_recipe_is_named_after_a_package():
    taken = set(sys.stdlib_module_names) | set(packages_distributions())
    names = {name for kind in ("agents", "data") for name, _ in recipes.listing()[kind]}
    assert not names & taken
