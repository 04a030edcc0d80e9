// Backward pass of one attention task. Probabilities come again from the scores and the saved statistics.
#pragma once

#include "attention.h"

namespace blip_fast {

struct BackwardBuffers {
  float *query, *grad_out;  // (count, ld); Panels hold them transposed
  float* grad_out_t;
  float *shift, *inverse, *delta;              // (width): of the softmax: shift, 1 / sum; sum of grad_out * out
  float* grad_query;                           // (count, ld)
  float *key, *value, *grad_key, *grad_value;  // (kKeyBlock, ld)
  float *p, *grad_p;                           // (kKeyBlock, kPanel)

  BackwardBuffers(Scratch& scratch, int64_t count, int64_t width, int64_t dim, int64_t ld)
      : query(scratch.take(count * ld)),
        grad_out(scratch.take(count * ld)),
        grad_out_t(scratch.take(width * dim)),
        shift(scratch.take(width)),
        inverse(scratch.take(width)),
        delta(scratch.take(width)),
        grad_query(scratch.take(count * ld)),
        key(scratch.take(kKeyBlock * ld)),
        value(scratch.take(kKeyBlock * ld)),
        grad_key(scratch.take(kKeyBlock * ld)),
        grad_value(scratch.take(kKeyBlock * ld)),
        p(scratch.take(kKeyBlock * kPanel)),
        grad_p(scratch.take(kKeyBlock * kPanel)) {
    std::fill(shift, shift + width, 0.0f);
    std::fill(inverse, inverse + width, 0.0f);
    std::fill(delta, delta + width, 0.0f);
  }
};

template <class T>
BLIP_FAST_INLINE void load_queries(const BackwardTask<T>& task, int64_t dim, int64_t ld, float scale,
                                   const BackwardBuffers& buffers) {
  for (int64_t m = 0; m < task.count; ++m) {
    const int32_t row = task.rows[m];
    load_padded(buffers.query + m * ld, ld, task.query[row], dim);
    load_padded(buffers.grad_out + m * ld, ld, task.grad_out[row], dim);
    for (int64_t d = 0; d < dim; ++d) buffers.query[m * ld + d] *= scale;
    const T* const out = task.out[row];
    float delta = 0.0f;
    for (int64_t d = 0; d < dim; ++d) delta += buffers.grad_out[m * ld + d] * to_float(out[d]);
    buffers.delta[m] = delta;
    buffers.shift[m] = task.statistics[row]->shift;
    buffers.inverse[m] = 1.0f / task.statistics[row]->sum;
  }
}

template <class Vector, class Bits>
BLIP_FAST_INLINE Vector probability(const BackwardBuffers& buffers, int64_t lane, const float* score) {
  const Vector power = softmax_power<Vector, Bits>(load<Vector>(score), load<Vector>(buffers.shift + lane));
  return power * load<Vector>(buffers.inverse + lane);
}

// Scores and grad_p (with respect to the probabilities after dropout) to those probabilities and the gradient of the
// scores.
template <class Isa>
BLIP_FAST_INLINE void backward_block(const Panels& panels, int64_t first, int64_t keys,
                                     const BackwardBuffers& buffers) {
  using Vector = typename Isa::Vector;
  using Bits = typename Isa::Bits;
  const int64_t lanes = panels.lanes(first);
  for (int64_t l = 0; l < keys; ++l) {
    for (int64_t m = 0; m < lanes; m += Isa::kWidth) {
      float* const score = buffers.p + l * lanes + m;
      float* const grad = buffers.grad_p + l * lanes + m;
      const Vector p = probability<Vector, Bits>(buffers, first + m, score);
      store(score, p);
      store(grad, p * (load<Vector>(grad) - load<Vector>(buffers.delta + first + m)));
    }
  }
}

template <class Isa>
BLIP_FAST_INLINE void backward_block_with_dropout(const AttentionDropout& dropout, const Panels& panels, int64_t first,
                                                  int64_t begin, int64_t keys, const BackwardBuffers& buffers) {
  using Vector = typename Isa::Vector;
  using Bits = typename Isa::Bits;
  const int64_t lanes = panels.lanes(first);
  uint32_t words[4][Isa::kWidth];
  for (int64_t l = 0; l < keys; l = next_slot(l)) {
    for (int64_t m = 0; m < lanes; m += Isa::kWidth) {
      draw_words<Isa>(dropout, panels, first + m, begin + l, words);
      for (int64_t w = 0; w < 4 && l + 16 * w < keys; ++w) {
        float* const score = buffers.p + (l + 16 * w) * lanes + m;
        float* const grad = buffers.grad_p + (l + 16 * w) * lanes + m;
        const Vector p = probability<Vector, Bits>(buffers, first + m, score);
        const auto keep = keeps<Bits>(dropout, words[w]);
        const Vector grad_p = keep ? load<Vector>(grad) * dropout.scale : Vector{};
        store(score, keep ? p * dropout.scale : Vector{});
        store(grad, p * (grad_p - load<Vector>(buffers.delta + first + m)));
      }
    }
  }
}

// Where a product may put rows from `begin` on: in place, or in `buffer` until store_block converts them.
template <class Isa, class T>
BLIP_FAST_INLINE Block<float> write_block(const Rows<T>& to, int64_t begin, int64_t dim, float* buffer) {
  if (in_place<Isa, T>(dim)) return {reinterpret_cast<float*>(to[begin]), to.stride};
  return {buffer, round_up(dim, Isa::kWidth)};
}

template <class Isa, class T>
BLIP_FAST_INLINE void store_block(const Rows<T>& to, int64_t begin, int64_t count, int64_t dim,
                                  const Block<float>& from) {
  if (in_place<Isa, T>(dim)) return;
  for (int64_t l = 0; l < count; ++l) store_row(to[begin + l], from.data + l * from.ld, dim, 1.0f);
}

template <class Isa, class T>
BLIP_FAST_INLINE void differentiate_block(const BackwardTask<T>& task, const AttentionSettings& settings,
                                          const Panels& panels, int64_t begin, const BackwardBuffers& buffers,
                                          const BackwardTask<T>& next_task) {
  const int64_t dim = settings.dim, ld = round_up(dim, Isa::kWidth), keys = std::min(kKeyBlock, task.length - begin);
  const Block<const float> key = read_block<Isa>(task.key, begin, keys, dim, buffers.key);
  const Block<const float> value = read_block<Isa>(task.value, begin, keys, dim, buffers.value);
  const Block<float> grad_key = write_block<Isa>(task.grad_key, begin, dim, buffers.grad_key);
  const Block<float> grad_value = write_block<Isa>(task.grad_value, begin, dim, buffers.grad_value);
  const bool last = begin + keys == task.length;
  const BackwardTask<T>& ahead = last ? next_task : task;
  const int64_t place = last ? 0 : begin + keys;
  for (int64_t first = 0; first < task.count; first += kPanel) {
    const int64_t lanes = panels.lanes(first), rows = panels.rows(first);
    const float* const query = buffers.query + first * ld;
    const float* const grad_out = buffers.grad_out + first * ld;
    const float* const query_t = panels.panel(panels.query, first);
    const float* const grad_out_t = panels.panel(buffers.grad_out_t, first);
    Product scores{{key.data, key.ld, 1}, query_t, lanes, buffers.p, lanes, keys, lanes, dim, false};
    Product grad_p{{value.data, value.ld, 1}, grad_out_t, lanes, buffers.grad_p, lanes, keys, lanes, dim, false};
    if (first == 0) {
      scores.prefetch[0] = rows_ahead(ahead, ahead.key, place, kKeyBlock, dim);
      grad_p.prefetch[0] = rows_ahead(ahead, ahead.value, place, kKeyBlock, dim);
    }
    multiply<Isa>(scores);
    multiply<Isa>(grad_p);
    if (settings.causal) mask_future(buffers.p, lanes, first, begin, keys);
    if (settings.dropout.active()) {
      backward_block_with_dropout<Isa>(settings.dropout, panels, first, begin, keys, buffers);
    } else {
      backward_block<Isa>(panels, first, keys, buffers);
    }
    const bool add = first > 0;
    multiply<Isa>({{buffers.p, lanes, 1}, grad_out, ld, grad_value.data, grad_value.ld, keys, ld, rows, add});
    multiply<Isa>({{buffers.grad_p, lanes, 1}, query, ld, grad_key.data, grad_key.ld, keys, ld, rows, add});
    float* const grad_query = buffers.grad_query + first * ld;
    multiply<Isa>({{buffers.grad_p, 1, lanes}, key.data, key.ld, grad_query, ld, rows, ld, keys, begin > 0});
  }
  store_block<Isa>(task.grad_key, begin, keys, dim, grad_key);
  store_block<Isa>(task.grad_value, begin, keys, dim, grad_value);
}

struct AttentionBackward {
  // Tasks of one image: equal rows and keys, heads side by side.
  template <class Isa, class T>
  static BLIP_FAST_INLINE void run(const BackwardTask<T>* const& tasks, const int64_t& count,
                                   const AttentionSettings& settings, Scratch* const& scratch) {
    for (int64_t i = 0; i < count; ++i) {
      differentiate<Isa>(tasks[i], settings, *scratch, tasks[std::min(i + 1, count - 1)]);
    }
  }

  template <class Isa, class T>
  static BLIP_FAST_INLINE void differentiate(const BackwardTask<T>& task, const AttentionSettings& settings,
                                             Scratch& scratch, const BackwardTask<T>& next_task) {
    const int64_t dim = settings.dim, ld = round_up(dim, Isa::kWidth), width = round_up(task.count, Isa::kWidth);
    const int64_t length = task.count > 0 ? task.length : 0;
    scratch.reset(width * (2 * dim + 3 * ld + 5) + kKeyBlock * (4 * ld + 2 * kPanel), 16);
    if (task.count > 0) {
      const Panels panels = make_panels<Isa>(task, settings, kPanel, scratch);
      const BackwardBuffers buffers(scratch, task.count, width, dim, ld);
      load_queries(task, dim, ld, settings.scale, buffers);
      transpose_rows(panels, task.rows, task.grad_out, 1.0f, buffers.grad_out_t);
      if (length == 0) std::fill(buffers.grad_query, buffers.grad_query + task.count * ld, 0.0f);
      for (int64_t begin = 0; begin < length; begin += kKeyBlock) {
        differentiate_block<Isa>(task, settings, panels, begin, buffers, next_task);
      }
      for (int64_t m = 0; m < task.count; ++m) {
        store_row(task.grad_query[task.rows[m]], buffers.grad_query + m * ld, dim, settings.scale);
      }
    }
    for (int64_t l = length; l < task.keys; ++l) {
      std::memset(static_cast<void*>(task.grad_key[l]), 0, dim * sizeof(T));
      std::memset(static_cast<void*>(task.grad_value[l]), 0, dim * sizeof(T));
    }
  }
};

}  // namespace blip_fast
