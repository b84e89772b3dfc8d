"""The learning rate of a run that goes on to another step, or with another rate: a function, without a jump."""

import numpy as np
import pytest

from ringrl.config import dump_config, parse_config
from ringrl.errors import UserError
from ringrl.readers import parse_yaml
from ringrl.training.learning_rate import describe_last, go_on, make_schedule
from tests.builders import TINY, make_config

BASE = TINY | {
    "agent": {"name": "behavior_cloning"},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 10, "final_fraction": 0.1},
    "training": {"steps": 100, "batch": 4, "row_steps": 24},
}


def config(**sections):
    return make_config(BASE, **sections)


def rates(of, begin=0, end=None):
    schedule = make_schedule(of.optimizer, of.training.steps)
    return np.array([float(schedule(step)) for step in range(begin, (end or of.training.steps) + 1)])


def go(own, done, *given, **sections):
    base = own.model_dump(mode="json")
    for name, section in sections.items():
        base[name] |= section
    return go_on(own, parse_config(base, "test"), done, given, "runs/a")


@pytest.mark.parametrize("done", [4, 10, 60, 100])
def test_more_steps_go_on_from_the_rate_that_there_was(done):
    own = config()
    longer = go(own, done, "training.steps", training={"steps": 200})
    before, after = rates(own), rates(longer)
    np.testing.assert_array_equal(after[:done], before[:done])
    np.testing.assert_allclose(after[done], before[done], rtol=1e-6)
    # No step is larger than the warm-up's or the steepest of the cosine before.
    assert np.abs(np.diff(after)).max() <= np.abs(np.diff(before)).max() * 1.001
    np.testing.assert_allclose(after[-1], 1e-3, rtol=1e-5)
    peak = after[max(done, 10)]
    np.testing.assert_allclose(peak, 1e-2 if done < 10 else before[done], rtol=1e-6)  # what was left of the warm-up
    assert (np.diff(after[max(done, 10) :]) <= 1e-9).all()


def test_it_rises_again_where_the_rate_is_given():
    longer = go(config(), 100, "optimizer.learning_rate", optimizer={"learning_rate": 5e-3}, training={"steps": 200})
    after = rates(longer)
    np.testing.assert_allclose(after[[100, 105, 110, 200]], [1e-3, 3e-3, 5e-3, 5e-4], rtol=1e-5)
    assert describe_last(longer.optimizer) == (
        "the learning rate is 0.001 at step 100, 0.005 from step 110 on, and falls to 0.0005 at step 200"
    )


def test_it_is_the_same_function_after_every_resume():
    longer = go(config(), 60, "training.steps", training={"steps": 200})
    read = parse_config(parse_yaml(dump_config(longer), "test"), "test")
    assert read == longer
    for done in (40, 60, 150):  # a damaged checkpoint may lead back before the last leg
        again = go(read, done)
        np.testing.assert_array_equal(rates(again), rates(longer))
    third = go(read, 150, "training.steps", training={"steps": 160})
    np.testing.assert_array_equal(rates(third, 0, 149), rates(longer, 0, 149))
    np.testing.assert_allclose(rates(third)[[150, 160]], [rates(longer)[150], 1e-3], rtol=1e-5)
    assert [leg.begin for leg in third.optimizer.legs] == [0, 60, 150]


def test_a_run_that_ends_where_it_is_has_its_rate_to_go_on_from():
    ended = go(config(), 60, "training.steps", training={"steps": 60})
    longer = go(ended, 60, "training.steps", training={"steps": 100})
    np.testing.assert_allclose(rates(longer)[60], rates(config())[60], rtol=1e-6)


def test_nothing_changes_before_the_first_checkpoint_or_by_other_settings():
    own = config()
    assert go(own, 0, "training.steps", training={"steps": 200}).optimizer.legs == ()
    assert go(own, 60, "mesh.seq", mesh={"seq": 4}).optimizer.legs == ()


@pytest.mark.parametrize(
    "given, sections, message",
    [
        ("training.steps", {"training": {"steps": 59}}, "runs/a: has done 60 steps, so training.steps=59 is behind it"),
        (
            "optimizer.warmup_steps",
            {"optimizer": {"warmup_steps": 0}},
            "the learning rate would jump from 0.00472 to 0.01 at step 60; give optimizer.warmup_steps=N",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given, sections, message):
    with pytest.raises(UserError, match=message):
        go(config(), 60, given, **sections)


def test_a_rate_of_0_is_not_gone_on_with():
    own = config(optimizer={"final_fraction": 0.0})
    with pytest.raises(UserError, match="has fallen to 0 at step 100; give optimizer.learning_rate=X"):
        go(own, 100, "training.steps", training={"steps": 200})
