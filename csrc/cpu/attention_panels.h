// Forward pass of attention by panels of queries: online softmax over blocks of keys, down the lanes of the queries.
#pragma once

#include "attention.h"

namespace blip_fast {

struct ForwardBuffers {
  float *key, *value;  // (kKeyBlock, ld)
  float* scores;       // (kKeyBlock, kPanel)
  float* factor;       // (kPanel)
};

// Scores of one block to probabilities relative to the maximum so far; `factor` is for what was summed before.
template <class Isa>
BLIP_FAST_INLINE void softmax_block(float* scores, int64_t lanes, int64_t keys, float* maximum, float* sum,
                                    float* factor) {
  using Vector = typename Isa::Vector;
  using Bits = typename Isa::Bits;
  for (int64_t m = 0; m < lanes; m += Isa::kWidth) {
    float* const column = scores + m;
    const Vector before = load<Vector>(maximum + m);
    Vector top = before;
    for (int64_t l = 0; l < keys; ++l) {
      const Vector score = load<Vector>(column + l * lanes);
      top = score > top ? score : top;
    }
    const Vector shift = softmax_shift(top);
    const Vector rescale = softmax_power<Vector, Bits>(before, shift);
    Vector total = load<Vector>(sum + m) * rescale;
    for (int64_t l = 0; l < keys; ++l) {
      const Vector p = softmax_power<Vector, Bits>(load<Vector>(column + l * lanes), shift);
      store(column + l * lanes, p);
      total += p;
    }
    store(maximum + m, top);
    store(sum + m, total);
    store(factor + m, rescale);
  }
}

template <class Isa>
BLIP_FAST_INLINE void drop_block(const AttentionDropout& dropout, const Panels& panels, int64_t first, int64_t begin,
                                 int64_t keys, float* p) {
  using Vector = typename Isa::Vector;
  using Bits = typename Isa::Bits;
  const int64_t lanes = panels.lanes(first);
  uint32_t words[4][Isa::kWidth];
  for (int64_t l = 0; l < keys; l = next_slot(l)) {
    for (int64_t m = 0; m < lanes; m += Isa::kWidth) {
      draw_words<Isa>(dropout, panels, first + m, begin + l, words);
      for (int64_t w = 0; w < 4 && l + 16 * w < keys; ++w) {
        float* const at = p + (l + 16 * w) * lanes + m;
        store(at, keeps<Bits>(dropout, words[w]) ? load<Vector>(at) : Vector{});
      }
    }
  }
}

// out (rows, ld) times the factors of its rows, plus p (rows, keys) times values; no factors: nothing was summed
// before.
template <class Isa>
BLIP_FAST_INLINE void add_values(const Strided& p, const Block<const float>& value, int64_t rows, int64_t keys,
                                 int64_t ld, const float* factors, float* out) {
  for (int64_t m = 0; m < rows && factors != nullptr; ++m) {
    for (int64_t d = 0; d < ld; ++d) out[m * ld + d] *= factors[m];
  }
  multiply<Isa>({p, value.data, value.ld, out, ld, rows, ld, keys, factors != nullptr});
}

// What a task has gathered so far, with scores in panels of queries by lanes.
struct PanelForward {
  // Panels of many queries are as wide as a tile of registers: a block's scores stay in the first-level cache.
  template <class Isa>
  static constexpr int64_t kTile = Isa::kColumns * Isa::kWidth;

  Panels panels;
  float *maximum, *sum;  // (width): of each query's scores
  float* out;            // (count, ld)

  template <class Isa, class T>
  static BLIP_FAST_INLINE PanelForward start(const ForwardTask<T>& task, const AttentionSettings& settings,
                                             Scratch& scratch) {
    const int64_t ld = round_up(settings.dim, Isa::kWidth);
    const int64_t wide = task.count > kPanel ? kTile<Isa> : kPanel;
    const Panels panels = make_panels<Isa>(task, settings, wide, scratch);
    PanelForward state{panels, scratch.take(panels.width), scratch.take(panels.width), scratch.take(task.count * ld)};
    std::fill(state.maximum, state.maximum + panels.width, kNoScore);
    std::fill(state.sum, state.sum + panels.width, 0.0f);
    std::fill(state.out, state.out + task.count * ld, 0.0f);
    return state;
  }

  // Keys [begin, begin + keys); meanwhile `next` is fetched.
  template <class Isa, class T>
  BLIP_FAST_INLINE void attend(const ForwardTask<T>& task, const AttentionSettings& settings, int64_t begin,
                               int64_t keys, const ForwardBuffers& buffers, const Prefetch (&next)[2]) {
    const int64_t dim = settings.dim, ld = round_up(dim, Isa::kWidth);
    const bool copied = panels.wide < kPanel;
    const Block<const float> key = read_block<Isa>(task.key, begin, keys, dim, buffers.key, copied);
    const Block<const float> value = read_block<Isa>(task.value, begin, keys, dim, buffers.value, copied);
    for (int64_t first = 0; first < task.count; first += panels.wide) {
      const int64_t lanes = panels.lanes(first), rows = panels.rows(first);
      const float* const query = panels.panel(panels.query, first);
      Product scores{{key.data, key.ld, 1}, query, lanes, buffers.scores, lanes, keys, lanes, dim, false};
      if (first == 0) {
        scores.prefetch[0] = next[0];
        scores.prefetch[1] = next[1];
      }
      multiply<Isa>(scores);
      if (settings.causal) mask_future(buffers.scores, lanes, first, begin, keys);
      softmax_block<Isa>(buffers.scores, lanes, keys, maximum + first, sum + first, buffers.factor);
      if (settings.dropout.active()) drop_block<Isa>(settings.dropout, panels, first, begin, keys, buffers.scores);
      const Strided p{buffers.scores, 1, lanes};
      add_values<Isa>(p, value, rows, keys, ld, begin > 0 ? buffers.factor : nullptr, out + first * ld);
    }
  }
};

}  // namespace blip_fast
