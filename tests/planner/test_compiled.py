"""The training step compiled for TPUs that are not there, and what is checked before."""

import json
from dataclasses import asdict, fields
from functools import partial

import jax
import numpy as np
import pytest

from ringrl.agent import make_decoder
from ringrl.batch import Batch
from ringrl.config import MeshConfig, parse_config
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.model.sharding import partition
from ringrl.planner import plan_training_step
from ringrl.planner.abstract_step import abstract_batch, fit_mesh, model_sizes
from ringrl.planner.plan_table import to_table
from ringrl.store.episode_store import DataSource, build
from ringrl.training.mesh import make_mesh
from tests.builders import PLANNED, make_config
from tests.planner.compilers import needs_libtpu

DECODER = make_decoder("agentic_transformer")
LONG = {"row_steps": 4096}


small = partial(
    make_config,
    PLANNED
    | {
        "model": {"layers": 2, "width": 32, "heads": 2, "kv_heads": 2, "max_steps": 16, "max_trials": 2},
        "training": {"steps": 10, "batch": 2, "row_steps": 64},
    },
)


def test_a_mesh_of_the_right_size_is_kept():
    config = small(mesh={"fsdp": 2, "seq": 4})
    assert fit_mesh(config, "v5e:2x4", 8) == (config, None)


def test_the_ring_takes_the_devices_that_are_left():
    config, note = fit_mesh(small(mesh={"fsdp": 2}), "v5e:2x4", 8)
    assert config.mesh == MeshConfig(fsdp=2, seq=4)
    assert note == "mesh.seq is 4, not the config's 1: the slice has 8 devices"


def test_a_slice_that_does_not_divide():
    config = small(mesh={"data": 3}, training={"batch": 3})
    with pytest.raises(UserError, match="v5e:2x4 has 8 devices.* = 3 does not divide.* whose product divides 8"):
        fit_mesh(config, "v5e:2x4", 8)


def test_a_row_that_does_not_divide_over_the_ring():
    config = small(training={"row_steps": 60})
    with pytest.raises(UserError, match="v5e:2x4 with mesh.seq=8: training.row_steps 60 must be a multiple of 16"):
        fit_mesh(config, "v5e:2x4", 8)


def test_sizes_come_from_the_environment_until_there_is_a_store(tmp_path):
    assert model_sizes(small(), DECODER) == {"observation": 5, "action": 1}
    store = tmp_path / "some.store"
    seen, acted, paid = np.zeros((3, 7), np.float32), np.zeros((2, 2), np.float32), np.zeros((2, 1), np.float32)
    episode = Episode(seen, acted, paid, np.ones(2, np.float32), np.zeros((3, 4)))
    source = DataSource("cartpole/test", "test")
    facts = {"domain": "cartpole", "tasks": ["cartpole_swingup"], "sources": [source], "provenance": {}}
    build(store, [(episode, 0)], **facts)
    assert model_sizes(small(data={"store": str(store)}), DECODER) == {"observation": 7, "action": 2}


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match="unknown task 'cartpole_swing'.*cartpole_swingup"):
        model_sizes(small(data={"task": "cartpole_swing"}), DECODER)


def test_the_planned_batch_is_the_loaders_batch():
    mesh = make_mesh(MeshConfig(seq=2), jax.devices()[:2])
    batch = abstract_batch(small(), DECODER, {"observation": 5, "action": 1}, mesh)
    assert set(batch) == {field.name for field in fields(Batch)}
    for field in fields(Batch):
        assert list(field.type.dtypes) == [batch[field.name].dtype.name]
        assert len(field.type.dims) == batch[field.name].ndim


def test_the_planned_batch_of_a_language_model():
    mesh, decoder = make_mesh(MeshConfig(seq=2), jax.devices()[:2]), make_decoder("language_model")
    values = small().model_dump(mode="json") | {"agent": {"name": "language_model"}}
    config = parse_config(values, "test")
    assert model_sizes(config, decoder) == {}
    batch = abstract_batch(config, decoder, {}, mesh)
    assert {name: x.dtype.name for name, x in batch.items()} == {
        name: "float32" if name == "weight" else "int32"
        for name in ("token", "target", "position", "segment_ids", "weight")
    }
    preceded = parse_config(values | {"agent": {"name": "language_model", "previous": 3}}, "test")
    decoder = make_decoder(preceded.agent)
    sizes = model_sizes(preceded, decoder)
    steps = preceded.training.row_steps
    assert abstract_batch(preceded, decoder, sizes, mesh)["previous"].shape == (preceded.training.batch, steps, 3)


def test_parameters_are_spread_over_the_ring_as_well():
    mesh = make_mesh(MeshConfig(fsdp=2, seq=4))
    assert partition("layers/up/kernel", (2, 32, 128), mesh)[1] == ("fsdp", "seq", "heads")
    assert partition("layers/up/kernel", (2, 6, 128), mesh)[1] == "fsdp"
    assert partition("layers/up/kernel", (2, 5, 128), mesh)[1] is None


@needs_libtpu
@pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning")
def test_a_small_step_fits(standard_promotion):
    model = {"compute_dtype": "bfloat16", "width": 256, "remat": "full"}  # heads of 128, so that nothing is padded
    plan = plan_training_step(small(mesh={"fsdp": 2, "seq": 2}, model=model, training=LONG), "v5e:2x2")
    assert plan.fits and plan.reason is None and plan.mesh_note is None
    assert plan.mesh == {"data": 1, "fsdp": 2, "tensor": 1, "seq": 2, "heads": 1}
    assert (plan.tokens, plan.row_tokens, plan.devices) == (2 * 4096, 4096, 4)
    assert plan.bytes_per_device == plan.argument_bytes + plan.temporary_bytes < plan.hbm_bytes
    assert plan.argument_bytes < 3 * 4 * plan.parameters  # parameters and AdamW's moments are spread
    answer = json.loads(json.dumps(plan, default=asdict))
    assert {"fits", "tokens", "bytes_per_device", "hbm_bytes", "mesh", "compile_seconds"} <= set(answer)
    assert to_table(plan, "a title").row_count == 12
    assert sum(plan.memory.values()) == plan.bytes_per_device
    assert {"parameters", "optimiser state", "batch"} <= set(plan.memory)
    assert plan.memory["parameters"] + plan.memory["optimiser state"] < 4 * plan.parameters  # of 12 bytes, a quarter
    assert plan.largest and all(buffer["made_by"].startswith("ringrl/") for buffer in plan.largest[:3])
    # Layers are computed twice, their feed-forward again block by block; attention's scores once more in the kernels.
    assert 1.4 < plan.executed_flops / plan.model_flops < 2.2
    # Keys and values, a row's half on each device, go one hop in each of: forward, recomputed, backward; their float32
    # gradients two. All in both layers; segment ids go with them.
    keys = 2 * 2048 * 256 * 2
    assert 2 * (3 * keys + 2 * 2 * keys) <= plan.traffic["ring"] < 1.1 * 2 * (3 * keys + 2 * 2 * keys)
    assert plan.traffic["other"] >= plan.traffic["other_waited"] > 0
    assert 0 < plan.mfu_bound < plan.model_flops / plan.executed_flops


@needs_libtpu
@pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning")
def test_a_step_that_does_not_fit_says_by_how_much(standard_promotion):
    config = small(training={"row_steps": 2**25, "batch": 1}, model={"layers": 1, "block": 1024})
    plan = plan_training_step(config, "v5e:1x1")
    assert not plan.fits and plan.traffic is None and plan.mfu_bound is None
    assert plan.bytes_per_device > plan.hbm_bytes == round(15.75 * 2**30)
    assert sum(plan.memory.values()) == plan.bytes_per_device and plan.largest  # what it would need
    assert plan.reason and "memory" in plan.reason
    assert any("compiler" in cell for cell in to_table(plan, "a title").columns[0].cells)
