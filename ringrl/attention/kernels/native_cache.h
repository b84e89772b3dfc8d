// Attention of the queries of a few new tokens to one layer of a KV cache, and putting new tokens into it.
//
// Memory sets the pace: a layer's filled slots are cut into pieces of about equal length, over all rows, and each thread
// reads its pieces block by block, once for all heads and queries, with the next block on its way. What the pieces of a
// row give is joined by their log-sum-exp (Flash-Decoding).
#pragma once

#include <atomic>
#include <memory>

#include "native_cache_block.h"

namespace ringrl {

// One layer of a cache, in place.
template <class K>
struct CacheLayer {
  const K *k, *v;                  // [batch, slots, kv_heads * dim]
  const float *k_scale, *v_scale;  // [batch, kv_heads, slots] of int8, else null
  Tokens tokens;                   // of the slots
  const int32_t* filled;           // [batch]
};

template <class K>
class CacheAttention {
 public:
  CacheAttention(const Shape& s, const float* q, Tokens q_tokens, const CacheLayer<K>& cache, float* out, float* lse,
                 int64_t threads)
      : shape(s), q(q), q_tokens(q_tokens), cache(cache), out(out), lse(lse) {
    const int64_t slot_bytes = 2 * stride() * sizeof(K);
    block = std::clamp<int64_t>(kBlockBytes / slot_bytes, kPad, CacheBlock<K>::kLongest) / kPad * kPad;
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

  struct Piece {
    int64_t row, begin, end;
  };
  struct Block {
    int64_t begin, size;
    bool masked;  // not every query sees all of it
  };
  struct Memory {
    float* queries;
    int32_t* visible[2];  // [tokens, block]: -1 where the query sees the slot, else 0
    CacheBlock<K> block;
    int64_t used;
  };
  struct Result {
    float *output, *highest, *total;  // [kv_heads, rows, padded], [kv_heads, rows], [kv_heads, rows, kLanes]
  };

  Shape shape;
  const float* q;
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
    memory.block = {shape.dim, stride(), rows(), block};
    memory.block.carve(carver);
    for (auto& visible : memory.visible) visible = reinterpret_cast<int32_t*>(carver.take(block * shape.queries));
    memory.used = carver.used();
  }

  // The first block from `begin` on of which a query sees something; its size is 0 where there is none.
  Block find(int64_t b, int64_t begin, int64_t end, int32_t* visible) const {
    for (; begin < end; begin += block) {
      const int64_t size = std::min(block, end - begin);
      alignas(64) int32_t positions[CacheBlock<K>::kLongest], segments[CacheBlock<K>::kLongest];
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

  // [kv_heads][dim / kLanes][4][rows]: a vector has, in each quad of lanes, one number of a query four times.
  void read_all_queries(int64_t b, float* to) const {
    const int64_t chunks = padded() / kLanes;
    const float factor = shape.scale * kLog2e;
    std::fill_n(to, shape.kv_heads * rows() * padded() * 4, 0.0f);
    for (int64_t h = 0; h < shape.kv_heads; ++h) {
      for (int64_t r = 0; r < shape.rows(); ++r) {
        const float* from = q + shape.at_row(b, h, r) * shape.dim;
        for (int64_t d = 0; d < shape.dim; ++d) {
          const int64_t c = d / kLanes, quad = d % kLanes / 4, j = d % 4;
          std::fill_n(to + (((h * chunks + c) * 4 + j) * rows() + r) * kLanes + quad * 4, 4, from[d] * factor);
        }
      }
    }
  }

  void attend(int64_t b, const Block& now, const Block& next, const int32_t* visible, const Memory& memory,
              const Result& mine) const {
    const CacheBlock<K>& tiles = memory.block;
    const int64_t from = (b * shape.keys + now.begin) * stride(), heads = shape.kv_heads;
    const int64_t ahead = (b * shape.keys + next.begin) * stride();
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t head = from + h * shape.dim, fetched = ahead + h * now.size * shape.dim, at = h * rows();
      tiles.read_keys(cache.k + head, now.size, cache.k + fetched);
      tiles.score(memory.queries + at * padded() * 4, now.size);
      const int64_t scales = (b * heads + h) * shape.keys + now.begin;
      for (int64_t r = 0; r < shape.rows(); ++r) {
        tiles.weigh(r, now.size, now.masked ? visible + r / shape.group() * block : nullptr,
                    cache.k_scale ? cache.k_scale + scales : nullptr, cache.v_scale ? cache.v_scale + scales : nullptr,
                    mine.highest + at + r, mine.total + (at + r) * kLanes, mine.output + (at + r) * padded());
      }
      tiles.mix(cache.v + head, now.size, cache.v + fetched, mine.output + at * padded());
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
