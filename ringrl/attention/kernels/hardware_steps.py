"""`LocalStep` on top of the kernels for special hardware: how each one takes its arrays."""

from dataclasses import dataclass

from jaxtyping import Array

from ringrl.attention.block_attention import NEVER_SEEN, SEES_NONE
from ringrl.attention.kernels.gpu_tiles import choose_tiles
from ringrl.attention.local_step import Rows, Sizes, TokenIndex, add_share
from ringrl.attention.tiling import Cut


@dataclass(frozen=True)
class NativeStep:
    """C++ on CPUs (`ringrl.attention.kernels.native`): it reads [batch, length, heads, head_dim] as they are."""

    sizes: Sizes
    sharers: int = 1  # devices of the mesh: on a CPU they are simulated, and share its threads

    @property
    def blocks(self) -> tuple[int, int]:
        """Those of native_forward.h: a panel, and kBlock keys."""
        return 64, 120

    def pack_q(self, x: Array) -> Array:
        """As it is."""
        return x

    unpack_q = pack_k = unpack_k = pack_q

    def after(self, x: Array, token: Array) -> Array:
        """`x`, not before `token` is computed."""
        from ringrl.attention.kernels import native

        return native.after(x, token)

    def forward(self, q: Array, k: Array, v: Array, q_tokens: TokenIndex, k_tokens: TokenIndex) -> tuple[Array, Array]:
        """Output [batch, length, heads, head_dim] and log-sum-exp, float32."""
        from ringrl.attention.kernels import native

        return native.forward(q, k, v, *_pairs(q_tokens, k_tokens), **_static(self.sizes), sharers=self.sharers)

    def backward(
        self, rows: Rows, k: Array, v: Array, q_tokens: TokenIndex, k_tokens: TokenIndex, dq: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """dq with these keys' share, dk and dv, float32."""
        from ringrl.attention.kernels import native

        pairs, static = _pairs(q_tokens, k_tokens), _static(self.sizes)
        return add_share(dq, native.backward(*rows, k, v, *pairs, **static, sharers=self.sharers))


@dataclass(frozen=True)
class _Padded:
    """Arrays stay [batch, length, heads, head_dim], with runs padded to whole blocks."""

    sizes: Sizes
    interpret: bool = False

    @property
    def blocks(self) -> tuple[int, int]:
        """Those to which runs are padded."""
        return self.sizes.q.block, self.sizes.k.block

    def pack_q(self, x: Array) -> Array:
        """Padded."""
        return _padded(self.sizes.q, x)

    def unpack_q(self, x: Array) -> Array:
        """Undo `pack_q`."""
        return _unpadded(self.sizes.q, x)

    def pack_k(self, x: Array) -> Array:
        """Padded."""
        return _padded(self.sizes.k, x)

    def unpack_k(self, x: Array) -> Array:
        """Undo `pack_k`."""
        return _unpadded(self.sizes.k, x)

    def _pairs(self, q_tokens: TokenIndex, k_tokens: TokenIndex) -> tuple:
        q_positions, k_positions, q_segments, k_segments = _pairs(q_tokens, k_tokens)
        return (
            _padded(self.sizes.q, q_positions, SEES_NONE),
            _padded(self.sizes.k, k_positions, NEVER_SEEN),
            None if q_segments is None else _padded(self.sizes.q, q_segments),
            None if k_segments is None else _padded(self.sizes.k, k_segments),
        )


class GpuStep(_Padded):
    """Pallas on NVIDIA GPUs (`ringrl.attention.kernels.gpu`), compiled by Triton."""

    def forward(self, q: Array, k: Array, v: Array, q_tokens: TokenIndex, k_tokens: TokenIndex) -> tuple[Array, Array]:
        """Output [batch, length, heads, head_dim] and log-sum-exp, float32."""
        from ringrl.attention.kernels import gpu

        return gpu.forward(
            q,
            k,
            v,
            *self._pairs(q_tokens, k_tokens),
            scale=self.sizes.scale,
            k_runs=self.sizes.k.runs,
            tile=choose_tiles(q.shape[-1], q.dtype.itemsize).forward,
            interpret=self.interpret,
        )

    def backward(
        self, rows: Rows, k: Array, v: Array, q_tokens: TokenIndex, k_tokens: TokenIndex, dq: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """dq with these keys' share, dk and dv, float32."""
        from ringrl.attention.kernels import gpu_backward

        tiles = choose_tiles(k.shape[-1], k.dtype.itemsize)
        gradients = gpu_backward.backward(
            *rows,
            k,
            v,
            *self._pairs(q_tokens, k_tokens),
            scale=self.sizes.scale,
            q_runs=self.sizes.q.runs,
            k_runs=self.sizes.k.runs,
            dq_tile=tiles.dq,
            dkv_tile=tiles.dkv,
            interpret=self.interpret,
        )
        return add_share(dq, gradients)


class TpuStep(_Padded):
    """Pallas on TPUs (`ringrl.attention.kernels.tpu`): [batch, heads, length, head_dim], runs padded to blocks."""

    def pack_q(self, x: Array) -> Array:
        """Head-major and padded."""
        return super().pack_q(x).swapaxes(1, 2)

    def unpack_q(self, x: Array) -> Array:
        """Undo `pack_q`."""
        return super().unpack_q(x.swapaxes(1, 2))

    def pack_k(self, x: Array) -> Array:
        """Head-major and padded."""
        return super().pack_k(x).swapaxes(1, 2)

    def unpack_k(self, x: Array) -> Array:
        """Undo `pack_k`."""
        return super().unpack_k(x.swapaxes(1, 2))

    def forward(self, q: Array, k: Array, v: Array, q_tokens: TokenIndex, k_tokens: TokenIndex) -> tuple[Array, Array]:
        """Output [batch, heads, length, head_dim] and log-sum-exp, float32."""
        from ringrl.attention.kernels import tpu

        return tpu.forward(q, k, v, *self._pairs(q_tokens, k_tokens), **self._static())

    def backward(
        self, rows: Rows, k: Array, v: Array, q_tokens: TokenIndex, k_tokens: TokenIndex, dq: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """dq with these keys' share, dk and dv, float32."""
        from ringrl.attention.kernels import tpu_backward

        return tpu_backward.backward(*rows, k, v, *self._pairs(q_tokens, k_tokens), dq=dq, **self._static())

    def _static(self) -> dict:
        sizes = self.sizes
        return {
            "scale": sizes.scale,
            "block_q": sizes.q.block,
            "block_k": sizes.k.block,
            "interpret": self.interpret,
        }


def _pairs(q_tokens: TokenIndex, k_tokens: TokenIndex) -> tuple:
    return q_tokens.positions, k_tokens.positions, q_tokens.segments, k_tokens.segments


def _static(sizes: Sizes) -> dict:
    return {"scale": sizes.scale, "q_chunks": sizes.q.runs, "k_chunks": sizes.k.runs}


def _padded(cut: Cut, x: Array, fill: int = 0) -> Array:
    return cut.split(x, fill).reshape(x.shape[0], -1, *x.shape[2:])


def _unpadded(cut: Cut, x: Array) -> Array:
    return cut.join(x.reshape(x.shape[0], -1, cut.block, *x.shape[2:]))
