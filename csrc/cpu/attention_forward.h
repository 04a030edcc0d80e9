// Forward pass of attention tasks, in the form that suits their number of queries.
#pragma once

#include "attention_dots.h"
#include "attention_panels.h"

namespace blip_fast {

template <class State, class T>
BLIP_FAST_INLINE void store_result(const ForwardTask<T>& task, const AttentionSettings& settings, const State& state,
                                   int64_t ld) {
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
  static constexpr int64_t kShortBlock = 64;  // the keys of one of dropout's blocks

  template <class Isa, class T>
  static BLIP_FAST_INLINE void run(const ForwardTask<T>* const& tasks, const int64_t& count,
                                   const AttentionSettings& settings, Scratch* const& scratch) {
    if (tasks->count == 0) return;
    const bool together = tasks->count <= kFewRows;
    const int64_t group = together ? kTogether : 1, block = together ? kShortBlock : kKeyBlock;
    for (int64_t first = 0; first < count; first += group) {
      const int64_t heads = std::min(group, count - first);
      if (DotForward::serves(*tasks, settings)) {
        attend_to_blocks<Isa, DotForward>(tasks, count, first, heads, kDotBlock, settings, *scratch);
      } else {
        attend_to_blocks<Isa, PanelForward>(tasks, count, first, heads, block, settings, *scratch);
      }
    }
  }

  // Heads [first, first + heads) of `count`, block after block; State says how.
  template <class Isa, class State, class T>
  static BLIP_FAST_INLINE void attend_to_blocks(const ForwardTask<T>* tasks, int64_t count, int64_t first,
                                                int64_t heads, int64_t block, const AttentionSettings& settings,
                                                Scratch& scratch) {
    const int64_t dim = settings.dim, ld = round_up(dim, Isa::kWidth), width = round_up(tasks->count, Isa::kWidth);
    scratch.reset(heads * width * (dim + ld + 4) + kPanel + kKeyBlock * (2 * ld + kPanel), 6 * heads + 4);
    const ForwardBuffers buffers{scratch.take(kKeyBlock * ld), scratch.take(kKeyBlock * ld),
                                 scratch.take(kKeyBlock * kPanel), scratch.take(kPanel)};
    State states[kTogether];
    for (int64_t h = 0; h < heads; ++h) states[h] = State::template start<Isa>(tasks[first + h], settings, scratch);
    for (int64_t begin = 0; begin < tasks->length; begin += block) {
      const int64_t keys = std::min(block, tasks->length - begin);
      for (int64_t h = 0; h < heads; ++h) {
        const bool last_block = begin + keys == tasks->length;
        const ForwardTask<T>& ahead = tasks[std::min(first + h + last_block * heads, count - 1)];
        const int64_t place = last_block ? 0 : begin + keys,
                      wanted = last_block && first + heads + h >= count ? 0 : block;
        const Prefetch next[2] = {rows_ahead(ahead, ahead.key, place, wanted, dim),
                                  rows_ahead(ahead, ahead.value, place, wanted, dim)};
        states[h].template attend<Isa>(tasks[first + h], settings, begin, keys, buffers, next);
      }
    }
    for (int64_t h = 0; h < heads; ++h) store_result(tasks[first + h], settings, states[h], ld);
  }
};

}  // namespace blip_fast
