"""Whole evaluations of a run: who is rolled out, under which name, and what is written."""

import csv

import numpy as np
import pytest
from dm_control.suite import cartpole

from ringrl.config import parse_config
from ringrl.envs import make
from ringrl.envs.suite import DMControlEnv
from ringrl.errors import UserError
from ringrl.rollout.evaluate import agent_label, evaluate
from ringrl.training.loop import find_run, train

LABEL = "AT, two in context"
LIMIT = 22  # control steps of an episode: 6 decisions of up to 4


@pytest.fixture(scope="module", autouse=True)
def short_episodes():
    made = DMControlEnv.__init__

    def short(self, *arguments, **options):
        made(self, *arguments, **options)
        self._env._step_limit = self.time_limit_steps = LIMIT

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DMControlEnv, "__init__", short)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
    """A trained run whose agent is told a return and looks across trials."""
    config = tiny_config({"name": "agentic_transformer", "trajectories": 2}, training={"steps": 2})
    path = tmp_path_factory.mktemp("evaluated") / "run"
    train(config.model_copy(update={"label": LABEL}), path)
    return path


def read(path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_label_is_what_tables_call_a_run(run, tiny_config):
    assert agent_label(find_run(run)) == LABEL
    assert agent_label(tiny_config({"name": "behavior_cloning"})) == "behavior_cloning"
    unlabelled = tiny_config({"name": "behavior_cloning"}).model_dump()
    for wrong in ("random", "expert", ""):
        with pytest.raises(UserError, match="`label`"):
            parse_config(unlabelled | {"label": wrong}, "here")


def expert(_, physics) -> np.ndarray:
    """A controller that holds the pole up."""
    angle = np.arctan2(physics.named.data.xmat["pole_1", "xz"], physics.named.data.xmat["pole_1", "zz"])
    return np.clip(8 * angle + 2 * physics.angular_vel(), -1, 1)


def test_an_expert_is_rolled_out_where_the_task_has_one(run, monkeypatch):
    monkeypatch.setattr(cartpole.Balance, "expert", expert, raising=False)
    rows = read(evaluate(run, trials=2))
    assert [row["agent"] for row in rows] == [LABEL] * 4 + ["random"] * 4 + ["expert"] * 4
    assert {row["target_return"] for row in rows[4:]} == {""}
    for env in range(2):  # in environments of the same seeds, an episode after the other
        alone = make("cartpole_balance", seed=1000 + env, action_repeat=4)
        for trial in range(2):
            alone.reset()
            earned, done = 0.0, False
            while not done:
                action = expert(None, alone.physics).astype(np.float32)
                _, reward, _, done, _ = alone.step(action)
                earned += reward
            (row,) = [r for r in rows[8:] if (r["env"], r["trial"]) == (str(env), str(trial))]
            assert float(row["return"]) == earned and row["length"] == str(LIMIT)
        alone.close()
    assert read(evaluate(run, trials=2, reference=False)) == rows[:4]


def test_without_an_expert_there_is_only_chance(run):
    assert {row["agent"] for row in read(evaluate(run, trials=1))} == {LABEL, "random"}
