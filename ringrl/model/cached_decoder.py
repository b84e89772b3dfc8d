"""A model on a KV cache: its compiled calls, on one device or spread over a mesh; made once, shared by all contexts.

On a mesh, rows are spread over `data` and `fsdp`, the cache's slots over `seq` and `heads`, heads over `tensor`.
Parameters are whole on every device, but for `tensor`. A layer sends one combination of partial results over the ring.
"""

import functools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from ringrl.attention import KVCache, empty_cache, slots_for
from ringrl.attention.kv_cache import Stored
from ringrl.model.sharding import BATCH_AXES, SEQUENCE_AXES, whole_but_tensor
from ringrl.model.tokens import StepArrays
from ringrl.model.transformer import Transformer

FILLED_TOKENS = 512
"""Tokens a row that a cache is filled with in one call: enough for whole matrix products, and little memory."""


class CacheRoom(NamedTuple):
    """What a cache is made for, in tokens of a row."""

    capacity: int  # tokens kept at most
    call: int  # of the longest call that appends to it


def room_for(steps: int, tokens_per_step: int) -> CacheRoom:
    """The room that a rollout gives a context of so many agent steps.

    One step more, as the tokens of a step that there is not take room before an interleaved context's first step.
    """
    call = max(min(FILLED_TOKENS // tokens_per_step, steps), 1) * tokens_per_step
    return CacheRoom((steps + 1) * tokens_per_step, call)


class CachedDecoder:
    """What a rollout asks of a model. Calls take a cache away from the caller and give it back longer.

    Attributes:
        model: the decoder.
        params: its parameters, as the calls take them: matrices of layers in the compute dtype.
        stations: devices over which a row's cache is spread.
        cache_dtype: of the cache's keys and values.
    """

    def __init__(self, model: Transformer, mesh: Mesh | None = None, cache_dtype: str | None = None):
        """`cache_dtype`: float32, bfloat16 or int8; None: the model's compute dtype.

        A model of shapes alone (`nnx.eval_shape`) will do for `lower_step`.
        """
        self.model, self._mesh = model, mesh
        self.cache_dtype = jnp.dtype(cache_dtype or model.config.compute_dtype)
        self.stations = 1 if mesh is None else mesh.shape["seq"] * mesh.shape["heads"]
        self._graph, state = nnx.split(model)
        params = nnx.to_pure_dict(state)  # which calls flatten five times as fast
        self.params = _in_compute_dtype(params, jnp.dtype(model.config.compute_dtype))
        if mesh is None:
            # Restored parameters are of a mesh of one device. What is computed from them would be of another type than
            # the empty cache, and every call would be compiled twice.
            self.params = jax.tree.map(_on_one_device, self.params)
        else:
            self.params = jax.tree.map(partial(_place, mesh), self.params, whole_but_tensor(params, mesh))
        self._step, self._fill = self._compiled(self._decode), self._compiled(self._extend)
        empty = lambda cache, which: cache._replace(filled=jnp.where(which[:, None], 0, cache.filled))  # noqa: E731
        self._forget = jax.jit(empty, donate_argnums=0)
        self._put_row = jax.jit(_put_row, donate_argnums=0)
        self._maker = functools.cache(self._make_maker)

    def empty(self, batch: int, capacity: int, call: int) -> KVCache:
        """A cache for `batch` rows of up to `capacity` tokens, appended by calls of up to `call` tokens."""
        return self._maker(batch, capacity, call)()

    def shapes(self, batch: int, capacity: int, call: int) -> KVCache:
        """The cache of `empty`, as shapes and shardings; nothing is made."""
        cache = jax.eval_shape(self._maker(batch, capacity, call))
        if self._mesh is None:
            return cache
        return jax.tree.map(partial(_place, self._mesh), cache, cache_partitions(self._quantised, self._rows(batch)))

    def lower_step(self, fields: Mapping[str, jax.ShapeDtypeStruct], cache: KVCache) -> jax.stages.Lowered:
        """`step` as it goes to the compiler, of shapes and shardings alone: the fields of a step, and `shapes`."""
        return self._step.lower(self.params, fields, fields, cache, None)

    def _make_maker(self, batch: int, capacity: int, call: int) -> Callable[[], KVCache]:
        """Makes an empty cache, in its shards."""
        c = self.model.config
        slots = slots_for(capacity, call, self.stations) * self.stations
        sizes = (c.layers, batch, slots, c.kv_heads, c.width // c.heads, self.cache_dtype)
        make = partial(empty_cache, *sizes, stations=self.stations)
        if self._mesh is None:
            return jax.jit(make, out_shardings=SingleDeviceSharding(jax.local_devices()[0]))
        specs = cache_partitions(self._quantised, self._rows(batch))
        shardings = jax.tree.map(partial(NamedSharding, self._mesh), specs, is_leaf=_is_spec)
        return jax.jit(make, out_shardings=shardings)

    def step(
        self, previous: Mapping[str, Any], current: Mapping[str, Any], cache: KVCache, prompt: KVCache | None = None
    ) -> tuple[Float[Array, "batch action outputs"], KVCache]:
        """Raw outputs for the current step's action, and the cache with the tokens that came with the step.

        Fields are [batch, 1]. See `TokenEmbedder.following` for which tokens those are.
        """
        return self._step(self.params, previous, current, cache, prompt)

    def fill(
        self, steps: Mapping[str, Any], cache: KVCache, prompt: KVCache | None = None
    ) -> tuple[Float[Array, "batch steps action outputs"], KVCache]:
        """Raw outputs at all of `steps`, and the cache with all their tokens; padding at a row's end is not kept."""
        return self._fill(self.params, steps, cache, prompt)

    def forget(self, cache: KVCache, which: Bool[np.ndarray, " batch"]) -> KVCache:
        """The cache without the tokens of these rows."""
        return self._forget(cache, which)

    @property
    def rows_together(self) -> bool:
        """Whether every device has all rows (of the slots that it has), so that one row can be put among them."""
        return self._mesh is None or math.prod(self._mesh.shape[axis] for axis in BATCH_AXES) == 1

    def put_row(self, cache: KVCache, one: KVCache, row: int) -> KVCache:
        """The cache with a row taken from a cache of one row, made for the same capacity and calls."""
        return self._put_row(cache, one, np.int32(row))

    def _decode(self, model: Transformer, previous: StepArrays, current: StepArrays, extend: Callable) -> Any:
        features, cache = extend(model.embed.following(previous, current))
        return model.read(features[:, -1]), cache

    def _extend(self, model: Transformer, steps: StepArrays, extend: Callable) -> Any:
        features, cache = extend(model.embed(steps))
        return model.read(model.embed.read(features)), cache

    def _compiled(self, call: Callable) -> Callable:
        """The jitted call, on every device's shards; donates the cache."""
        mesh = self._mesh
        axis_name = None if self.stations == 1 else SEQUENCE_AXES
        several = mesh is not None and mesh.shape["tensor"] > 1
        total = partial(lax.psum, axis_name="tensor") if several else lambda part: part

        def local(params: Any, *arguments: Any) -> Any:
            *steps, cache, prompt = arguments
            model = nnx.merge(self._graph, params)
            extend = partial(model.extend, cache=cache, prompt=prompt, total=total, axis_name=axis_name)
            return call(model, *steps, extend)

        def run(params: Any, *arguments: Any) -> Any:
            if mesh is None:
                return local(params, *arguments)
            rows = self._rows(arguments[-2].filled.shape[0])
            cache = cache_partitions(self._quantised, rows)
            prompt = None if arguments[-1] is None else cache_partitions(self._quantised, ())
            steps = (P(rows),) * (len(arguments) - 2)
            specs = (whole_but_tensor(params, mesh), *steps, cache, prompt)
            sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P(rows), cache), check_vma=False)
            return sharded(params, *arguments)

        # Every process acts in all environments, so each gets all raw outputs.
        whole = None if mesh is None else (NamedSharding(mesh, P()), None)
        return jax.jit(run, donate_argnums=3 if call == self._decode else 2, out_shardings=whole)

    @property
    def _quantised(self) -> bool:
        return self.cache_dtype == jnp.int8

    def _rows(self, batch: int) -> tuple[str, ...]:
        """The mesh axes over which that many rows are spread: none where they do not divide, as a prompt's one row."""
        assert self._mesh is not None
        sizes = math.prod(self._mesh.shape[axis] for axis in BATCH_AXES)
        return () if batch % sizes else BATCH_AXES


def cache_partitions(quantised: bool, rows: tuple[str, ...]) -> KVCache:
    """The partitions of a cache's arrays; `rows`: mesh axes of its rows."""
    tokens: Any = P(None, rows, SEQUENCE_AXES, "tensor")
    scale: Any = P(None, rows, "tensor", SEQUENCE_AXES) if quantised else None
    slots: Any = P(rows, SEQUENCE_AXES)
    filled: Any = P(rows)
    return KVCache(Stored(tokens, tokens, scale, scale), slots, slots, filled)


def _put_row(cache: KVCache, one: KVCache, row: Array) -> KVCache:
    put = partial(lax.dynamic_update_slice_in_dim, start_index=row)
    stored = jax.tree.map(partial(put, axis=1), cache.stored, one.stored)
    positions, segment_ids, filled = (partial(put, axis=0)(x, new) for x, new in zip(cache[1:], one[1:], strict=True))
    return KVCache(stored, positions, segment_ids, filled)


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)


def _place(mesh: Mesh, x: Any, spec: P) -> Any:
    """A parameter on the mesh, from shards there or from one device; or a shape there."""
    sharding = NamedSharding(mesh, spec)
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.device_put(x, sharding)


def _on_one_device(x: Any) -> Any:
    return x if isinstance(x, jax.ShapeDtypeStruct) else jax.device_put(x, jax.local_devices()[0])


def _in_compute_dtype(params: Any, dtype: Any) -> Any:
    """Matrices of layers in the dtype in which they are used, so that no call casts them anew."""

    def cast(path: tuple, x: Any) -> Any:
        names = [str(getattr(part, "key", getattr(part, "name", ""))) for part in path]
        if "layers" not in names or "kernel" not in names:
            return x
        return jax.ShapeDtypeStruct(x.shape, dtype) if isinstance(x, jax.ShapeDtypeStruct) else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)
