"""Every file in `data/` is a step: it has `Args` and `main`, and its docstring shows commands that parse."""

import dataclasses
import inspect
import re
import shlex

import pytest
import tyro

from ringrl import recipes

NAMES = [name for name, _ in recipes.listing()["data"]]
each_step = pytest.mark.parametrize("name", NAMES)


def test_there_are_steps():
    assert len(NAMES) >= 9


@each_step
def test_it_has_arguments_and_a_main(name):
    step = recipes.load("data", name)
    assert dataclasses.is_dataclass(step.Args) and step.Args.__dataclass_params__.frozen
    (argument,) = inspect.signature(step.main).parameters.values()
    assert argument.annotation is step.Args
    assert (step.main.__doc__ or "").strip() and (step.Args.__doc__ or "").strip()


@each_step
def test_the_commands_of_its_docstring_parse(name):
    step = recipes.load("data", name)
    commands = re.findall(rf"^    ringrl data {name} (.*)$", step.__doc__ or "", re.MULTILINE)
    assert commands, "its docstring shows no command"
    for command in commands:
        assert isinstance(tyro.cli(step.Args, args=shlex.split(command, comments=True)), step.Args)
