// Backward: weights recomputed from the log-sum-exp (FlashAttention, arXiv 2205.14135, algorithm 4), with five matrix
// products a pair of blocks. An item of work is a batch row, a key head and a part of the keys, whose dk and dv stay in
// the cache while all rows pass by. Weights are [keys, queries], so every product reads its operands as they are.
#pragma once

#include "native_problem.h"

namespace ringrl {

template <class T>
struct Backward {
  Shape shape;
  const T *q, *d_out, *k, *v;
  const float *lse, *delta;
  Tokens q_tokens, k_tokens;
  float *dq, *dk, *dv;
  int64_t parts = 1;                // of the keys of a head; each has its own share of dq
  float* shares = nullptr;          // [parts, batch, queries, heads, dim], where there are several parts
  std::vector<Run> panel_runs, key_runs;

  static constexpr int64_t kBlock = 120;
  static constexpr int64_t kMostShared = int64_t{1} << 27;  // half a gibibyte

  Backward(const Shape& s, const T* q, const T* d_out, const float* lse, const float* delta, const T* k, const T* v,
           Tokens q_tokens, Tokens k_tokens, float* dq, float* dk, float* dv, int64_t threads)
      : shape(s), q(q), d_out(d_out), k(k), v(v), lse(lse), delta(delta), q_tokens(q_tokens), k_tokens(k_tokens),
        dq(dq), dk(dk), dv(dv) {
    panel_runs = cut(s.rows(), s.q_chunks, kPanel, kPad);
    // Keys, values and their gradients take half a megabyte: half of the second-level cache.
    const int64_t longest = std::clamp<int64_t>((1 << 15) / s.padded_dim() / kBlock, 1, 8) * kBlock;
    key_runs = cut(s.keys, s.k_chunks, longest, kTileRows);
    // Shares of dq are memory that XLA does not know of: at most kMostShared floats of it.
    const int64_t most = std::max<int64_t>(kMostShared / std::max<int64_t>(share_size(), 1), 1);
    parts = choose_parts(s.batch * s.kv_heads, std::min(most, static_cast<int64_t>(key_runs.size())), threads);
  }

  int64_t items() const { return shape.batch * shape.kv_heads * parts; }
  int64_t share_size() const { return shape.batch * shape.queries * shape.heads * shape.dim; }

  void run(int64_t item) const {
    const int64_t part = item / (shape.batch * shape.kv_heads), head = item % (shape.batch * shape.kv_heads);
    const int64_t b = head / shape.kv_heads, kv_head = head % shape.kv_heads;
    float* share = parts == 1 ? dq : shares + part * share_size();
    for (int64_t row = 0; row < shape.rows(); ++row) {
      std::fill_n(share + shape.at_row(b, kv_head, row) * shape.dim, shape.dim, 0.0f);
    }
    const int64_t runs = static_cast<int64_t>(key_runs.size());
    for (int64_t i = 0; i < runs; ++i) {
      // There and back, so that causal work, which falls from run to run, comes out even.
      const int64_t turn = i % (2 * parts);
      if (std::min(turn, 2 * parts - 1 - turn) == part) differentiate(b, kv_head, key_runs[i], share);
    }
  }

  // dq from its shares, in their order. Items of kPiece numbers.
  static constexpr int64_t kPiece = 1 << 16;
  int64_t sum_items() const { return parts == 1 ? 0 : (share_size() + kPiece - 1) / kPiece; }
  void sum(int64_t item) const {
    const int64_t begin = item * kPiece, end = std::min(begin + kPiece, share_size());
    std::copy(shares + begin, shares + end, dq + begin);
    for (int64_t part = 1; part < parts; ++part) {
      const float* share = shares + part * share_size();
      for (int64_t i = begin; i < end; ++i) dq[i] += share[i];
    }
  }

 private:
  struct Memory {
    PanelTokens panel;
    KeyTokens keys;
    alignas(64) float lse[kPanel], delta[kPanel];
    float *k, *v, *dk, *dv;           // [keys, padded_dim]
    float *q, *d_out, *dq;            // [kPanel, padded_dim]
    float *q_lanes, *d_out_lanes;     // [padded_dim, kPanel], the first times scale and log2(e)
    float *weights, *d_scores;        // [keys, kPanel]
    int64_t rows;
    int cols;
  };

  // The fewest parts that keep `threads` busy for at least nine tenths of the time, or the best up to `most`.
  static int64_t choose_parts(int64_t heads, int64_t most, int64_t threads) {
    int64_t best = 1;
    double best_use = 0;
    for (int64_t parts = 1; parts <= std::min(most, 2 * threads); ++parts) {
      const double rounds = static_cast<double>((heads * parts + threads - 1) / threads);
      const double use = static_cast<double>(heads * parts) / (rounds * static_cast<double>(threads));
      if (use > best_use + 1e-9) best = parts, best_use = use;
      if (best_use >= 0.9) break;
    }
    return best;
  }

  void carve(Carver carver, Memory& m, int64_t keys, int64_t* used) const {
    const int64_t dim = shape.padded_dim();
    for (float** x : {&m.k, &m.v, &m.dk, &m.dv}) *x = carver.take((keys + kTileRows) * dim);
    for (float** x : {&m.q, &m.d_out, &m.dq, &m.q_lanes, &m.d_out_lanes}) *x = carver.take(kPanel * dim);
    for (float** x : {&m.weights, &m.d_scores}) *x = carver.take((kBlock + 2 * kTileRows) * kPanel);
    *used = carver.used();
  }

  void differentiate(int64_t b, int64_t kv_head, const Run& run, float* share) const {
    thread_local Scratch scratch;
    thread_local Memory m;
    int64_t floats;
    carve(Carver(nullptr), m, run.size, &floats);
    carve(Carver(scratch.reserve(floats)), m, run.size, &floats);
    const int64_t dim = shape.padded_dim();
    m.keys.read(k_tokens, b, run);
    std::fill_n(m.dk, (run.size + kTileRows) * dim, 0.0f);
    std::fill_n(m.dv, (run.size + kTileRows) * dim, 0.0f);
    bool read = false;
    for (const Run& rows : panel_runs) {
      m.panel.read(q_tokens, b, rows.begin, rows.size, shape.group());
      if (!m.keys.may_see(m.panel)) continue;
      const Sight whole = look(m.panel, m.keys, 0, run.size);
      if (whole.begin == whole.end) continue;
      if (!read) {
        read_keys(shape, k, b, kv_head, run, m.k);
        read_keys(shape, v, b, kv_head, run, m.v);
        read = true;
      }
      read_panel(m, b, kv_head, rows);
      for (int64_t begin = whole.begin; begin < whole.end; begin += kBlock) {
        const Sight sight = look(m.panel, m.keys, begin, std::min(kBlock, whole.end - begin));
        if (sight.begin != sight.end) pass(m, sight);
      }
      for (int64_t i = 0; i < rows.size; ++i) {
        float* to = share + shape.at_row(b, kv_head, rows.begin + i) * shape.dim;
        for (int64_t d = 0; d < shape.dim; ++d) to[d] += shape.scale * m.dq[i * dim + d];
      }
    }
    for (int64_t j = 0; j < run.size; ++j) {
      const int64_t at = shape.at_key(b, kv_head, run.begin + j) * shape.dim;
      for (int64_t d = 0; d < shape.dim; ++d) {
        dk[at + d] = shape.scale * m.dk[j * dim + d];
        dv[at + d] = m.dv[j * dim + d];
      }
    }
  }

  void read_panel(Memory& m, int64_t b, int64_t kv_head, const Run& rows) const {
    const int64_t dim = shape.padded_dim();
    m.rows = rows.size;
    m.cols = static_cast<int>(round_up(rows.size, kPad) / kLanes);
    read_queries(shape, q, b, kv_head, rows.begin, rows.size, m.q);
    read_queries(shape, d_out, b, kv_head, rows.begin, rows.size, m.d_out);
    transpose(m.q, rows.size, dim, shape.scale * kLog2e, m.q_lanes);
    transpose(m.d_out, rows.size, dim, 1.0f, m.d_out_lanes);
    std::fill_n(m.dq, kPanel * dim, 0.0f);
    for (int64_t i = 0; i < kPanel; ++i) {
      const int64_t at = shape.at_row(b, kv_head, rows.begin + std::min(i, rows.size - 1));
      // Where nothing is seen, anywhere, weights must come out 0: exp2(score - 1e30).
      m.lse[i] = i < rows.size && lse[at] > 0.5f * kMasked ? lse[at] * kLog2e : -kMasked;
      m.delta[i] = i < rows.size ? delta[at] : 0.0f;
    }
  }

  // All that one panel and up to kBlock keys give each other.
  void pass(Memory& m, const Sight& sight) const {
    if (!sight.masked) {
      weigh<false, false>(m, sight);
    } else if (!m.keys.segmented) {
      weigh<true, false>(m, sight);
    } else {
      weigh<true, true>(m, sight);
    }
    const int64_t dim = shape.padded_dim(), keys = sight.end - sight.begin;
    const int dim_cols = static_cast<int>(dim / kLanes);
    multiply<true>(keys, m.cols, shape.dim, m.v + sight.begin * dim, dim, m.d_out_lanes, kPanel,
                   [&](int64_t j, int n, auto& acc) RINGRL_INLINED { differentiate_scores(m, j, n, acc); });
    const auto add_to = [dim](float* sums) {
      return [=](int64_t r0, int n, auto& acc) RINGRL_INLINED { add(acc, sums + r0 * dim + n * kLanes, dim); };
    };
    multiply<true>(keys, dim_cols, m.rows, m.weights, kPanel, m.d_out, dim, add_to(m.dv + sight.begin * dim));
    multiply<true>(keys, dim_cols, m.rows, m.d_scores, kPanel, m.q, dim, add_to(m.dk + sight.begin * dim));
    multiply<false>(m.rows, dim_cols, keys, m.d_scores, kPanel, m.k + sight.begin * dim, dim, add_to(m.dq));
  }

  template <bool kMask, bool kSegments>
  void weigh(Memory& m, const Sight& sight) const {
    const int64_t dim = shape.padded_dim();
    multiply<true>(sight.end - sight.begin, m.cols, shape.dim, m.k + sight.begin * dim, dim, m.q_lanes, kPanel,
                   [&](int64_t j, int n, auto& acc) RINGRL_INLINED {
                     constexpr int kRows = sizeof acc / sizeof acc[0], kCols = sizeof acc[0] / sizeof(Vec);
#pragma GCC unroll 8
                     for (int c = 0; c < kCols; ++c) {
                       const int lane = (n + c) * kLanes;
                       const Vec row_lse = load(m.lse + lane);
#pragma GCC unroll 8
                       for (int r = 0; r < kRows; ++r) {
                         Vec p = exp2(acc[r][c] - row_lse);
                         if (kMask) p = hide<kSegments>(p, Vec{}, m.panel, lane, m.keys, sight.begin + j + r);
                         store(m.weights + (j + r) * kPanel + lane, p);
                       }
                     }
                   });
  }

  template <class Acc>
  RINGRL_INLINE static void differentiate_scores(Memory& m, int64_t j, int n, Acc& acc) {
    constexpr int kRows = sizeof acc / sizeof acc[0], kCols = sizeof acc[0] / sizeof(Vec);
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      const int lane = (n + c) * kLanes;
      const Vec row_delta = load(m.delta + lane);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const int64_t at = (j + r) * kPanel + lane;
        store(m.d_scores + at, load(m.weights + at) * (acc[r][c] - row_delta));
      }
    }
  }

  template <class Acc>
  RINGRL_INLINE static void add(const Acc& acc, float* sums, int64_t stride) {
    constexpr int kRows = sizeof acc / sizeof acc[0], kCols = sizeof acc[0] / sizeof(Vec);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c) {
        float* x = sums + r * stride + c * kLanes;
        store(x, load(x) + acc[r][c]);
      }
    }
  }
};

}  // namespace ringrl
