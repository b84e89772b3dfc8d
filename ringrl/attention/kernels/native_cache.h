// Attention of the queries of a few new tokens to one layer of a KV cache, and putting new tokens into it.
//
// Memory sets the pace: a layer's filled slots are cut into pieces of about equal length, over all rows, and each thread
// reads its pieces block by block, once for all heads and queries, with the next block on its way. Scores of a block are
// [queries, slots]: keys are transposed within quads of lanes, four slots at a time, so that no score needs a sum over a
// vector's lanes. What the pieces of a row give is joined by their log-sum-exp (Flash-Decoding).
#pragma once

#include <atomic>
#include <memory>
#include <type_traits>

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

// One layer of a cache, in place.
template <class K>
struct CacheLayer {
  const K *k, *v;                  // [batch, slots, kv_heads * dim]
  const float *k_scale, *v_scale;  // [batch, kv_heads, slots] of int8, else null
  Tokens tokens;                   // of the slots
  const int32_t* filled;           // [batch]
};

template <class Q, class K>
class CacheAttention {
 public:
  CacheAttention(const Shape& s, const Q* q, Tokens q_tokens, const CacheLayer<K>& cache, float* out, float* lse,
                 int64_t threads)
      : shape(s), q(q), q_tokens(q_tokens), cache(cache), out(out), lse(lse) {
    const int64_t slot_bytes = 2 * stride() * sizeof(K);
    block = std::clamp<int64_t>(kBlockBytes / slot_bytes, kPad, kLongestBlock) / kPad * kPad;
    int64_t filled = 0;
    for (int64_t b = 0; b < s.batch; ++b) filled += length(b);
    // Work in bytes that are read, or would be in the time that the products of many queries take.
    const double work = static_cast<double>(filled) * slot_bytes * std::max<int64_t>(rows() / 8, 1);
    const double most = std::min<double>(work / kPieceBytes, threads == 1 ? 1 : 4 * threads);
    workers = std::clamp<int64_t>(static_cast<int64_t>(work / kPieceBytes), 1, threads);
    const int64_t longest = round_up(static_cast<int64_t>(filled / std::max(most, 1.0)) + 1, block);
    for (int64_t b = 0; b < s.batch; ++b) {
      first.push_back(static_cast<int64_t>(pieces.size()));
      const int64_t number = std::max<int64_t>((length(b) + longest - 1) / longest, 1);
      const int64_t size = round_up((length(b) + number - 1) / number, block);
      for (int64_t i = 0; i < number; ++i) {
        pieces.push_back({b, std::min(i * size, length(b)), std::min((i + 1) * size, length(b))});
      }
    }
    first.push_back(static_cast<int64_t>(pieces.size()));
    left = std::make_unique<std::atomic<int64_t>[]>(s.batch);
    for (int64_t b = 0; b < s.batch; ++b) left[b] = first[b + 1] - first[b];
    results.reserve(items() * result_size());
  }

  int64_t workers;  // threads worth waking
  int64_t items() const { return static_cast<int64_t>(pieces.size()); }

  void run(int64_t item) {
    thread_local Scratch scratch;
    const Piece& piece = pieces[item];
    Memory memory;
    carve(Carver(nullptr), memory);
    const int64_t floats = memory.used;
    carve(Carver(scratch.reserve(floats)), memory);
    const Result mine = result(item);
    std::fill_n(mine.output, shape.kv_heads * rows() * padded(), 0.0f);
    std::fill_n(mine.highest, shape.kv_heads * rows(), kMasked);
    std::fill_n(mine.total, shape.kv_heads * rows() * kLanes, 0.0f);
    Block now = find(piece.row, piece.begin, piece.end, memory.visible[0]);
    if (now.size) read_all_queries(piece.row, memory.queries);
    for (int turn = 0; now.size; turn ^= 1) {
      const Block next = find(piece.row, now.begin + now.size, piece.end, memory.visible[turn ^ 1]);
      attend(piece.row, now, next, memory.visible[turn], memory, mine);
      now = next;
    }
    if (left[piece.row].fetch_sub(1) == 1) finish(piece.row);
  }

 private:
  static constexpr int64_t kBlockBytes = 1 << 14;   // keys and values that stay in the first-level cache
  static constexpr int64_t kPieceBytes = 1 << 17;   // less takes no longer than to wake a thread
  static constexpr int64_t kLongestBlock = 8 * kPad;
  static constexpr int64_t kLine = 64 / sizeof(K);   // numbers in a cache line
  static constexpr int kQuads = kLanes / 4;

  struct Piece {
    int64_t row, begin, end;
  };
  struct Block {
    int64_t begin, size;
    bool masked;  // not every query sees all of it
  };
  struct Memory {
    float *queries, *keys, *weights;
    int32_t* visible[2];  // [tokens, block]: -1 where the query sees the slot, else 0
    K* copy;
    int64_t used;
  };
  struct Result {
    float *output, *highest, *total;  // [kv_heads, rows, padded], [kv_heads, rows], [kv_heads, rows, kLanes]
  };

  Shape shape;
  const Q* q;
  Tokens q_tokens;
  CacheLayer<K> cache;
  float *out, *lse;
  int64_t block;
  std::vector<Piece> pieces;
  std::vector<int64_t> first;  // of each row's pieces
  std::unique_ptr<std::atomic<int64_t>[]> left;
  Scratch results;

  int64_t stride() const { return shape.kv_heads * shape.dim; }
  int64_t padded() const { return round_up(shape.dim, kLanes); }
  // Query rows of a key head, rounded up to whole tiles.
  int64_t rows() const { return shape.rows() <= 2 ? shape.rows() : round_up(shape.rows(), 4); }
  int64_t length(int64_t b) const { return std::clamp<int64_t>(cache.filled[b], 0, shape.keys); }
  int64_t result_size() const { return round_up(shape.kv_heads * rows() * (padded() + 1 + kLanes), kPad); }
  Result result(int64_t item) {
    float* base = results.reserve(items() * result_size()) + item * result_size();
    float* total = base + shape.kv_heads * rows() * padded();
    return {base, total + shape.kv_heads * rows() * kLanes, total};
  }

  void carve(Carver carver, Memory& memory) const {
    memory.queries = carver.take(shape.kv_heads * rows() * padded() * 4);
    memory.keys = carver.take(block * padded());
    memory.weights = carver.take(kLongestBlock * rows());
    for (auto& visible : memory.visible) visible = reinterpret_cast<int32_t*>(carver.take(block * shape.queries));
    memory.copy = reinterpret_cast<K*>(carver.take(padded() == shape.dim ? 0 : block * padded()));
    memory.used = carver.used();
  }

  // The first block from `begin` on of which a query sees something; its size is 0 where there is none.
  Block find(int64_t b, int64_t begin, int64_t end, int32_t* visible) const {
    for (; begin < end; begin += block) {
      const int64_t size = std::min(block, end - begin);
      alignas(64) int32_t positions[kLongestBlock], segments[kLongestBlock];
      std::memcpy(positions, cache.tokens.positions + b * shape.keys + begin, size * 4);
      std::memcpy(segments, cache.tokens.segments + b * shape.keys + begin, size * 4);
      std::fill(segments + size, segments + round_up(size, kPad), 0);
      IntVec some{}, all = splat(-1);
      for (int64_t t = 0; t < shape.queries; ++t) {
        const int32_t segment = q_tokens.segment(b, t), position = q_tokens.position(b, t);
        for (int64_t j = 0; j < size; j += kLanes) {
          IntVec sees = (load(segments + j) == splat(segment)) & (load(positions + j) <= splat(position));
          if (segment == 0) sees = IntVec{};
          *reinterpret_cast<LooseIntVec*>(visible + t * block + j) = sees;
          some |= sees;
          all &= sees;
        }
      }
      if (any(some)) return {begin, size, any(~all) || size % kLanes != 0};
    }
    return {end, 0, false};
  }

  static bool any(IntVec x) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)x, (__m512i)x) != 0;
#elif defined(__AVX__)
    return _mm256_movemask_ps((__m256)x) != 0;
#endif
    int32_t some = 0;
    for (int i = 0; i < kLanes; ++i) some |= x[i];
    return some != 0;
  }

  // [kv_heads][dim / kLanes][4][rows]: a vector has, in each quad of lanes, one number of a query four times.
  void read_all_queries(int64_t b, float* to) const {
    const int64_t chunks = padded() / kLanes;
    const float factor = shape.scale * kLog2e;
    std::fill_n(to, shape.kv_heads * rows() * padded() * 4, 0.0f);
    for (int64_t h = 0; h < shape.kv_heads; ++h) {
      for (int64_t r = 0; r < shape.rows(); ++r) {
        const Q* from = q + shape.at_row(b, h, r) * shape.dim;
        for (int64_t d = 0; d < shape.dim; ++d) {
          const int64_t c = d / kLanes, quad = d % kLanes / 4, j = d % 4;
          const float x = number(from[d]) * factor;
          std::fill_n(to + (((h * chunks + c) * 4 + j) * rows() + r) * kLanes + quad * 4, 4, x);
        }
      }
    }
  }
  static float number(float x) { return x; }
  static float number(Bfloat16 x) { return widen(x); }

  void attend(int64_t b, const Block& now, const Block& next, const int32_t* visible, Memory& memory,
              const Result& mine) const {
    const int64_t from = (b * shape.keys + now.begin) * stride(), heads = shape.kv_heads;
    const int64_t ahead = (b * shape.keys + next.begin) * stride();  // in the next block, in the order of memory
    for (int64_t h = 0; h < heads; ++h) {
      read_keys_of(cache.k + from + h * shape.dim, now.size, cache.k + ahead + h * now.size * shape.dim, memory);
      const int64_t at = h * rows();
      score(memory.queries + at * padded() * 4, now.size, memory);
      const int64_t scales = (b * heads + h) * shape.keys + now.begin;
      for (int64_t r = 0; r < shape.rows(); ++r) {
        weigh(memory.weights + r * kLongestBlock, now, cache.k_scale ? cache.k_scale + scales : nullptr,
              cache.v_scale ? cache.v_scale + scales : nullptr, visible + r / shape.group() * block,
              mine.highest + at + r, mine.total + (at + r) * kLanes, mine.output + (at + r) * padded());
      }
      mix(cache.v + from + h * shape.dim, now.size, cache.v + ahead + h * now.size * shape.dim, memory, mine.output + at * padded());
    }
  }

  // Rows of one head, one after the other as they are, or padded with zeros to whole vectors.
  const K* whole(const K* from, int64_t size, K* copy, int64_t* row) const {
    *row = stride();
    if (padded() == shape.dim) return from;
    *row = padded();
    for (int64_t j = 0; j < size; ++j) {
      std::memcpy(copy + j * padded(), from + j * stride(), shape.dim * sizeof(K));
      std::memset(static_cast<void*>(copy + j * padded() + shape.dim), 0, (padded() - shape.dim) * sizeof(K));
    }
    return copy;
  }

  // [block / kLanes][dim / kLanes][4][kQuads]: lane 4 * i + n of vector (j, u) is number 4 * i + j of slot 4 * u + n.
  void read_keys_of(const K* from, int64_t size, const K* next, Memory& memory) const {
    int64_t row;
    from = whole(from, size, memory.copy, &row);
    const int64_t chunks = padded() / kLanes, last = size - 1, pitch = shape.dim;
    for (int64_t s = 0; s < round_up(size, kLanes); s += 4) {
      const K* x[4];
      for (int i = 0; i < 4; ++i) x[i] = from + std::min(s + i, last) * row;
      float* to = memory.keys + (s / kLanes * chunks * 4 * kQuads + s % kLanes / 4) * kLanes;
      for (int64_t c = 0; c < chunks; ++c, to += 4 * kQuads * kLanes) {
        if (c * kLanes % kLine == 0) {
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) __builtin_prefetch(next + (s + i) * pitch + c * kLanes, 0, 3);
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

  void score(const float* queries, int64_t size, Memory& memory) const {
    for (int64_t s = 0; s < size; s += kLanes) {
      if (rows() == 1) score_tile<1>(queries, memory, 0, s);
      if (rows() == 2) score_tile<2>(queries, memory, 0, s);
      for (int64_t r = 0; r + 4 <= rows(); r += 4) score_tile<4>(queries, memory, r, s);
    }
  }

  template <int kRows>
  void score_tile(const float* queries, Memory& memory, int64_t r, int64_t s) const {
    const int64_t steps = padded() / kLanes * 4, apart = rows() * kLanes;
    const float* keys = memory.keys + s * steps * kQuads;
    queries += r * kLanes;
    Vec acc[kRows][kQuads] = {};
    for (int64_t i = 0; i < steps; ++i, keys += kQuads * kLanes, queries += apart) {
      Vec key[kQuads];
#pragma GCC unroll 4
      for (int u = 0; u < kQuads; ++u) key[u] = load(keys + u * kLanes);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const Vec x = load(queries + m * kLanes);
#pragma GCC unroll 4
        for (int u = 0; u < kQuads; ++u) acc[m][u] += x * key[u];
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) store(memory.weights + (r + m) * kLongestBlock + s, sum_quads(acc[m]));
  }

  // Scores (times log2(e)) of a query to weights.
  void weigh(float* x, const Block& now, const float* k_scale, const float* v_scale, const int32_t* visible,
             float* highest, float* total, float* output) const {
    Vec top = splat(-INFINITY);
    alignas(64) float scale[kLanes];
    for (int64_t j = 0; j < now.size; j += kLanes) {
      Vec s = load(x + j);
      if (k_scale) s *= load_some(k_scale + j, now.size - j, scale);
      if (now.masked) s = load(visible + j) ? s : splat(-INFINITY);
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
    for (int64_t j = 0; j < now.size; j += kLanes) {
      Vec p = exp2(load(x + j) - shift);
      sum += p;
      if (v_scale) p *= load_some(v_scale + j, now.size - j, scale);
      store(x + j, p);
    }
    store(total, sum);
  }

  // A vector of which only `left` numbers may be there.
  static Vec load_some(const float* x, int64_t left, float* copy) {
    if (left >= kLanes) return load(x);
    std::fill_n(copy, kLanes, 0.0f);
    std::memcpy(copy, x, left * 4);
    return load(copy);
  }

  void mix(const K* v, int64_t size, const K* next, Memory& memory, float* output) const {
    int64_t row;
    v = whole(v, size, memory.copy, &row);
    for (int64_t r = 0; r < rows(); r += 4) {
      const float* weights = memory.weights + r * kLongestBlock;
      for (int64_t d = 0; d < padded();) {
        const int64_t cols = (padded() - d) / kLanes;
        const auto tile = [&](auto rows, auto cols) {
          constexpr int kRows = decltype(rows)::value, kCols = decltype(cols)::value;
          mix_tile<kRows, kCols>(size, v + d, row, r ? v + d : next + d, weights, output + r * padded() + d);
          d += kCols * kLanes;
        };
        const auto tile_rows = [&](auto cols) {
          if (rows() == 1) return tile(std::integral_constant<int, 1>(), cols);
          if (rows() == 2) return tile(std::integral_constant<int, 2>(), cols);
          tile(std::integral_constant<int, 4>(), cols);
        };
        if (cols >= kTileCols) {
          tile_rows(std::integral_constant<int, kTileCols>());
        } else if (cols >= 2) {
          tile_rows(std::integral_constant<int, 2>());
        } else {
          tile_rows(std::integral_constant<int, 1>());
        }
      }
    }
  }

  template <int kRows, int kCols>
  void mix_tile(int64_t size, const K* v, int64_t row, const K* next, const float* weights, float* output) const {
    const int64_t wide = padded(), pitch = shape.dim;
    Vec acc[kRows][kCols];
    for (int m = 0; m < kRows; ++m) {
      for (int c = 0; c < kCols; ++c) acc[m][c] = load(output + m * wide + c * kLanes);
    }
    for (int64_t j = 0; j < size; ++j, v += row, next += pitch) {
      Vec x[kCols];
#pragma GCC unroll 4
      for (int c = 0; c < kCols; ++c) {
        if (c * kLanes % kLine == 0) __builtin_prefetch(next + c * kLanes, 0, 3);
        x[c] = widened(v + c * kLanes);
      }
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
        for (int c = 0; c < kCols; ++c) acc[m][c] += weights[m * kLongestBlock + j] * x[c];
      }
    }
    for (int m = 0; m < kRows; ++m) {
      for (int c = 0; c < kCols; ++c) store(output + m * wide + c * kLanes, acc[m][c]);
    }
  }

  // Joins a row's pieces, in their order: the same bits for any timing of the threads.
  void finish(int64_t b) {
    for (int64_t h = 0; h < shape.kv_heads; ++h) {
      for (int64_t r = 0; r < shape.rows(); ++r) {
        const int64_t at = shape.at_row(b, h, r), index = h * rows() + r;
        float highest = kMasked, total = 0;
        float* to = out + at * shape.dim;
        std::fill_n(to, shape.dim, 0.0f);
        for (int64_t i = first[b]; i < first[b + 1]; ++i) highest = std::max(highest, result(i).highest[index]);
        for (int64_t i = first[b]; i < first[b + 1]; ++i) {
          const Result part = result(i);
          const float weight = std::exp2(part.highest[index] - highest);
          float sum = 0;
          for (int l = 0; l < kLanes; ++l) sum += part.total[index * kLanes + l];
          total += weight * sum;
          for (int64_t d = 0; d < shape.dim; ++d) to[d] += weight * part.output[index * padded() + d];
        }
        for (int64_t d = 0; total > 0 && d < shape.dim; ++d) to[d] /= total;
        lse[at] = total > 0 ? (highest + std::log2(total)) * kLn2 : kMasked;
      }
    }
  }
};

}  // namespace ringrl
