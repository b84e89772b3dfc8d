import importlib.util
import json
import sys
from pathlib import Path

import pytest
import tyro

from ringrl.errors import UserError

STEP = Path(__file__).parents[2] / "data" / "card.py"


@pytest.fixture(scope="module")
def step():
    spec = importlib.util.spec_from_file_location("step_card", STEP)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


def run(step, *arguments):
    step.main(tyro.cli(step.Args, args=[str(argument) for argument in arguments]))


def test_a_store_of_real_episodes_has_its_card(step, tiny_store, tmp_path, capsys):
    run(step, tiny_store, "--out", tmp_path / "card")
    assert capsys.readouterr().out == f"{tmp_path / 'card' / 'index.html'}\n"
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert (card["domain"], card["episodes"], card["steps"]) == ("cartpole", 8, sum(range(36, 44)))
    assert list(card["tasks"]) == ["cartpole_balance", "cartpole_swingup"]
    assert card["provenance"]["relabel"] == "exact"


def test_what_is_no_store_is_said(step, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        run(step, tmp_path / "nothing")
