// Forward pass of attention for a few queries, as in decoding, whose panels would be nearly empty: scores are dot
// products, and the softmax runs along the keys.
#pragma once

#include "attention_panels.h"

namespace blip_fast {

constexpr int64_t kDotBlock = 32;  // keys

// Scores (R, kDotBlock) of R queries and a block of keys, by dot products; keys up to a whole vector get no score.
template <class Isa, int R>
BLIP_FAST_INLINE void score_block(const float* query, int64_t ld, const Block<const float>& key, int64_t keys,
                                  float* scores, const Prefetch (&next)[2]) {
  using Vector = typename Isa::Vector;
  constexpr int kKeys = Isa::kColumns;  // at once
  for (int64_t l = 0; l < keys; l += kKeys) {
    const float* rows[kKeys];
    for (int j = 0; j < kKeys; ++j) rows[j] = key.data + std::min(l + j, keys - 1) * key.ld;
    next[0].fetch(l, std::min(l + kKeys, keys), keys);
    Vector sum[R][kKeys] = {};
    for (int64_t d = 0; d < ld; d += Isa::kWidth) {
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) {
        const Vector part = load<Vector>(rows[j] + d);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[r][j] += part * load<Vector>(query + r * ld + d);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) scores[r * kDotBlock + l + j] = sum_lanes<Isa::kWidth>(sum[r][j]);
    }
  }
  for (int64_t l = keys; l < round_up(keys, Isa::kWidth); ++l) {
    for (int r = 0; r < R; ++r) scores[r * kDotBlock + l] = kNoScore;
  }
}

// As `score_block`, for `rows` <= R of them.
template <class Isa, int R>
BLIP_FAST_INLINE void score_rows(int64_t rows, const float* query, int64_t ld, const Block<const float>& key,
                                 int64_t keys, float* scores, const Prefetch (&next)[2]) {
  if constexpr (R > 0) {
    if (rows == R) return score_block<Isa, R>(query, ld, key, keys, scores, next);
    score_rows<Isa, R - 1>(rows, query, ld, key, keys, scores, next);
  }
}

// As `softmax_block` of the panels, for one query whose scores lie side by side.
template <class Isa>
BLIP_FAST_INLINE void softmax_row(float* scores, int64_t keys, float* maximum, float* sum, float* factor) {
  using Vector = typename Isa::Vector;
  using Bits = typename Isa::Bits;
  Vector tops = load<Vector>(scores);
  for (int64_t l = Isa::kWidth; l < keys; l += Isa::kWidth) {
    const Vector score = load<Vector>(scores + l);
    tops = score > tops ? score : tops;
  }
  float top = *maximum;
  for (int lane = 0; lane < Isa::kWidth; ++lane) top = tops[lane] > top ? tops[lane] : top;
  const float shift = softmax_shift(top);
  Vector total{};
  for (int64_t l = 0; l < keys; l += Isa::kWidth) {
    const Vector p = softmax_power<Vector, Bits>(load<Vector>(scores + l), Vector{} + shift);
    store(scores + l, p);
    total += p;
  }
  *factor = softmax_power<float, uint32_t>(*maximum, shift);
  *sum = *sum * *factor + sum_lanes<Isa::kWidth>(total);
  *maximum = top;
}

// What a task has gathered so far.
struct DotForward {
  static constexpr int64_t kRows = 4;

  float* query;  // (count, ld), scaled
  float maximum[kRows], sum[kRows];
  float* out;  // (count, ld)

  template <class T>
  static BLIP_FAST_INLINE bool serves(const ForwardTask<T>& task, const AttentionSettings& settings) {
    return task.count <= kRows && !settings.causal && !settings.dropout.active();
  }

  template <class Isa, class T>
  static BLIP_FAST_INLINE DotForward start(const ForwardTask<T>& task, const AttentionSettings& settings,
                                           Scratch& scratch) {
    const int64_t ld = round_up(settings.dim, Isa::kWidth), size = task.count * ld;
    DotForward state{scratch.take(size), {}, {}, scratch.take(size)};
    for (int64_t m = 0; m < task.count; ++m) {
      float* const row = state.query + m * ld;
      load_padded(row, ld, task.query[task.rows[m]], settings.dim);
      for (int64_t d = 0; d < ld; ++d) row[d] *= settings.scale;
      state.maximum[m] = kNoScore;
    }
    std::fill(state.out, state.out + size, 0.0f);
    return state;
  }

  template <class Isa, class T>
  BLIP_FAST_INLINE void attend(const ForwardTask<T>& task, const AttentionSettings& settings, int64_t begin,
                               int64_t keys, const ForwardBuffers& buffers, const Prefetch (&next)[2]) {
    const int64_t dim = settings.dim, ld = round_up(dim, Isa::kWidth), rows = task.count;
    const Block<const float> key = read_block<Isa>(task.key, begin, keys, dim, buffers.key);
    const Block<const float> value = read_block<Isa>(task.value, begin, keys, dim, buffers.value);
    score_rows<Isa, kRows>(rows, query, ld, key, keys, buffers.scores, next);
    for (int64_t m = 0; m < rows; ++m) {
      softmax_row<Isa>(buffers.scores + m * kDotBlock, keys, maximum + m, sum + m, buffers.factor + m);
    }
    next[1].fetch(0, 1, 1);
    add_values<Isa>({buffers.scores, kDotBlock, 1}, value, rows, keys, ld, begin > 0 ? buffers.factor : nullptr, out);
  }
};

}  // namespace blip_fast
