// Vectors, exp2, and register-tiled matrix products. Vectors are the compiler's own (GCC and Clang), so one source
// serves AVX-512, AVX2, SSE2 and NEON; only operations that the language of vectors lacks are written as intrinsics.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace ringrl {

// A tile keeps kTileRows x kTileCols accumulators in registers: 24 of 32, or 12 of the 16 that older x86 has.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileCols = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTileCols = 2;
#elif defined(__x86_64__)
constexpr int kLanes = 4, kTileCols = 2;
#else
constexpr int kLanes = 4, kTileCols = 4;
#endif
constexpr int kTileRows = 6;

constexpr int kPanel = 64;         // queries side by side in the lanes of a panel
constexpr int kPad = 16;           // rows of scratch are padded to a whole number of the widest vectors
constexpr float kMasked = -1e30f;  // the log-sum-exp of a query that sees nothing
constexpr float kLog2e = 1.44269504088896340736f, kLn2 = 0.693147180559945309417f;
constexpr int32_t kNeverSeen = INT32_MAX, kSeesNothing = INT32_MIN;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef float LooseVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t LooseIntVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

typedef float Quad __attribute__((vector_size(16)));
typedef float LooseQuad __attribute__((vector_size(16), aligned(4), may_alias));

#define RINGRL_INLINE inline __attribute__((always_inline))
// For lambdas whose argument is a tile: called out of line, they would force it from registers into memory.
#define RINGRL_INLINED __attribute__((always_inline))

RINGRL_INLINE Vec load(const float* x) { return *reinterpret_cast<const LooseVec*>(x); }
RINGRL_INLINE IntVec load(const int32_t* x) { return *reinterpret_cast<const LooseIntVec*>(x); }
RINGRL_INLINE void store(float* x, Vec v) { *reinterpret_cast<LooseVec*>(x) = v; }
RINGRL_INLINE Vec splat(float x) { return x - Vec{}; }
RINGRL_INLINE IntVec splat(int32_t x) { return x - IntVec{}; }

RINGRL_INLINE Quad load_quad(const float* x) { return *reinterpret_cast<const LooseQuad*>(x); }
RINGRL_INLINE void store_quad(float* x, Quad v) { *reinterpret_cast<LooseQuad*>(x) = v; }
#if defined(__clang__)
RINGRL_INLINE Quad interleave_low(Quad a, Quad b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
RINGRL_INLINE Quad interleave_high(Quad a, Quad b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#else
typedef int32_t IntQuad __attribute__((vector_size(16)));
RINGRL_INLINE Quad interleave_low(Quad a, Quad b) { return __builtin_shuffle(a, b, IntQuad{0, 4, 1, 5}); }
RINGRL_INLINE Quad interleave_high(Quad a, Quad b) { return __builtin_shuffle(a, b, IntQuad{2, 6, 3, 7}); }
#endif

// The same within every quad of lanes; and the sums over the quads of x[u], in quad u.
#if defined(__AVX512F__)
RINGRL_INLINE Vec zip_low(Vec a, Vec b) { return (Vec)_mm512_unpacklo_ps((__m512)a, (__m512)b); }
RINGRL_INLINE Vec zip_high(Vec a, Vec b) { return (Vec)_mm512_unpackhi_ps((__m512)a, (__m512)b); }
RINGRL_INLINE Vec sum_pairs(Vec a, Vec b) {
  return (Vec)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x88) + (Vec)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xdd);
}
RINGRL_INLINE Vec sum_quads(const Vec* x) { return sum_pairs(sum_pairs(x[0], x[1]), sum_pairs(x[2], x[3])); }
#elif defined(__AVX__)
RINGRL_INLINE Vec zip_low(Vec a, Vec b) { return (Vec)_mm256_unpacklo_ps((__m256)a, (__m256)b); }
RINGRL_INLINE Vec zip_high(Vec a, Vec b) { return (Vec)_mm256_unpackhi_ps((__m256)a, (__m256)b); }
RINGRL_INLINE Vec sum_quads(const Vec* x) {
  return (Vec)_mm256_permute2f128_ps((__m256)x[0], (__m256)x[1], 0x20) +
         (Vec)_mm256_permute2f128_ps((__m256)x[0], (__m256)x[1], 0x31);
}
#else
RINGRL_INLINE Vec zip_low(Vec a, Vec b) { return interleave_low(a, b); }
RINGRL_INLINE Vec zip_high(Vec a, Vec b) { return interleave_high(a, b); }
RINGRL_INLINE Vec sum_quads(const Vec* x) { return x[0]; }
#endif

constexpr int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

RINGRL_INLINE Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

// 2^x to 2 ulp; 0 below -126 (where a float is no longer normal), so that exp2(-inf) is exactly 0.
RINGRL_INLINE Vec exp2(Vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Vec clamped = maximum(x, splat(-152.0f));
  const Vec shifted = clamped + kRound;
  const Vec r = clamped - (shifted - kRound);
  Vec p = splat(1.32647269e-3f);  // minimax in relative error on [-0.5, 0.5]: 9e-8
  p = p * r + 9.67151266e-3f;
  p = p * r + 5.55073374e-2f;
  p = p * r + 2.40222421e-1f;
  p = p * r + 6.93146978e-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)(shifted - kRound));
#else
  const IntVec raised = (IntVec)p + ((IntVec)shifted << 23);
  return (Vec)(raised & (x >= splat(-126.0f)));
#endif
}

// acc[r][c] = sum over k of A(r, k) * B[k][c]. kRowMajor: A(r, k) = a[r * lda + k]; otherwise a[k * lda + r].
template <int kRows, int kCols, bool kRowMajor, class Finish>
RINGRL_INLINE void tile(int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, Finish&& finish) {
  Vec acc[kRows][kCols] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[kCols];
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) row[c] = load(b + k * ldb + c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const float x = kRowMajor ? a[r * lda + k] : a[k * lda + r];
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c) acc[r][c] += x * row[c];
    }
  }
  finish(acc);
}

template <int kCols, bool kRowMajor, class Finish>
RINGRL_INLINE void tile_column(int64_t rows, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb,
                               Finish&& finish) {
  const int64_t step = kRowMajor ? lda : 1;
  int64_t m = 0;
  const auto finish_at = [&](auto& acc) RINGRL_INLINED { finish(m, acc); };
  for (; m + 4 < rows; m += kTileRows) tile<kTileRows, kCols, kRowMajor>(depth, a + m * step, lda, b, ldb, finish_at);
  if (m + 2 < rows) {
    tile<4, kCols, kRowMajor>(depth, a + m * step, lda, b, ldb, finish_at);
  } else if (m < rows) {
    tile<2, kCols, kRowMajor>(depth, a + m * step, lda, b, ldb, finish_at);
  }
}

// A [rows, depth] times B [depth, cols vectors]. `finish(m, n, acc)` is called with each tile, whose first row is m and
// whose first column is the n-th vector. Rows are rounded up to a tile's: at most kTileRows - 1 more than asked for
// are read and passed on.
template <bool kRowMajor, class Finish>
RINGRL_INLINE void multiply(int64_t rows, int cols, int64_t depth, const float* a, int64_t lda, const float* b,
                            int64_t ldb, Finish&& finish) {
  int n = 0;
  const auto finish_at = [&](int64_t m, auto& acc) RINGRL_INLINED { finish(m, n, acc); };
  for (; n + kTileCols <= cols; n += kTileCols) {
    tile_column<kTileCols, kRowMajor>(rows, depth, a, lda, b + n * kLanes, ldb, finish_at);
  }
  const float* rest = b + n * kLanes;
  if constexpr (kTileCols > 2) {
    if (cols - n == 3) tile_column<3, kRowMajor>(rows, depth, a, lda, rest, ldb, finish_at);
    if (cols - n == 2) tile_column<2, kRowMajor>(rows, depth, a, lda, rest, ldb, finish_at);
  }
  if (cols - n == 1) tile_column<1, kRowMajor>(rows, depth, a, lda, rest, ldb, finish_at);
}

}  // namespace ringrl
