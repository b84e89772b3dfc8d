"""A model's compiled step changes the KV cache where it lies, and copies neither it nor a layer of it."""

import re
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from ringrl.attention import cached_attention
from ringrl.config import ModelConfig
from ringrl.model import transformer
from ringrl.model.cached_decoder import CachedDecoder
from ringrl.model.output_heads import TanhMSE
from ringrl.model.tokens import ORDER, TokenLayout
from ringrl.model.transformer import Transformer
from tests.attention.cached_rows import KERNELS
from tests.model.test_transformer import SIZES, make_steps

BATCH, CAPACITY = 2, 60_000
CONFIG = ModelConfig(layers=3, width=32, heads=4, kv_heads=2, max_steps=16, max_trials=4)
# What names memory, or changes some of it in place, without filling as much.
IN_PLACE = {"parameter", "tuple", "get-tuple-element", "while", "call", "bitcast", "dynamic-update-slice"}


def compiled_step(kernel, stations, cache_dtype, monkeypatch):
    """The compiled step, with this kernel, and the cache for which it is compiled."""
    monkeypatch.setattr(transformer, "cached_attention", partial(cached_attention, kernel=kernel))
    mesh = None
    if stations > 1:
        axes = {"data": 1, "fsdp": 1, "tensor": 1, "seq": stations, "heads": 1}
        mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * 5)
    model = Transformer(CONFIG, TokenLayout(ORDER), TanhMSE(), SIZES, rngs=nnx.Rngs(0))
    decoder = CachedDecoder(model, mesh, cache_dtype)
    cache = decoder.empty(BATCH, CAPACITY, len(ORDER))
    steps = make_steps([[1, 1]] * BATCH)
    previous, current = ({name: x[:, t : t + 1] for name, x in steps.items()} for t in range(2))
    step = jax.jit(lambda *arguments: decoder.step(*arguments), donate_argnums=2)
    return step.lower(previous, current, cache).compile(), cache


def large_results(program, numbers):
    """(opcode, instruction, is it a fusion that updates its operand) of results with so many numbers or more."""
    roots = dict(re.findall(r"^%?([\w.-]+) [^\n]*\{\n(?:[^}].*\n)*? *ROOT %?[\w.-]+ = \S+ ([\w-]+)\(", program, re.M))
    for line in program.splitlines():
        parsed = re.match(r"\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([\w-]+)\(", line)
        if parsed is None:
            continue
        shapes = re.findall(r"\[([\d,]+)\]", parsed[1])
        if max((np.prod([int(x) for x in shape.split(",")]) for shape in shapes), default=0) >= numbers:
            called = re.search(r"calls=%?([\w.-]+)", line)
            yield parsed[2], line, bool(called) and roots.get(called[1]) == "dynamic-update-slice"


@pytest.mark.parametrize("cache_dtype", ["float32", "int8"])
@pytest.mark.parametrize("stations", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_compiled_step_copies_no_layer_of_the_cache(kernel, stations, cache_dtype, monkeypatch):
    program, cache = compiled_step(kernel, stations, cache_dtype, monkeypatch)
    layer = cache.stored.k.size // CONFIG.layers // stations
    text, writes = program.as_text(), 0
    for opcode, line, updates in large_results(text, layer):
        if opcode == "custom-call" and "ringrl_native_write_cache" in line:
            assert "output_to_operand_aliasing={{0}: (0, {}), {1}: (1, {}), {2}: (2, {}), {3}: (3, {})}" in line
            updates = True
        writes += updates
        assert updates or opcode in IN_PLACE, line
    assert writes > 0
    # All of the cache comes back in the memory in which it was given.
    stored = sum(x.nbytes for x in jax.tree.leaves(cache.stored)) // stations
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= stored
    assert memory.temp_size_in_bytes < layer * cache.stored.k.dtype.itemsize
    outputs = re.search(r"input_output_alias=\{(.*?) \}, entry", text)
    assert outputs is not None and outputs[1].count("-alias)") >= len(jax.tree.leaves(cache))
