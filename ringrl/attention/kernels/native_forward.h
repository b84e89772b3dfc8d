// Forward: the online softmax (Milakov & Gimelshein, arXiv 1805.02867) over blocks of keys, for one block of rows.
//
// Scores are [keys, queries]: a vector is the scores of neighbouring queries with one key, so that statistics
// need no reduction within a vector, and no operand needs to be transposed but the queries, once a block.
#pragma once

#include "native_problem.h"

namespace ringrl {

// Queries of type Q; keys and values of type K.
template <class Q, class K = Q>
struct Forward {
  Shape shape;
  const Q* q;
  const K *k, *v;
  Tokens q_tokens, k_tokens;
  float *out, *lse;
  std::vector<Run> row_runs, key_runs;
  const int32_t* lengths = nullptr;                           // of the keys of each row of the batch; null: all
  const float *k_scale = nullptr, *v_scale = nullptr;         // see read_keys

  static constexpr int64_t kBlock = 120;    // keys a block: scores of a panel stay in the first-level cache
  static constexpr int64_t kMostPanels = 4;

  Forward(const Shape& s, const Q* q, const K* k, const K* v, Tokens q_tokens, Tokens k_tokens, float* out, float* lse,
          int64_t threads)
      : shape(s), q(q), k(k), v(v), q_tokens(q_tokens), k_tokens(k_tokens), out(out), lse(lse) {
    // Enough items that threads end together, as long as packing keys for each stays cheap.
    int64_t panels = kMostPanels;
    while (panels > 1 && s.batch * s.kv_heads * s.rows() < 8 * threads * panels * kPanel) panels /= 2;
    row_runs = cut(s.rows(), s.q_chunks, panels * kPanel, kPanel);
    key_runs = cut(s.keys, s.k_chunks, kBlock, kTileRows);
  }

  int64_t items() const { return shape.batch * shape.kv_heads * static_cast<int64_t>(row_runs.size()); }

  // Late rows first: where attention is causal they take longest.
  void run(int64_t item) const {
    const int64_t heads = shape.batch * shape.kv_heads;
    const Run& rows = row_runs[row_runs.size() - 1 - item / heads];
    attend(item % heads / shape.kv_heads, item % shape.kv_heads, rows);
  }

 private:
  struct Panel {
    PanelTokens tokens;
    alignas(64) float highest[kPanel], total[kPanel], shrink[kPanel];
    int64_t rows;
    int cols;           // vectors with a query in them
    float *q, *output;  // [padded_dim, kPanel], times scale and log2(e); [kPanel, padded_dim]
    bool seen;          // a key has been visible
  };
  struct Memory {
    Panel panels[kMostPanels];
    KeyTokens keys;
    float *k, *v, *scores;
  };

  void carve(Carver carver, Memory& memory, int64_t* used) const {
    const int64_t dim = shape.padded_dim();
    memory.k = carver.take((kBlock + kTileRows) * dim);
    memory.v = carver.take((kBlock + kTileRows) * dim);
    memory.scores = carver.take((kBlock + 2 * kTileRows) * kPanel);
    for (Panel& panel : memory.panels) {
      panel.q = carver.take(dim * kPanel);
      panel.output = carver.take(kPanel * dim);
    }
    *used = carver.used();
  }

  void attend(int64_t b, int64_t kv_head, const Run& rows) const {
    thread_local Scratch scratch;
    thread_local Memory memory;
    int64_t floats;
    carve(Carver(nullptr), memory, &floats);
    carve(Carver(scratch.reserve(floats)), memory, &floats);
    const int64_t panels = (rows.size + kPanel - 1) / kPanel;
    for (int64_t i = 0; i < panels; ++i) {
      start(memory.panels[i], b, kv_head, rows.begin + i * kPanel, std::min<int64_t>(rows.size - i * kPanel, kPanel));
    }
    const int64_t length = lengths ? lengths[b] : shape.keys;
    for (Run run : key_runs) {
      if (run.begin >= length) break;
      run.size = std::min(run.size, length - run.begin);
      memory.keys.read(k_tokens, b, run);
      bool read = false;
      for (int64_t i = 0; i < panels; ++i) {
        Panel& panel = memory.panels[i];
        if (!memory.keys.may_see(panel.tokens)) continue;
        const Sight sight = look(panel.tokens, memory.keys, 0, run.size);
        if (sight.begin == sight.end) continue;
        if (!read) {
          read_keys(shape, k, b, kv_head, run, memory.k, k_scale);
          read_keys(shape, v, b, kv_head, run, memory.v, v_scale);
          read = true;
        }
        accumulate(memory, panel, sight);
      }
    }
    for (int64_t i = 0; i < panels; ++i) finish(memory.panels[i], b, kv_head, rows.begin + i * kPanel);
  }

  void start(Panel& panel, int64_t b, int64_t kv_head, int64_t row, int64_t rows) const {
    panel.tokens.read(q_tokens, b, row, rows, shape.group());
    panel.rows = rows;
    panel.cols = static_cast<int>(round_up(rows, kPad) / kLanes);
    panel.seen = false;
    std::fill_n(panel.highest, kPanel, kMasked);
    std::fill_n(panel.total, kPanel, 0.0f);
    read_queries(shape, q, b, kv_head, row, rows, panel.output);
    transpose(panel.output, rows, shape.padded_dim(), shape.scale * kLog2e, panel.q);
  }

  void accumulate(Memory& memory, Panel& panel, const Sight& sight) const {
    alignas(64) float highest[kPanel];
    std::memcpy(highest, panel.highest, sizeof highest);
    if (!sight.masked) {
      score<false, false>(memory, panel, sight, highest);
    } else if (!memory.keys.segmented) {
      score<true, false>(memory, panel, sight, highest);
    } else {
      score<true, true>(memory, panel, sight, highest);
    }
    for (int c = 0; c < panel.cols; ++c) {
      const int lane = c * kLanes;
      const Vec shrink = exp2(load(panel.highest + lane) - load(highest + lane));
      store(panel.shrink + lane, shrink);
      store(panel.highest + lane, load(highest + lane));
    }
    int c = 0;
    for (; c + 4 <= panel.cols; c += 4) weigh<4>(memory.scores, sight.end - sight.begin, panel, c * kLanes);
    for (; c < panel.cols; ++c) weigh<1>(memory.scores, sight.end - sight.begin, panel, c * kLanes);
    if (panel.seen) {
      mix<false>(memory, panel, sight);
    } else {
      mix<true>(memory, panel, sight);
      panel.seen = true;
    }
  }

  // Scores (times log2(e)) and the highest of each query.
  template <bool kMask, bool kSegments>
  void score(Memory& memory, const Panel& panel, const Sight& sight, float* highest) const {
    const int64_t dim = shape.padded_dim();
    multiply<true>(sight.end - sight.begin, panel.cols, shape.dim, memory.k + sight.begin * dim, dim, panel.q, kPanel,
                   [&](int64_t m, int n, auto& acc) RINGRL_INLINED {
                     constexpr int kRows = sizeof acc / sizeof acc[0], kCols = sizeof acc[0] / sizeof(Vec);
#pragma GCC unroll 8
                     for (int c = 0; c < kCols; ++c) {
                       const int lane = (n + c) * kLanes;
                       Vec top = load(highest + lane);
#pragma GCC unroll 8
                       for (int r = 0; r < kRows; ++r) {
                         Vec x = acc[r][c];
                         if (kMask) {
                           x = hide<kSegments>(x, splat(-INFINITY), panel.tokens, lane, memory.keys,
                                               sight.begin + m + r);
                         }
                         store(memory.scores + (m + r) * kPanel + lane, x);
                         top = maximum(x, top);
                       }
                       store(highest + lane, top);
                     }
                   });
  }

  // Scores to weights, in the same memory, and their sums.
  template <int kCols>
  static void weigh(float* scores, int64_t keys, Panel& panel, int lane) {
    Vec total[kCols], highest[kCols];
    for (int c = 0; c < kCols; ++c) {
      total[c] = load(panel.total + lane + c * kLanes) * load(panel.shrink + lane + c * kLanes);
      highest[c] = load(panel.highest + lane + c * kLanes);
    }
    for (int64_t j = 0; j < keys; ++j) {
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c) {
        float* x = scores + j * kPanel + lane + c * kLanes;
        const Vec p = exp2(load(x) - highest[c]);
        total[c] += p;
        store(x, p);
      }
    }
    for (int c = 0; c < kCols; ++c) store(panel.total + lane + c * kLanes, total[c]);
  }

  template <bool kFirst>
  void mix(Memory& memory, Panel& panel, const Sight& sight) const {
    const int64_t dim = shape.padded_dim();
    float* const output = panel.output;  // a local copy: stores to floats might otherwise change it
    const float* const shrink = panel.shrink;
    multiply<false>(panel.rows, static_cast<int>(dim / kLanes), sight.end - sight.begin, memory.scores, kPanel,
                    memory.v + sight.begin * dim, dim, [&](int64_t m, int n, auto& acc) RINGRL_INLINED {
                      constexpr int kRows = sizeof acc / sizeof acc[0], kCols = sizeof acc[0] / sizeof(Vec);
#pragma GCC unroll 8
                      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
                        for (int c = 0; c < kCols; ++c) {
                          float* x = output + (m + r) * dim + (n + c) * kLanes;
                          store(x, kFirst ? acc[r][c] : load(x) * shrink[m + r] + acc[r][c]);
                        }
                      }
                    });
  }

  void finish(const Panel& panel, int64_t b, int64_t kv_head, int64_t row) const {
    for (int64_t i = 0; i < panel.rows; ++i) {
      const int64_t at = shape.at_row(b, kv_head, row + i);
      const bool seen = panel.seen && panel.total[i] > 0;
      const float factor = seen ? 1.0f / panel.total[i] : 0.0f;
      for (int64_t d = 0; d < shape.dim; ++d) {
        out[at * shape.dim + d] = seen ? panel.output[i * shape.padded_dim() + d] * factor : 0.0f;
      }
      lse[at] = seen ? (panel.highest[i] + std::log2(panel.total[i])) * kLn2 : kMasked;
    }
  }
};

}  // namespace ringrl
