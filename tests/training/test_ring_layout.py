"""Which layout a training takes where its config leaves it open."""

import numpy as np
import pytest

from ringrl.agent import make_agent
from ringrl.config import load_config
from ringrl.errors import UserError
from ringrl.run import RunDirectory
from ringrl.training.loop import run_training
from ringrl.training.ring_layout import make_trainer

AGENT = {"name": "agentic_transformer", "trajectories": 2}
LONG = AGENT | {"trajectories": 8}  # contexts of some 80 agent steps, with which no chunk of a row of 200 ends


def decided(config):
    return make_trainer(make_agent(config.agent), config)[0].mesh


def test_rows_of_one_context_are_in_zigzag_and_packed_ones_in_stripes(tiny_config, capsys):
    one = tiny_config(AGENT, mesh={"seq": 4}, training={"row_steps": 48})
    assert (decided(one).layout, decided(one).stripe) == ("zigzag", None)
    capsys.readouterr()
    packed = tiny_config(LONG, mesh={"seq": 2}, training={"row_steps": 200, "batch": 2, "packing": True})
    mesh = decided(packed)
    assert mesh.layout == "striped" and mesh.stripe is not None and 100 % mesh.stripe == 0
    said = capsys.readouterr().out
    assert said.startswith(f"ring: striped in stripes of {mesh.stripe} agent steps, ") and ", zigzag " in said


def test_what_the_config_says_is_not_counted(tiny_config, capsys):
    for mesh in ({"seq": 4, "layout": "contiguous"}, {"seq": 4, "layout": "striped", "stripe": 3}, {"seq": 1}):
        config = tiny_config(AGENT, mesh=mesh, training={"row_steps": 48})
        expected = {"layout": "auto"} | mesh  # of one device it stays open: a run may go on with a ring
        assert {name: getattr(decided(config), name) for name in expected} == expected
    assert capsys.readouterr().out == ""


def test_a_stripe_that_is_left_open_is_counted_too(tiny_config):
    config = tiny_config(AGENT, mesh={"seq": 4, "layout": "striped"}, training={"row_steps": 48})
    assert decided(config).layout == "striped" and 12 % (decided(config).stripe or 0) == 0


def test_a_run_keeps_what_was_decided_and_goes_on_with_it(tiny_config, tmp_path):
    config = tiny_config(
        LONG,
        mesh={"seq": 2},
        training={"row_steps": 200, "batch": 2, "packing": True, "steps": 2},
        model={"remat": "none"},
    )
    run = tmp_path / "run"
    run_training(config, run)
    kept = RunDirectory(run).config()
    assert kept.mesh == decided(config) and kept.mesh.layout == "striped"
    run_training(kept.model_copy(update={"training": kept.training.model_copy(update={"steps": 3})}), run)
    assert RunDirectory(run).config().mesh == kept.mesh
    assert np.isfinite([float(line["loss"]) for line in RunDirectory(run).metrics()]).all()


@pytest.mark.parametrize(
    "settings, said",
    [
        (("mesh.stripe=4",), "stripe 4 is of the striped layout, not of auto"),
        (
            ("mesh.seq=2", "mesh.layout=striped", "mesh.stripe=7"),
            "must be a multiple of 14 for mesh.seq=2 in",
        ),
        (("mesh.layout=spiral",), "mesh.layout"),
        (("mesh.layout=striped", "mesh.stripe=0"), "mesh.stripe"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings, said):
    with pytest.raises(UserError, match=said):
        load_config("demo_at", ("training.row_steps=96", *settings))
