"""The parts of training: partitions, the optimiser, metrics and their figures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ringrl.agent import make_decoder
from ringrl.config import MeshConfig, OptimizerConfig
from ringrl.errors import UserError
from ringrl.model.sharding import partition
from ringrl.model_config import rope_base_for
from ringrl.training.mesh import make_mesh
from ringrl.training.state import build_model, init_state, make_optimizer, merge_model, set_rope_base, split_model
from ringrl.training.tracker import MetricsLog


def test_partitions_follow_the_parameters_and_skip_what_does_not_divide():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2, seq=2))
    assert partition("layers/before/query/kernel", (3, 16, 8), mesh) == P(None, ("fsdp", "seq", "heads"), "tensor")
    assert partition("0/mu/layers/down/kernel", (3, 64, 16), mesh) == P(None, "tensor", ("fsdp", "seq", "heads"))
    assert partition("layers/query/kernel", (3, 6, 8), mesh) == P(None, "fsdp", "tensor")  # 6 / 4 is not whole
    assert partition("layers/query/kernel", (3, 5, 7), mesh) == P(None, None, None)
    assert partition("norm/scale", (16,), mesh) == P()


def test_a_mesh_of_too_many_devices_is_refused():
    with pytest.raises(UserError, match=r"needs 16 devices, here are 8 \(cpu\).*RINGRL_CPU_DEVICES"):
        make_mesh(MeshConfig(seq=16))


def test_the_state_lives_where_it_should_and_is_the_same_everywhere(tiny_config):
    decoder, sizes = make_decoder("agentic_transformer"), {"observation": 5, "action": 1}
    config = tiny_config({"name": "agentic_transformer"})
    _, one = init_state(config, decoder, sizes, make_mesh(config.mesh))
    wide = tiny_config({"name": "agentic_transformer"}, mesh={"fsdp": 2, "tensor": 2, "data": 2})
    _, many = init_state(wide, decoder, sizes, make_mesh(wide.mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, many)
    kernel = many.params["layers"]["after"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    model = build_model(config, decoder, sizes)
    graph, params = split_model(model)
    assert split_model(merge_model(graph, params))[1].keys() == one.params.keys()


def test_the_base_of_positions_is_that_of_a_rows_tokens_unless_it_is_given(tiny_config):
    decoder = make_decoder("agentic_transformer")
    for given, steps, base in ((None, 24, 1e4), (None, 10**6, rope_base_for(5 * 10**6)), (5e5, 10**6, 5e5)):
        config = tiny_config({"name": "agentic_transformer"}, model={"rope_base": given}, training={"row_steps": steps})
        assert set_rope_base(config, decoder).model.rope_base == base
        assert set_rope_base(config, None) is config
    layers = build_model(config, decoder, {"observation": 5, "action": 1}).layers
    assert layers.before.rope_base == 5e5


def test_the_learning_rate_warms_up_and_decays():
    _, schedule = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=10, final_fraction=0.1), 100)
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [0.0, 5e-3, 1e-2], rtol=1e-5)
    np.testing.assert_allclose(schedule(100), 1e-3, rtol=1e-5)
    rates = [float(schedule(step)) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)
    _, short = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=50), 1)
    assert float(short(0)) == pytest.approx(1e-2)


def test_matrices_alone_decay():
    params = {"layers": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, warmup_steps=0)
    optimizer, _ = make_optimizer(config, 10)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["layers"]["kernel"], -0.05, rtol=1e-5)
    assert not np.any(updates["layers"]["bias"]) and not np.any(updates["norm"]["scale"])


def test_metrics_of_a_resumed_run_hold_every_step_once(tmp_path):
    values = {"loss": 1.0, "tokens_per_s": 10.0}
    with MetricsLog(tmp_path, 10, 0, "x") as metrics:
        for step in (2, 4, 6):
            metrics.log(step, values)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    with MetricsLog(tmp_path, 10, 4, "x") as metrics:
        for step in (6, 8, 10):
            metrics.log(step, values)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10] and not list(tmp_path.glob("*.partial"))
