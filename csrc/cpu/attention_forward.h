// Forward pass of one attention task: online softmax over blocks of keys.
#pragma once

#include "attention.h"

namespace blip_fast {

// What a task has gathered so far.
struct ForwardState {
  Panels panels;
  float *maximum, *sum;  // (width): of each query's scores
  float* out;            // (count, ld)
};

template <class Isa, class T>
BLIP_FAST_INLINE ForwardState make_state(const ForwardTask<T>& task, const AttentionSettings& settings,
                                         Scratch& scratch) {
  const int64_t ld = round_up(settings.dim, Isa::kWidth);
  const Panels panels = make_panels<Isa>(task, settings, scratch);
  ForwardState state{panels, scratch.take(panels.width), scratch.take(panels.width), scratch.take(task.count * ld)};
  std::fill(state.maximum, state.maximum + panels.width, kNoScore);
  std::fill(state.sum, state.sum + panels.width, 0.0f);
  std::fill(state.out, state.out + task.count * ld, 0.0f);
  return state;
}

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

template <class Isa, class T>
BLIP_FAST_INLINE void attend_block(const ForwardTask<T>& task, const AttentionSettings& settings, ForwardState& state,
                                   int64_t begin, int64_t keys, const ForwardBuffers& buffers,
                                   const Prefetch (&next)[2]) {
  const int64_t dim = settings.dim, ld = round_up(dim, Isa::kWidth);
  const Block<const float> key = read_block<Isa>(task.key, begin, keys, dim, buffers.key);
  const Block<const float> value = read_block<Isa>(task.value, begin, keys, dim, buffers.value);
  for (int64_t first = 0; first < task.count; first += kPanel) {
    const int64_t lanes = state.panels.lanes(first), rows = state.panels.rows(first);
    const float* const query = state.panels.panel(state.panels.query, first);
    float* const out = state.out + first * ld;
    Product scores{{key.data, key.ld, 1}, query, lanes, buffers.scores, lanes, keys, lanes, dim, false};
    if (first == 0) {
      scores.prefetch[0] = next[0];
      scores.prefetch[1] = next[1];
    }
    multiply<Isa>(scores);
    if (settings.causal) mask_future(buffers.scores, lanes, first, begin, keys);
    softmax_block<Isa>(buffers.scores, lanes, keys, state.maximum + first, state.sum + first, buffers.factor);
    if (settings.dropout.active()) drop_block<Isa>(settings.dropout, state.panels, first, begin, keys, buffers.scores);
    for (int64_t m = 0; m < rows && begin > 0; ++m) {
      for (int64_t d = 0; d < ld; ++d) out[m * ld + d] *= buffers.factor[m];
    }
    multiply<Isa>({{buffers.scores, 1, lanes}, value.data, value.ld, out, ld, rows, ld, keys, begin > 0});
  }
}

template <class T>
BLIP_FAST_INLINE void store_result(const ForwardTask<T>& task, const AttentionSettings& settings,
                                   const ForwardState& state, int64_t ld) {
  for (int64_t m = 0; m < task.count; ++m) {
    const int32_t row = task.rows[m];
    const float factor = task.length == 0 ? 0.0f : settings.dropout.scale / state.sum[m];
    store_row(task.out[row], state.out + m * ld, settings.dim, factor);
    *task.statistics[row] = {softmax_shift(state.maximum[m]), state.sum[m]};
  }
}

// Tasks of one image (equal rows and keys, heads side by side). With few queries, reading the keys is what takes time:
// then all heads are taken through a short block of keys together, so that memory is read in order.
struct AttentionForward {
  static constexpr int64_t kTogether = 16;  // tasks at most
  static constexpr int64_t kFewRows = 16;
  static constexpr int64_t kShortBlock = 64;

  template <class Isa, class T>
  static BLIP_FAST_INLINE void run(const ForwardTask<T>* const& tasks, const int64_t& count,
                                   const AttentionSettings& settings, Scratch* const& scratch) {
    const int64_t dim = settings.dim, ld = round_up(dim, Isa::kWidth), width = round_up(tasks->count, Isa::kWidth);
    const int64_t group = tasks->count <= kFewRows ? kTogether : 1, block = group > 1 ? kShortBlock : kKeyBlock;
    for (int64_t first = 0; first < count; first += group) {
      const int64_t heads = std::min(group, count - first);
      scratch->reset(heads * (width * (dim + ld + 4) + 64) + kPanel + kKeyBlock * (2 * ld + kPanel));
      const ForwardBuffers buffers{scratch->take(kKeyBlock * ld), scratch->take(kKeyBlock * ld),
                                   scratch->take(kKeyBlock * kPanel), scratch->take(kPanel)};
      ForwardState states[kTogether];
      for (int64_t h = 0; h < heads; ++h) states[h] = make_state<Isa>(tasks[first + h], settings, *scratch);
      for (int64_t begin = 0; begin < tasks->length; begin += block) {
        const int64_t keys = std::min(block, tasks->length - begin);
        for (int64_t h = 0; h < heads; ++h) {
          const bool last_head = h + 1 == heads, last_block = begin + keys == tasks->length;
          const ForwardTask<T>& ahead =
              tasks[std::min(last_head ? first + last_block * heads : first + h + 1, count - 1)];
          const int64_t place = last_head ? (last_block ? 0 : begin + keys) : begin;
          const Prefetch next[2] = {rows_ahead(ahead, ahead.key, place, block, dim),
                                    rows_ahead(ahead, ahead.value, place, block, dim)};
          attend_block<Isa>(tasks[first + h], settings, states[h], begin, keys, buffers, next);
        }
      }
      for (int64_t h = 0; h < heads; ++h) store_result(tasks[first + h], settings, states[h], ld);
    }
  }
};

}  // namespace blip_fast
