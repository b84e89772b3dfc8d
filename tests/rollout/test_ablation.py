"""An ablated context is the one that a reader would write down by hand, and the steps as they happened are kept."""

from functools import cache
from itertools import permutations

import jax
import numpy as np
import pytest
from flax import nnx

from ringrl.config import ModelConfig
from ringrl.errors import UserError
from ringrl.model.cached_decoder import CachedDecoder
from ringrl.model.output_heads import TanhMSE
from ringrl.model.tokens import ORDER, TokenLayout
from ringrl.model.transformer import Transformer, make_attend
from ringrl.policy import RolloutSetting
from ringrl.rollout.ablation import AblatedContext, ablate, numbers_to_ablate
from ringrl.rollout.context import CachedContext

ENVS, TRIALS, LENGTH, TARGET, PAID = 3, 4, 3, 0.75, 1.2
STEPS = TRIALS * LENGTH
SIZES = {"observation": 2, "action": 1}
OUTCOME = ("action", "reward", "completion")
GIVEN = ("observation", "return_to_go", "step")


@cache
def make_model(fused: bool) -> Transformer:
    config = ModelConfig(layers=2, width=16, heads=2, kv_heads=2, max_steps=8, max_trials=4, trial_encoding="table")
    model = Transformer(config, TokenLayout(ORDER, fused=fused), TanhMSE(), SIZES, rngs=nnx.Rngs(0))
    for embedding in (model.embed.step, model.embed.trial):  # they start small; here they shall matter
        embedding.embedding[...] = 30.0 * embedding.embedding[...]
    return model


@cache
def forward(fused: bool):
    attend = make_attend(None, "contiguous", None)
    return jax.jit(lambda steps: make_model(fused)(steps, attend))


def link(fields: dict) -> dict:
    """With the outcome of the step before, where that is there and of the same trial."""
    for name in OUTCOME:
        before = np.zeros_like(fields[name])
        before[:, 1:] = fields[name][:, :-1]
        absent = np.ones(fields["step"].shape, bool)
        absent[:, 1:] = fields["segment_ids"][:, :-1] == 0
        before[absent | (fields["step"] == 0)] = 0
        fields[f"previous_{name}"] = before
    return fields


def history(seed: int = 0) -> dict[str, np.ndarray]:
    """What really happened: every number of every step another one."""
    rng, shape = np.random.default_rng(seed), (ENVS, STEPS)
    drawn = {name: rng.normal(size=shape).astype(np.float32) for name in ("reward", "completion", "return_to_go")}
    drawn["return_to_go"][:, ::LENGTH] = TARGET
    wide = {name: rng.normal(size=(*shape, size)).astype(np.float32) for name, size in SIZES.items()}
    slots = np.arange(STEPS, dtype=np.int32)
    counted = {"step": slots % LENGTH, "trial": slots // LENGTH, "position": slots, "segment_ids": slots * 0 + 1}
    repeated = {name: np.tile(value, (ENVS, 1)) for name, value in counted.items()}
    return link(drawn | wide | repeated | {"weight": np.ones(shape, np.float32)})


def drive(context: CachedContext, fields: dict) -> np.ndarray:
    """Raw outputs [envs, steps, ...] of an agent that lives through `fields`."""
    outputs = []
    for t in range(fields["step"].shape[1]):
        step = {name: value[:, t] for name, value in fields.items()}
        outputs.append(np.asarray(context.predict({name: step[name] for name in GIVEN})))
        context.amend({name: step[name] for name in OUTCOME})
    return np.stack(outputs, axis=1)


@cache
def decoder(fused: bool) -> CachedDecoder:
    return CachedDecoder(make_model(fused))


def ablated(ablation: str, fused: bool, steps: int = STEPS, trials: int = TRIALS, demonstrations=()) -> AblatedContext:
    setting = RolloutSetting(ENVS, LENGTH, trials, seed=3, ablation=ablation)
    given = {"target": TARGET, "paid": PAID, "demonstrations": demonstrations}
    return AblatedContext(decoder(fused), steps, setting, SIZES, **given)


def by_hand(ablation: str, fields: dict, trial: int, order: tuple[int, ...] = ()) -> dict:
    """The history up to the end of `trial`, as it is while that is the present one."""
    shown = {name: value.copy() for name, value in fields.items()}
    start = trial * LENGTH
    shown["segment_ids"][:, start + LENGTH :] = 0
    if ablation == "truncated":
        shown["segment_ids"][:, :start] = 0
    if ablation == "foreign":
        for name, value in fields.items():
            shown[name][:, :start] = value[[1, 2, 0], :start]
    if ablation in ("unpaid", "paid"):
        for env in range(ENVS):
            for each in range(trial):
                steps = slice(each * LENGTH, (each + 1) * LENGTH)
                if (fields["reward"][env, steps].max() >= PAID) != (ablation == "paid"):
                    shown["segment_ids"][env, steps] = 0
    if ablation == "shuffled":
        for name in ("observation", "return_to_go", *OUTCOME):
            pieces = [fields[name][:, each * LENGTH : (each + 1) * LENGTH] for each in order]
            shown[name][:, :start] = np.concatenate(pieces, axis=1)
    if ablation == "blind":
        shown["reward"][...], shown["completion"][...], shown["return_to_go"][...] = 0, 0, TARGET
    return link(shown)


@pytest.mark.parametrize(
    "ablation, fused",
    [
        ("truncated", False),
        ("truncated", True),
        ("foreign", True),
        ("blind", False),
        ("blind", True),
        ("unpaid", True),
        ("paid", False),
    ],
)
def test_every_trial_has_the_context_written_here(ablation, fused):
    fields = history()
    outputs, intact = drive(ablated(ablation, fused), fields), forward(fused)(fields)
    for trial in range(TRIALS):
        present = slice(trial * LENGTH, (trial + 1) * LENGTH)
        expected = forward(fused)(by_hand(ablation, fields, trial))[:, present]
        np.testing.assert_allclose(outputs[:, present], expected, rtol=0, atol=2e-5)
        if trial == TRIALS - 1 or ablation == "blind":
            assert np.abs(outputs[:, present] - intact[:, present]).max() > 1e-2


def test_shuffled_trials_are_in_one_order_for_each_environment():
    fused = True
    fields, trial = history(), TRIALS - 1
    outputs, present = drive(ablated("shuffled", fused), fields), slice(trial * LENGTH, STEPS)
    orders = list(permutations(range(trial)))
    expected = np.stack([forward(fused)(by_hand("shuffled", fields, trial, order))[:, present] for order in orders])
    off = np.abs(expected - outputs[None, :, present]).max(axis=(2, 3, 4))  # [orders, envs]
    assert ((off < 2e-5).sum(axis=0) == 1).all() and ((off > 1e-3).sum(axis=0) == len(orders) - 1).all()
    found = [orders[which] for which in off.argmin(axis=0)]
    assert len(set(found)) > 1 and set(found) != {orders[0]}


def test_truncated_outputs_do_not_depend_on_earlier_trials():
    fields, other, start = history(), history(1), (TRIALS - 1) * LENGTH
    for name, value in fields.items():
        if not name.startswith("previous"):
            other[name][:, start:] = value[:, start:]
    other = link(other)
    one, two = (drive(ablated("truncated", False), each) for each in (fields, other))
    np.testing.assert_array_equal(one[:, start:], two[:, start:])
    assert np.abs(one[:, :start] - two[:, :start]).max() > 1e-2


def test_a_full_context_is_ablated_after_it_made_room():
    """Two trials fit: the last one sees that before it, of the next environment, both counted from 0."""
    fields, two = history(), 2 * LENGTH
    outputs = drive(ablated("foreign", True, steps=two), fields)
    newest = {name: value[:, -two:].copy() for name, value in fields.items()}
    for name in ("trial", "position"):
        newest[name] -= newest[name][:, :1]
    shown = by_hand("foreign", newest, 1)
    shown = {name: np.concatenate([value, np.zeros_like(value)], axis=1) for name, value in shown.items()}
    expected = forward(True)(shown)[:, LENGTH:two]
    np.testing.assert_allclose(outputs[:, -LENGTH:], expected, rtol=0, atol=2e-5)


def test_trials_of_unequal_lengths_are_moved_whole():
    """One environment with trials of 1, 3 and 2 steps and the first step of a fourth; the keys order them 2, 0, 1."""
    trial = np.array([[0, 1, 1, 1, 2, 2, 3]], np.int32)
    number = np.array([[0, 0, 1, 2, 0, 1, 0]], np.int32)
    reward = np.array([[1, 2, 3, 4, 5, 6, 0]], np.float32)
    fields = {
        "step": number, "trial": trial, "reward": reward, "completion": -reward, "action": reward[:, :, None] * 10,
        "position": np.arange(7, dtype=np.int32)[None], "segment_ids": np.ones((1, 7), np.int32),
    }  # fmt: skip
    shown = ablate("shuffled", fields, np.array([[0.5, 0.9, 0.1, 0.0]]), TARGET, PAID)
    assert shown["reward"].tolist() == [[5, 6, 1, 2, 3, 4, 0]]
    assert shown["step"].tolist() == [[0, 1, 0, 0, 1, 2, 0]]
    assert shown["trial"].tolist() == [[0, 0, 1, 2, 2, 2, 3]]
    assert shown["position"].tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert shown["previous_action"][..., 0].tolist() == [[0, 50, 0, 0, 20, 30, 0]]
    assert fields["reward"].tolist() == reward.tolist()  # what really happened stays


def test_the_next_environment_s_earlier_trials_may_be_of_other_lengths():
    """Two environments with earlier trials of 1 and 2 steps, and of 2 alone; the present one has one step."""
    fields = {
        "step": np.array([[0, 0, 1, 0], [0, 1, 0, 0]], np.int32),
        "trial": np.array([[0, 1, 1, 2], [0, 0, 1, 0]], np.int32),
        "position": np.array([[0, 1, 2, 3], [0, 1, 2, 0]], np.int32),
        "segment_ids": np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.int32),
        "reward": np.array([[1, 2, 3, 0], [4, 5, 0, 0]], np.float32),
    }
    fields |= {"completion": fields["reward"], "action": fields["reward"][:, :, None]}
    shown = ablate("foreign", fields, np.zeros((2, 4)), TARGET, PAID)
    assert shown["reward"].tolist() == [[4, 5, 0, 0], [1, 2, 3, 0]]
    assert shown["segment_ids"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert shown["previous_reward"].tolist() == [[0, 4, 0, 0], [0, 0, 2, 0]]
    unpaid, paid = (ablate(name, fields, np.zeros((2, 4)), TARGET, 2.0) for name in ("unpaid", "paid"))
    assert unpaid["reward"].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert paid["reward"].tolist() == [[2, 3, 0, 0], [4, 5, 0, 0]]
    assert paid["position"].tolist() == [[1, 2, 3, 0], [0, 1, 2, 0]]


@pytest.mark.parametrize("ablation", ["truncated", "shuffled", "foreign", "blind", "unpaid", "paid"])
def test_demonstrations_are_ablated_as_trials_of_one_s_own_are(ablation):
    """To the bit: what the context is made of is the same."""
    fields, shown = history(), (TRIALS - 2) * LENGTH
    own = drive(ablated(ablation, True), fields)[:, shown:]
    given = [{name: value[env, :shown] for name, value in fields.items()} for env in range(ENVS)]
    context = ablated(ablation, True, trials=2, demonstrations=given)
    np.testing.assert_array_equal(drive(context, {name: value[:, shown:] for name, value in fields.items()}), own)


def test_trials_that_the_model_was_not_asked_in_are_ablated_too():
    """To the bit as where it was: two trials that explore, and two that act."""
    fields, explored = history(), (TRIALS - 2) * LENGTH
    asked = drive(ablated("foreign", True), fields)[:, explored:]
    context, outputs = ablated("foreign", True), []
    for t in range(STEPS):
        step = {name: value[:, t] for name, value in fields.items()}
        given = {name: step[name] for name in GIVEN}
        if t < explored:
            context.follow(given)
        else:
            outputs.append(np.asarray(context.predict(given)))
        context.amend({name: step[name] for name in OUTCOME})
    np.testing.assert_array_equal(np.stack(outputs, axis=1), asked)


def test_demonstrations_that_all_share_are_nobody_else_s():
    one = {name: value[0, :LENGTH] for name, value in history().items()}
    with pytest.raises(UserError, match="--ablation foreign: all environments are shown the same .*--apart"):
        ablated("foreign", True, trials=1, demonstrations=one)


def test_an_ablation_is_of_the_numbers_of_demonstrations_that_it_changes():
    assert numbers_to_ablate("shuffled", 1, [0, 1, 2, 8]) == [2, 8]
    assert numbers_to_ablate("blind", 1, [0, 8]) == [0, 8]
    with pytest.raises(UserError, match="--ablation shuffled: changes nothing in fewer than 3 .*--trials 3"):
        numbers_to_ablate("shuffled", 2, [0])
    with pytest.raises(UserError, match="--ablation shuffled: .* give 2 or more trajectories"):
        numbers_to_ablate("shuffled", 1, [0, 1])


def test_environments_must_begin_their_trials_together():
    fields = {name: value[:, 0].copy() for name, value in history().items()}
    context = ablated("shuffled", True)
    fields["step"][1] = 2
    with pytest.raises(UserError, match="--ablation shuffled: .*begin their trials at different times"):
        context.predict({name: fields[name] for name in GIVEN})
