"""An update that leaves bad numbers: found in the step that made it, never saved, and explained."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ringrl.agent import make_agent
from ringrl.config import parse_config
from ringrl.store.episode_store import open_store
from ringrl.training.checkpoint import Checkpoints
from ringrl.training.loop import run_training
from ringrl.training.processes import LocalShard
from ringrl.training.soundness import (
    LARGEST_WEIGHT,
    UpdateCheck,
    find_unsound,
    largest_magnitude,
    largest_number,
    listed,
    magnitudes_of_state,
)
from ringrl.training.training_data import ContextData

FUSED = {"name": "agentic_transformer", "trajectories": 2, "fused": True}
OFFLINE = {"name": "td3", "hidden": [8, 8], "batch": 8, "n_step": 1}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_anywhere_shows(bad):
    good = {"a": jnp.ones((3, 4)), "b": [jnp.full((2,), -5.0, jnp.bfloat16), jnp.int32(1 << 30), jnp.zeros(0)]}
    assert float(jax.jit(largest_magnitude)(good)) == 5.0
    assert float(largest_magnitude((jnp.int32(9), jax.random.key(0)))) == 0.0
    assert not math.isfinite(float(largest_magnitude(good | {"a": good["a"].at[2, 1].set(bad)})))


@pytest.mark.parametrize("name", ["td3", "forward_backward"])
def test_weights_and_moments_of_an_agent_s_own_state_are_kept_apart(name):
    state = make_agent(name).init(5, 1, 0)
    nodes = {field: getattr(state, field) for field in state._fields if "optimizer" in field}
    large = state._replace(
        **{field: jax.tree.map(lambda x: x + x.dtype.type(9), each) for field, each in nodes.items()}
    )
    numbers, before = jax.jit(magnitudes_of_state)(large), magnitudes_of_state(state)
    assert float(numbers["moment_max"]) == 9.0 and float(before["moment_max"]) == 0.0
    assert float(numbers["weight_max"]) == float(before["weight_max"]) < 9.0
    assert any(isinstance(x, optax.ScaleByAdamState) for each in nodes.values() for x in each)
    grown = state._replace(actor=jax.tree.map(lambda x: x + x.dtype.type(1e30), state.actor))
    assert find_unsound({k: float(v) for k, v in magnitudes_of_state(grown).items()}) == "weight_max is 1e+30"


def test_what_nothing_good_can_come_of_is_the_first_named():
    good = {"loss": -3.0, "grad_norm": 1e30, "weight_max": LARGEST_WEIGHT, "moment_max": 1e30}
    assert find_unsound(good) is None
    assert find_unsound(good | {"loss": math.nan, "weight_max": math.inf}) == "loss is nan"
    assert find_unsound(good | {"grad_norm": math.inf}) == "grad_norm is inf"
    assert find_unsound(good | {"moment_max": math.inf}) == "moment_max is inf"
    assert find_unsound(good | {"weight_max": 1e38}) == "weight_max is 1e+38"


def explain(step, found):
    return f"{found} at step {step}", "some rows"


def test_every_step_is_looked_at_one_step_later_at_most():
    good, bad = {"loss": jnp.float32(2)}, {"loss": jnp.float32(math.nan), "learning_rate": jnp.float32(0.5)}
    check = UpdateCheck(explain, "the step size", None)
    assert check.passed(1, good, now=True) == {"loss": 2.0} and check.passed(2, good, now=False) == {}
    assert check.passed(3, bad, now=False) == {}
    check.checkpoint = 1
    message = (
        r"^loss is nan at step 3: lower the step size \(0.5 there\), or check the batch, some rows; checkpoint 1 is"
    )
    with pytest.raises(FloatingPointError, match=message):
        check.passed(4, good, now=False)
    with pytest.raises(FloatingPointError, match="loss is nan at step 1: .*; there is no checkpoint yet$"):
        UpdateCheck(explain, "the step size", None).passed(1, {"loss": jnp.float32(math.nan)}, now=True)


def test_indices_and_magnitudes_are_few_words():
    assert listed(np.array([3, 1, 3])) == "1, 3" and listed(["b", "a"]) == "a, b"
    assert listed(np.arange(100)) == "0, 1, 2, 3, 4, 5, 6, 7 and 92 more"
    arrays = {"step": np.array([99]), "reward": np.float32([1, -7]), "action": np.zeros((0, 2), np.float32)}
    assert largest_number(arrays) == "whose largest number is 7, of reward"
    assert largest_number(arrays | {"label": np.float32([math.nan])}) == "whose largest number is nan, of label"
    assert largest_number({"token": np.array([5])}) == "no numbers"


@pytest.mark.parametrize("packing", [False, True])
def test_the_episodes_named_are_those_in_the_batch(packing, tiny_config, tmp_path):
    config = tiny_config(FUSED, training={"packing": packing, "row_steps": 64})
    data = ContextData(config, make_agent(config.agent).context_sampler)
    data.prepare(tmp_path)
    rows, columns = np.arange(4, dtype=np.int64), np.arange(64, dtype=np.int64)
    batch = next(data.batches(3, LocalShard(rows, columns, (4, 64))))
    begins = batch["observation"][(batch["step"] == 0) & (batch["segment_ids"] > 0)]
    first = first_observations(config, data.scales)
    found = {int(np.abs(first - each).max(axis=1).argmin()) for each in begins}
    listed_ones = re.fullmatch(r"episodes ([\d, ]+) of \S+ \(from (.+)\)", data.name_batch(3))
    assert (
        listed_ones and set(map(int, listed_ones[1].split(", "))) == found and data.name_batch(4) != data.name_batch(3)
    )
    assert listed_ones[2] == ", ".join(sorted({source.name for source in open_store(config.data.store).sources}))


def first_observations(config, scales):
    store = open_store(config.data.store)
    steps = store.read_many([(episode, 0, 1) for episode in range(store.episodes)], config.data.task)
    return scales.normalize_observation(np.stack([each.observation[0] for each in steps]))


def test_bad_weights_behind_a_good_loss_stop_the_run_and_are_not_kept(tiny_config, tmp_path):
    """The update at step 3 is the first with a large learning rate; its own loss and gradient are good."""
    config = tiny_config(
        FUSED,
        optimizer={"learning_rate": 3e8, "warmup_steps": 300},
        training={"steps": 400, "checkpoint_every": 1, "log_every": 100},
        model={"remat": "none"},
    )
    run = tmp_path / "run"
    with pytest.raises(FloatingPointError) as caught:
        run_training(config, run)
    message = str(caught.value)
    expected = (
        r"weight_max is [\d.e+]+ at step (\d): lower optimizer.learning_rate \([\de.+]+ there\), or check the batch, "
        r"episodes [\d, ]+ of \S+ \(from .+\), whose largest number is [\d.e+]+, of \w+; checkpoint (\d) is good"
    )
    parts = re.fullmatch(expected, message)
    assert parts, message
    with Checkpoints(run, read_only=True) as checkpoints:
        assert checkpoints.latest_step == int(parts[1]) - 1 == int(parts[2])
    assert (run / "metrics.jsonl").read_text() == ""


def test_an_offline_agent_s_step_is_found_within_its_call(tiny_config, tmp_path):
    """The actor is updated for the first time at step 4; a call is ten steps."""
    agent = OFFLINE | {"actor_lr": 1e30, "policy_delay": 4}
    known = tiny_config(agent).model_dump(include={"data"})
    sections = {"agent": agent, "training": {"steps": 40, "log_every": 10, "checkpoint_every": 20}}
    config, run = parse_config(known | sections, "tiny"), tmp_path / "run"
    message = r"^weight_max is [\d.]+e\+\d\d at step 4: lower the agent's .*, or check the batch, episodes \d.* of \S+ "
    with pytest.raises(FloatingPointError, match=message):
        run_training(config, run)
    assert (run / "metrics.jsonl").read_text() == "" and not list((run / "checkpoints").iterdir())
