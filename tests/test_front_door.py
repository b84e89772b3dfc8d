"""`import ringrl` is enough, costs next to nothing, and every example in it runs."""

import ast
import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ringrl
from tests.builders import limit_evaluation

ROOT = Path(__file__).parents[1]
HEAVY = {"jax", "flax", "optax", "orbax", "mujoco", "dm_control", "gymnasium", "numpy", "tensorstore", "matplotlib"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_store, tiny_config):
    """A folder with the store and the run that the examples name."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "stores").mkdir()
    (folder / "stores" / "cartpole").symlink_to(tiny_store)
    config = tiny_config({"name": "agentic_transformer", "trajectories": 2}, training={"steps": 1})
    with pytest.MonkeyPatch.context() as patch:
        limit_evaluation(patch, 24)
        patch.chdir(folder)
        run = ringrl.train(config, "data.store=stores/cartpole", out="runs/cartpole")
        ringrl.evaluate(run, trials=2, envs=2)
        yield folder


@pytest.mark.parametrize("name", ringrl.__all__)
def test_every_name_has_an_example_that_runs(name, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    found = getattr(ringrl, name)
    example = doctest.DocTestParser().get_doctest(found.__doc__ or "", {}, f"ringrl.{name}", None, None)
    assert example.examples, f"ringrl.{name} has no example"
    report: list[str] = []
    failures = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(example, out=report.append).failed
    assert not failures, "".join(report)


def test_the_loops_of_the_page_about_rollouts_run(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    text = (ROOT / "docs" / "rollouts.md").read_text().partition("\n## Demonstrations")[0]
    blocks, names = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE), {}
    for block in blocks:
        exec(block, names)  # one after the other, as they are read
    assert len(blocks) == 4 and names["trial"] == 1 and names["step"] == 2 * 250 - 1
    assert Path("cartpole.npz").is_file() and names["session"].room.all()


def python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(ringrl.__file__))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def test_importing_it_and_asking_what_is_in_it_imports_nothing_heavy():
    code = "import sys, ringrl; dir(ringrl); print(*(name.partition('.')[0] for name in sys.modules))"
    assert not HEAVY & set(python(code).split())


def test_an_episode_needs_no_jax_and_attention_no_mujoco():
    code = "import sys, ringrl; ringrl.{}; print(*(name.partition('.')[0] for name in sys.modules))"
    assert not (HEAVY - {"numpy", "jax"}) & set(python(code.format("Episode")).split())
    assert not {"mujoco", "dm_control", "tensorstore"} & set(python(code.format("attention")).split())


def test_help_names_everything_and_says_where_to_start():
    text = python("import pydoc, ringrl; print(pydoc.plain(pydoc.render_doc(ringrl)))")
    assert "Start here" in text and all(name in (ringrl.__doc__ or "") for name in ringrl.__all__)


def test_no_room_overwrites_a_name_of_the_front_door():
    """`import ringrl.NAME` would put the module where the function is."""
    folder = os.path.dirname(ringrl.__file__)
    rooms = {os.path.splitext(entry)[0] for entry in os.listdir(folder)}
    assert set(ringrl.__all__) & rooms == {"attention"}


def test_type_checkers_see_the_same_names_as_python():
    """The names under TYPE_CHECKING, the table of where they are defined, and `__all__` agree."""
    tree = ast.parse(Path(ringrl.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname or alias.name: (node.module, alias.name) for node in imports for alias in node.names}
    defined = {
        name: ("ringrl", "attention") if attribute is None else (module, attribute)
        for name, (module, attribute) in ringrl._DEFINED.items()
    }
    assert seen == defined and sorted(defined) == sorted(ringrl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(ringrl, "nothing")  # noqa: B009


def test_64_bits_are_for_other_programs(tmp_path):
    """What a step computes does not depend on JAX_ENABLE_X64, whichever verb it is: it is unset before any of them."""
    (tmp_path / "step.py").write_text(
        "import dataclasses\nimport jax.numpy as jnp\n"
        "@dataclasses.dataclass\nclass Args:\n    'None.'\n"
        "def main(args): print(jnp.arange(3.0).dtype, jnp.arange(3).dtype)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "ringrl.cli", "data", "./step.py"],
        cwd=tmp_path, env={**os.environ, "JAX_ENABLE_X64": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "float32 int32\n", done.stderr
