"""A copy of a compiled model steps as the model itself, and what is done to one is not done to another."""

import numpy as np
import pytest
from dm_control import suite

from ringrl.envs import compiled_models, make_env
from ringrl.envs.compiled_models import compiled_once


@pytest.mark.parametrize("domain, task", [("cartpole", "swingup"), ("walker", "walk"), ("point_mass", "hard")])
def test_copies_are_the_same_bits_and_apart(domain, task):
    whole = suite.load(domain, task, task_kwargs={"random": 3})
    with compiled_once():
        copies = [suite.load(domain, task, task_kwargs={"random": 3}) for _ in range(2)]
    copies[1].physics.model.opt.gravity[:] = 0
    copies[1].physics.model.body_mass[:] *= 2
    control = np.full(whole.action_spec().shape, 0.3)
    for env in (whole, copies[0]):
        env.reset()
    for _ in range(30):
        steps = [env.step(control) for env in (whole, copies[0])]
        assert steps[0].reward == steps[1].reward
        np.testing.assert_array_equal(*(env.physics.get_state() for env in (whole, copies[0])))


def test_a_model_is_compiled_once_and_few_are_kept(monkeypatch):
    monkeypatch.setattr(compiled_models, "_models", compiled_models.OrderedDict())
    compiled = []
    compile_model = compiled_models.core._get_model_ptr_from_xml
    monkeypatch.setattr(
        compiled_models.core,
        "_get_model_ptr_from_xml",
        lambda **source: compiled.append(source) or compile_model(**source),
    )
    for seed in range(3):
        make_env("hidden_point_mass_goal", seed=seed)
    assert len(compiled) == 1
    tasks = ["acrobot_swingup", "cartpole_balance", "cheetah_run", "finger_spin", "hopper_stand", "pendulum_swingup"]
    for task in [*tasks, "reacher_easy", "swimmer_swimmer6", "walker_walk"]:
        make_env(task)
    assert len(compiled_models._models) == compiled_models._MOST
