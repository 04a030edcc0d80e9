// Forward pass of one attention task: online softmax over blocks of keys.
#pragma once

#include "attention.h"

namespace blip_fast {

struct ForwardBuffers {
  float *maximum, *sum;  // (width): of each query's scores so far
  float* out;            // (count, ld)
  float *key, *value;    // (kKeyBlock, ld)
  float* scores;         // (kKeyBlock, kPanel)
  float* factor;         // (kPanel)

  ForwardBuffers(Scratch& scratch, int64_t count, int64_t width, int64_t ld)
      : maximum(scratch.take(width)),
        sum(scratch.take(width)),
        out(scratch.take(count * ld)),
        key(scratch.take(kKeyBlock * ld)),
        value(scratch.take(kKeyBlock * ld)),
        scores(scratch.take(kKeyBlock * kPanel)),
        factor(scratch.take(kPanel)) {
    std::fill(maximum, maximum + width, kNoScore);
    std::fill(sum, sum + width, 0.0f);
    std::fill(out, out + count * ld, 0.0f);
  }
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

template <class Isa, class T>
BLIP_FAST_INLINE void attend_block(const AttentionTask<T>& task, const AttentionSettings& settings,
                                   const Panels& panels, int64_t begin, const ForwardBuffers& buffers) {
  const int64_t dim = settings.dim, ld = round_up(dim, Isa::kWidth), keys = std::min(kKeyBlock, task.length - begin);
  const Block<const float> key = read_block<Isa>(task.key, begin, keys, dim, buffers.key);
  const Block<const float> value = read_block<Isa>(task.value, begin, keys, dim, buffers.value);
  for (int64_t first = 0; first < task.count; first += kPanel) {
    const int64_t lanes = panels.lanes(first), rows = panels.rows(first);
    const float* const query = panels.panel(panels.query, first);
    float* const out = buffers.out + first * ld;
    Product scores{{key.data, key.ld, 1}, query, lanes, buffers.scores, lanes, keys, lanes, dim, false};
    if (first == 0) {
      scores.prefetch[0] = next_block(task, task.key, begin, dim);
      scores.prefetch[1] = next_block(task, task.value, begin, dim);
    }
    multiply<Isa>(scores);
    if (settings.causal) mask_future(buffers.scores, lanes, first, begin, keys);
    softmax_block<Isa>(buffers.scores, lanes, keys, buffers.maximum + first, buffers.sum + first, buffers.factor);
    if (settings.dropout.active()) drop_block<Isa>(settings.dropout, panels, first, begin, keys, buffers.scores);
    for (int64_t m = 0; m < rows && begin > 0; ++m) {
      for (int64_t d = 0; d < ld; ++d) out[m * ld + d] *= buffers.factor[m];
    }
    multiply<Isa>({{buffers.scores, 1, lanes}, value.data, value.ld, out, ld, rows, ld, keys, begin > 0});
  }
}

struct AttentionForward {
  template <class Isa, class T>
  static BLIP_FAST_INLINE void run(const ForwardTask<T>& task, const AttentionSettings& settings,
                                   Scratch* const& scratch) {
    const int64_t dim = settings.dim, ld = round_up(dim, Isa::kWidth), width = round_up(task.count, Isa::kWidth);
    scratch->reset(width * (dim + ld + 4) + kPanel + kKeyBlock * (2 * ld + kPanel));
    const Panels panels = make_panels<Isa>(task, settings, *scratch);
    const ForwardBuffers buffers(*scratch, task.count, width, ld);
    for (int64_t begin = 0; begin < task.length; begin += kKeyBlock) {
      attend_block<Isa>(task, settings, panels, begin, buffers);
    }
    for (int64_t m = 0; m < task.count; ++m) {
      const int32_t row = task.rows[m];
      const bool empty = task.length == 0;
      store_row(task.out[row], buffers.out + m * ld, dim, empty ? 0.0f : settings.dropout.scale / buffers.sum[m]);
      *task.statistics[row] = {softmax_shift(buffers.maximum[m]), buffers.sum[m]};
    }
  }
};

}  // namespace blip_fast
