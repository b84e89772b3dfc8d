// What forward and backward share: the arrays of a call, how rows and blocks are cut from them, and who sees whom.
//
// The queries that share a key head are one list of rows, token after token and within a token head after head:
// so a group of heads reads each block of keys once. A panel is kPanel such rows, side by side in the lanes of vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <vector>

#include "native_tiles.h"

namespace ringrl {

struct Bfloat16 {
  uint16_t bits;
};
inline float widen(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

struct Shape {
  int64_t batch, queries, keys, heads, kv_heads, dim;
  int64_t q_chunks, k_chunks;  // equal runs of tokens that no block spans
  float scale;

  int64_t group() const { return heads / kv_heads; }
  int64_t padded_dim() const { return round_up(dim, kPad); }
  int64_t rows() const { return queries * group(); }
  int64_t row_chunk() const { return rows() / q_chunks; }
  int64_t key_chunk() const { return keys / k_chunks; }
  // The index of a row (of a batch row and key head) in a [batch, queries, heads] array.
  int64_t at_row(int64_t b, int64_t kv_head, int64_t row) const {
    return (b * queries + row / group()) * heads + kv_head * group() + row % group();
  }
  int64_t at_key(int64_t b, int64_t kv_head, int64_t key) const { return (b * keys + key) * kv_heads + kv_head; }
};

struct Tokens {
  const int32_t* positions;  // [1 or batch, length]
  const int32_t* segments;   // [batch, length], or null
  int64_t batch_stride;      // of positions: 0 or length
  int64_t length;

  int32_t position(int64_t b, int64_t i) const { return positions[b * batch_stride + i]; }
  int32_t segment(int64_t b, int64_t i) const { return segments ? segments[b * length + i] : 1; }
};

// Floats aligned to a cache line, kept from one use to the next and grown when they are too few.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  float* reserve(int64_t floats) {
    if (floats > size_) {
      std::free(data_);
      size_ = 0;
      data_ = static_cast<float*>(std::aligned_alloc(64, round_up(floats * 4, 64)));
      if (!data_) throw std::bad_alloc();
      size_ = floats;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

// Hands out pieces of a Scratch, each a whole number of cache lines. Asked twice: first to count, then to take.
class Carver {
 public:
  explicit Carver(float* base) : base_(base) {}
  float* take(int64_t floats) {
    float* piece = base_ ? base_ + used_ : nullptr;
    used_ += round_up(floats, kPad);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  float* base_;
  int64_t used_ = 0;
};

// Even runs of at most `longest`, multiples of `unit` but for the last of a chunk; none spans two chunks.
struct Run {
  int64_t begin, size;
};
inline std::vector<Run> cut(int64_t length, int64_t chunks, int64_t longest, int64_t unit) {
  std::vector<Run> runs;
  if (length == 0) return runs;
  const int64_t chunk = length / chunks, number = (chunk + longest - 1) / longest;
  const int64_t size = round_up((chunk + number - 1) / number, unit);
  for (int64_t start = 0; start < length; start += chunk) {
    for (int64_t i = 0; i < chunk; i += size) runs.push_back({start + i, std::min(size, chunk - i)});
  }
  return runs;
}

struct Range {
  int32_t low, high;
};
inline Range range_of(const int32_t* x, int64_t n) {
  Range range{INT32_MAX, INT32_MIN};
  for (int64_t i = 0; i < n; ++i) {
    range.low = std::min(range.low, x[i]);
    range.high = std::max(range.high, x[i]);
  }
  return range;
}
// Of the ids that are not padding. Empty (low > high) where all is padding.
inline Range segment_range(const int32_t* x, int64_t n) {
  Range range{INT32_MAX, INT32_MIN};
  for (int64_t i = 0; i < n; ++i) {
    range.low = std::min(range.low, x[i] ? x[i] : INT32_MAX);
    range.high = std::max(range.high, x[i] ? x[i] : INT32_MIN);
  }
  return range;
}

// A panel's tokens, lane by lane. Lanes without a query, and queries that are padding, have a position before every key.
struct PanelTokens {
  alignas(64) int32_t positions[kPanel];
  alignas(64) int32_t segments[kPanel];
  Range position_range, segment_range;
  bool uniform;  // one segment, and no padding: visible or not is decided by positions alone

  void read(const Tokens& tokens, int64_t b, int64_t row, int64_t rows, int64_t group) {
    int64_t token = row / group, head = row % group;
    bool padding = false;
    position_range = segment_range = {INT32_MAX, INT32_MIN};
    for (int64_t i = 0; i < kPanel; ++i) {
      if (i >= rows) {
        positions[i] = kSeesNothing;
        segments[i] = 0;
        continue;
      }
      segments[i] = tokens.segment(b, token);
      positions[i] = segments[i] ? tokens.position(b, token) : kSeesNothing;
      position_range.low = std::min(position_range.low, positions[i]);
      position_range.high = std::max(position_range.high, positions[i]);
      padding |= segments[i] == 0;
      if (segments[i]) {
        segment_range.low = std::min(segment_range.low, segments[i]);
        segment_range.high = std::max(segment_range.high, segments[i]);
      }
      if (++head == group) ++token, head = 0;
    }
    uniform = !padding && segment_range.low == segment_range.high;
  }
};

// A block's keys. What pads the block to whole tiles is visible to no query.
struct KeyTokens {
  static constexpr int64_t kMost = 1024;
  alignas(64) int32_t positions[kMost + kPad];
  alignas(64) int32_t segments[kMost + kPad];
  Range position_range, ids;
  int64_t size;
  bool segmented;

  void read(const Tokens& tokens, int64_t b, const Run& run) {
    size = run.size;
    segmented = tokens.segments != nullptr;
    std::memcpy(positions, tokens.positions + b * tokens.batch_stride + run.begin, size * 4);
    std::fill(positions + size, positions + size + kPad, kNeverSeen);
    position_range = range_of(positions, size);
    ids = {1, 1};
    if (!segmented) return;
    std::memcpy(segments, tokens.segments + b * tokens.length + run.begin, size * 4);
    std::fill(segments + size, segments + size + kPad, 0);
    ids = segment_range(segments, size);
  }

  bool may_see(const PanelTokens& panel) const {
    return panel.position_range.high >= position_range.low && panel.segment_range.low <= ids.high &&
           ids.low <= panel.segment_range.high;
  }
};

// The keys [begin, end) of part of a block that a panel may see; `masked` where not every pair is visible.
struct Sight {
  int64_t begin, end;
  bool masked;
};
inline Sight look(const PanelTokens& panel, const KeyTokens& keys, int64_t begin, int64_t size) {
  const auto may_see = [&](int64_t j) {
    return keys.positions[j] <= panel.position_range.high &&
           (!keys.segmented ||
            (keys.segments[j] >= panel.segment_range.low && keys.segments[j] <= panel.segment_range.high));
  };
  int64_t end = begin + size;
  while (end > begin && !may_see(end - 1)) --end;
  while (begin < end && !may_see(begin)) ++begin;
  // Tiles are whole, so those keys must be visible too with which the last one is filled up.
  const int64_t tiled = begin + round_up(end - begin, kTileRows);
  bool masked = !panel.uniform || tiled > keys.size;
  if (!masked) masked = range_of(keys.positions + begin, tiled - begin).high > panel.position_range.low;
  if (!masked && keys.segmented) {
    const Range ids = range_of(keys.segments + begin, tiled - begin);
    masked = ids.low != panel.segment_range.low || ids.high != panel.segment_range.low;
  }
  return {begin, end, masked};
}

// `value` where query and key see each other, else `hidden`.
template <bool kSegments>
RINGRL_INLINE Vec hide(Vec value, Vec hidden, const PanelTokens& panel, int lane, const KeyTokens& keys, int64_t j) {
  IntVec visible = load(panel.positions + lane) >= splat(keys.positions[j]);
  if (kSegments) visible &= load(panel.segments + lane) == splat(keys.segments[j]);
  return visible ? value : hidden;
}

// Rows from a user's array to float32 [rows, padded_dim]; columns from dim on, and rows that pad them, are 0.
inline void read_row(const float* from, int64_t dim, float* to) { std::memcpy(to, from, dim * sizeof(float)); }
inline void read_row(const Bfloat16* from, int64_t dim, float* to) {
  for (int64_t d = 0; d < dim; ++d) to[d] = widen(from[d]);
}
inline void read_row(const int8_t* from, int64_t dim, float* to) {
  for (int64_t d = 0; d < dim; ++d) to[d] = from[d];
}
template <class T>
RINGRL_INLINE void read_row(const T* from, int64_t dim, int64_t padded, float* to) {
  read_row(from, dim, to);
  for (int64_t d = dim; d < padded; ++d) to[d] = 0;
}
template <class T>
void read_queries(const Shape& s, const T* from, int64_t b, int64_t kv_head, int64_t row, int64_t rows, float* to) {
  const int64_t padded = s.padded_dim();
  for (int64_t i = 0; i < rows; ++i) {
    read_row(from + s.at_row(b, kv_head, row + i) * s.dim, s.dim, padded, to + i * padded);
  }
  std::fill(to + rows * padded, to + round_up(rows, kPad) * padded, 0.0f);
}
// `scales`: null, or of each key [batch, kv_heads, keys].
template <class T>
void read_keys(const Shape& s, const T* from, int64_t b, int64_t kv_head, const Run& run, float* to,
               const float* scales = nullptr) {
  const int64_t padded = s.padded_dim();
  for (int64_t i = 0; i < run.size; ++i) {
    read_row(from + s.at_key(b, kv_head, run.begin + i) * s.dim, s.dim, padded, to + i * padded);
    if (!scales) continue;
    const float scale = scales[(b * s.kv_heads + kv_head) * s.keys + run.begin + i];
    for (int64_t d = 0; d < s.dim; ++d) to[i * padded + d] *= scale;
  }
  std::fill(to + run.size * padded, to + (run.size + kTileRows) * padded, 0.0f);
}

// [rows, padded_dim] to [padded_dim, kPanel], times `scale`, for `rows` rounded up to kPad.
inline void transpose(const float* from, int64_t rows, int64_t padded, float scale, float* to) {
  for (int64_t i = 0; i < round_up(rows, kPad); i += 4) {
    for (int64_t d = 0; d < padded; d += 4) {
      const float* x = from + i * padded + d;
      const Quad a = load_quad(x), b = load_quad(x + padded), c = load_quad(x + 2 * padded);
      const Quad e = load_quad(x + 3 * padded);
      const Quad ac_low = interleave_low(a, c), ac_high = interleave_high(a, c);
      const Quad be_low = interleave_low(b, e), be_high = interleave_high(b, e);
      float* y = to + d * kPanel + i;
      store_quad(y, interleave_low(ac_low, be_low) * scale);
      store_quad(y + kPanel, interleave_high(ac_low, be_low) * scale);
      store_quad(y + 2 * kPanel, interleave_low(ac_high, be_high) * scale);
      store_quad(y + 3 * kPanel, interleave_high(ac_high, be_high) * scale);
    }
  }
}

}  // namespace ringrl
