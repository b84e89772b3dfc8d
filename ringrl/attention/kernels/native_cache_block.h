// One block of a cache's slots against the query rows of a key head: scores, weights, and the weighted sum of values.
//
// Scores are [rows, slots]. Keys are transposed within quads of lanes, four slots at a time, so that no score needs a sum
// over a vector's lanes. While a block is read, the next one is fetched, in the order of memory.
#pragma once

#include "native_problem.h"

namespace ringrl {

typedef uint16_t LooseHalves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
typedef int8_t LooseBytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
RINGRL_INLINE Vec widened(const float* x) { return load(x); }
RINGRL_INLINE Vec widened(const Bfloat16* x) {
  return (Vec)(__builtin_convertvector(*reinterpret_cast<const LooseHalves*>(x), IntVec) << 16);
}
RINGRL_INLINE Vec widened(const int8_t* x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
#else
  return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const LooseBytes*>(x), IntVec), Vec);
#endif
}

RINGRL_INLINE bool any(IntVec x) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)x, (__m512i)x) != 0;
#elif defined(__AVX__)
  return _mm256_movemask_ps((__m256)x) != 0;
#else
  int32_t some = 0;
  for (int i = 0; i < kLanes; ++i) some |= x[i];
  return some != 0;
#endif
}

// A vector of which only `left` numbers may be there.
inline Vec load_some(const float* x, int64_t left) {
  if (left >= kLanes) return load(x);
  alignas(64) float copy[kLanes] = {};
  std::memcpy(copy, x, left * 4);
  return load(copy);
}

template <class K>
struct CacheBlock {
  int64_t dim, pitch, rows;  // numbers of a head and of a slot; query rows
  int64_t block;             // most slots
  float *keys, *weights;
  K* copy;  // of one head's rows, where these are no whole vectors

  static constexpr int64_t kLongest = 8 * kPad;
  static constexpr int64_t kLine = 64 / sizeof(K);  // numbers in a cache line
  static constexpr int kQuads = kLanes / 4;

  int64_t padded() const { return round_up(dim, kLanes); }

  void carve(Carver& carver) {
    keys = carver.take(block * padded());
    weights = carver.take(kLongest * rows);
    copy = reinterpret_cast<K*>(carver.take(padded() == dim ? 0 : block * padded()));
  }

  // Rows of one head, one after the other as they are, or padded with zeros to whole vectors.
  const K* whole(const K* from, int64_t size, int64_t* row) const {
    *row = pitch;
    if (padded() == dim) return from;
    *row = padded();
    for (int64_t j = 0; j < size; ++j) {
      std::memcpy(copy + j * padded(), from + j * pitch, dim * sizeof(K));
      std::memset(static_cast<void*>(copy + j * padded() + dim), 0, (padded() - dim) * sizeof(K));
    }
    return copy;
  }

  // [block / kLanes][dim / kLanes][4][kQuads]: lane 4 * i + n of vector (j, u) is number 4 * i + j of slot 4 * u + n.
  void read_keys(const K* from, int64_t size, const K* next) const {
    int64_t row;
    from = whole(from, size, &row);
    const int64_t chunks = padded() / kLanes, last = size - 1;
    for (int64_t s = 0; s < round_up(size, kLanes); s += 4) {
      const K* x[4];
      for (int i = 0; i < 4; ++i) x[i] = from + std::min(s + i, last) * row;
      float* to = keys + (s / kLanes * chunks * 4 * kQuads + s % kLanes / 4) * kLanes;
      for (int64_t c = 0; c < chunks; ++c, to += 4 * kQuads * kLanes) {
        if (c * kLanes % kLine == 0) {
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) __builtin_prefetch(next + (s + i) * dim + c * kLanes, 0, 3);
        }
        const Vec a = widened(x[0] + c * kLanes), d = widened(x[1] + c * kLanes);
        const Vec e = widened(x[2] + c * kLanes), f = widened(x[3] + c * kLanes);
        const Vec ae_low = zip_low(a, e), ae_high = zip_high(a, e), df_low = zip_low(d, f), df_high = zip_high(d, f);
        store(to, zip_low(ae_low, df_low));
        store(to + kQuads * kLanes, zip_high(ae_low, df_low));
        store(to + 2 * kQuads * kLanes, zip_low(ae_high, df_high));
        store(to + 3 * kQuads * kLanes, zip_high(ae_high, df_high));
      }
    }
  }

  void score(const float* queries, int64_t size) const {
    for (int64_t s = 0; s < size; s += kLanes) {
      if (rows == 1) score_tile<1>(queries, 0, s);
      if (rows == 2) score_tile<2>(queries, 0, s);
      for (int64_t r = 0; r + 4 <= rows; r += 4) score_tile<4>(queries, r, s);
    }
  }

  template <int kRows>
  void score_tile(const float* queries, int64_t r, int64_t s) const {
    const int64_t steps = padded() / kLanes * 4, apart = rows * kLanes;
    const float* tile = keys + s * steps * kQuads;
    queries += r * kLanes;
    Vec acc[kRows][kQuads] = {};
    for (int64_t i = 0; i < steps; ++i, tile += kQuads * kLanes, queries += apart) {
      Vec key[kQuads];
#pragma GCC unroll 4
      for (int u = 0; u < kQuads; ++u) key[u] = load(tile + u * kLanes);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const Vec x = load(queries + m * kLanes);
#pragma GCC unroll 4
        for (int u = 0; u < kQuads; ++u) acc[m][u] += x * key[u];
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) store(weights + (r + m) * kLongest + s, sum_quads(acc[m]));
  }

  // Scores (times log2(e)) of a row to weights. `visible` is null where it sees all slots, scales where there are none.
  void weigh(int64_t r, int64_t size, const int32_t* visible, const float* k_scale, const float* v_scale,
             float* highest, float* total, float* output) const {
    float* const x = weights + r * kLongest;
    Vec top = splat(-INFINITY);
    for (int64_t j = 0; j < size; j += kLanes) {
      Vec s = load(x + j);
      if (k_scale) s *= load_some(k_scale + j, size - j);
      if (visible) s = load(visible + j) ? s : splat(-INFINITY);
      store(x + j, s);
      top = maximum(s, top);
    }
    if (any(top > splat(*highest))) {
      float most = *highest;
      for (int i = 0; i < kLanes; ++i) most = std::max(most, top[i]);
      const float shrink = exp2(splat(*highest - most))[0];
      *highest = most;
      store(total, load(total) * shrink);
      for (int64_t d = 0; d < padded(); d += kLanes) store(output + d, load(output + d) * shrink);
    }
    Vec sum = load(total);
    const Vec shift = splat(*highest);
    for (int64_t j = 0; j < size; j += kLanes) {
      Vec p = exp2(load(x + j) - shift);
      sum += p;
      if (v_scale) p *= load_some(v_scale + j, size - j);
      store(x + j, p);
    }
    store(total, sum);
  }

  void mix(const K* v, int64_t size, const K* next, float* output) const {
    int64_t row;
    v = whole(v, size, &row);
    for (int64_t r = 0; r < rows; r += 4) {
      for (int64_t d = 0; d < padded();) {
        const int64_t cols = (padded() - d) / kLanes;
        const int64_t wide = cols >= kTileCols ? kTileCols : cols >= 2 ? 2 : 1;
        const K* ahead = r ? v + d : next + d;
        float* to = output + r * padded() + d;
        if (wide == kTileCols) mix_rows<kTileCols>(r, size, v + d, row, ahead, to);
        if (wide == 2 && kTileCols > 2) mix_rows<2>(r, size, v + d, row, ahead, to);
        if (wide == 1) mix_rows<1>(r, size, v + d, row, ahead, to);
        d += wide * kLanes;
      }
    }
  }

  // All rows, or four of them from r on.
  template <int kCols>
  void mix_rows(int64_t r, int64_t size, const K* v, int64_t row, const K* next, float* output) const {
    const float* weight = weights + r * kLongest;
    if (rows == 1) return mix_tile<1, kCols>(size, v, row, next, weight, output);
    if (rows == 2) return mix_tile<2, kCols>(size, v, row, next, weight, output);
    mix_tile<4, kCols>(size, v, row, next, weight, output);
  }

  template <int kRows, int kCols>
  void mix_tile(int64_t size, const K* v, int64_t row, const K* next, const float* weight, float* output) const {
    const int64_t wide = padded(), apart = dim;
    Vec acc[kRows][kCols];
    for (int m = 0; m < kRows; ++m) {
      for (int c = 0; c < kCols; ++c) acc[m][c] = load(output + m * wide + c * kLanes);
    }
    for (int64_t j = 0; j < size; ++j, v += row, next += apart) {
      Vec x[kCols];
#pragma GCC unroll 4
      for (int c = 0; c < kCols; ++c) {
        if (c * kLanes % kLine == 0) __builtin_prefetch(next + c * kLanes, 0, 3);
        x[c] = widened(v + c * kLanes);
      }
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
        for (int c = 0; c < kCols; ++c) acc[m][c] += weight[m * kLongest + j] * x[c];
      }
    }
    for (int m = 0; m < kRows; ++m) {
      for (int c = 0; c < kCols; ++c) store(output + m * wide + c * kLanes, acc[m][c]);
    }
  }
};

}  // namespace ringrl
