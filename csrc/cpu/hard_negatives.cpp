// Hard negatives: one draw per row of two similarity matrices. Rows are independent, so threads split them.
#include "simd.h"  // first: it silences a warning about vectors in the headers below

#include "../common/hard_negatives.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/dtypes.h"

namespace blip_fast {
namespace {

using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 15;  // similarities per task, about 30 us

struct Settings {
  FixedPointExp exp;
  float epsilon;
  Philox philox;
  uint64_t offset;
};

struct Scratch {
  std::vector<float> values;
  std::vector<int64_t> admissible, weights;

  explicit Scratch(int64_t columns) : values(columns), admissible(columns), weights(columns) {}
};

// Largest of the values, NaN left aside. In lanes, since the compiler may not reorder a chain of comparisons.
BLIP_FAST_HOST_DEVICE float largest(const float* values, int64_t count) {
  constexpr int kLanes = 16;
  float lane[kLanes];
  for (int k = 0; k < kLanes; ++k) lane[k] = -INFINITY;
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t j = 0; j < whole; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) lane[k] = values[j + k] > lane[k] ? values[j + k] : lane[k];
  }
  for (int64_t j = whole; j < count; ++j) lane[0] = values[j] > lane[0] ? values[j] : lane[0];
  for (int k = 1; k < kLanes; ++k) lane[0] = lane[k] > lane[0] ? lane[k] : lane[0];
  return lane[0];
}

// Vectors of N numbers, and of as many 64-bit words.
template <int N>
struct Lanes {
  typedef float Floats __attribute__((vector_size(4 * N)));
  typedef int32_t Ints __attribute__((vector_size(4 * N)));
  typedef uint64_t Words __attribute__((vector_size(8 * N)));
};

// exp of values - shift into weights, and their sum.
struct Exponentials {
  template <class Isa>
  static BLIP_FAST_INLINE void run(const float* values, float shift, int64_t columns, const FixedPointExp& exp,
                                   int64_t* weights, int64_t* sum) {
    constexpr int64_t kLanes = Isa::kWidth / 2;
    using Floats = typename Lanes<kLanes>::Floats;
    using Ints = typename Lanes<kLanes>::Ints;
    using Words = typename Lanes<kLanes>::Words;
    Words lanes{};
    int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      Floats t = load<Floats>(values + j) - shift;
      t = t > -32.0f ? t : Floats{} - 32.0f;
      const Words units = __builtin_convertvector(__builtin_convertvector(t * FixedPointExp::kUnits, Ints), Words);
      const Words weight = exp.of_units(units);
      store(weights + j, weight);
      lanes += weight;
    }
    *sum = 0;
    for (int64_t k = 0; k < kLanes; ++k) *sum += static_cast<int64_t>(lanes[k]);
    for (; j < columns; ++j) *sum += weights[j] = exp(values[j] - shift);
  }
};

// Weights in proportion to softmax + epsilon on the admissible columns; returns their sum, 0 where softmax is
// undefined.
template <class T>
BLIP_FAST_HOST_DEVICE int64_t weigh(const T* sim, int64_t columns, const Settings& settings, Scratch& scratch) {
  // Without epsilon the softmax may run over the admissible columns: a dominant positive does not hide them.
  const bool all_count = settings.epsilon > 0;
  const int64_t* const admissible = scratch.admissible.data();
  float* const values = scratch.values.data();
  int32_t nan = 0;
  for (int64_t j = 0; j < columns; ++j) {
    const float value = all_count || admissible[j] ? static_cast<float>(sim[j]) : -INFINITY;
    nan |= value != value;
    values[j] = value;
  }
  const float shift = largest(values, columns);
  if (nan || !std::isfinite(shift)) return 0;
  int64_t* const weights = scratch.weights.data();
  int64_t all = 0, total = 0;
  run_best<Exponentials>(values, shift, columns, settings.exp, weights, &all);
  const int64_t share = share_of(all, settings.epsilon);
  for (int64_t j = 0; j < columns; ++j) {
    weights[j] = (weights[j] + share) & -admissible[j];
    total += weights[j];
  }
  return total;
}

// First column up to which the weights sum to more than the threshold: by blocks, then within one.
BLIP_FAST_HOST_DEVICE int64_t first_above(int64_t threshold, const int64_t* weights, int64_t columns) {
  constexpr int64_t kBlock = 32;
  int64_t column = 0, sum = 0;
  for (; column + kBlock < columns; column += kBlock) {
    int64_t block = 0;
    for (int64_t k = 0; k < kBlock; ++k) block += weights[column + k];
    if (sum + block > threshold) break;
    sum += block;
  }
  while ((sum += weights[column]) <= threshold) ++column;
  return column;
}

// The pick of one row. Without weights: uniform over the admissible columns, else over the others, else the own one.
template <class T>
BLIP_FAST_MULTIVERSION int64_t draw(const T* sim, const int64_t* ids, int64_t columns, int64_t own, uint32_t direction,
                                    const Settings& settings, Scratch& scratch) {
  int64_t* const admissible = scratch.admissible.data();
  int64_t* const weights = scratch.weights.data();
  for (int64_t j = 0; j < columns; ++j) admissible[j] = ids ? ids[j] != ids[own] : j != own;
  int64_t total = weigh(sim, columns, settings, scratch);
  if (total == 0) {
    for (int64_t j = 0; j < columns; ++j) total += weights[j] = admissible[j];
  }
  if (total == 0) {
    for (int64_t j = 0; j < columns; ++j) total += weights[j] = j != own;
  }
  if (total == 0) return own;
  const PhiloxWords words =
      settings.philox({static_cast<uint32_t>(own), direction, static_cast<uint32_t>(settings.offset),
                       static_cast<uint32_t>(settings.offset >> 32)});
  return first_above(random_below(total, words.x, words.y), weights, columns);
}

// Rows [begin, end) of the two matrices one below the other: first images for texts, then texts for images.
template <class T>
void draw_rows(const Tensor (&sims)[2], const int64_t* ids, int64_t row_offset, const Settings& settings,
               int64_t* const (&picks)[2], int64_t begin, int64_t end) {
  const int64_t rows = sims[0].size(0), columns = sims[0].size(1);
  Scratch scratch(columns);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t direction = i / rows, row = i % rows, own = row_offset + row;
    const T* sim = static_cast<const T*>(sims[direction].const_data_ptr()) + row * columns;
    picks[direction][row] = draw(sim, ids, columns, own, direction, settings, scratch);
  }
}

int64_t value(const Tensor& scalar) { return *static_cast<const int64_t*>(scalar.const_data_ptr()); }

std::tuple<Tensor, Tensor> mine_hard_negatives(Tensor sim_i2t, Tensor sim_t2i, std::optional<Tensor> ids,
                                               double epsilon, Tensor seed, Tensor offset, int64_t row_offset) {
  Tensor image_for_text = torch::stable::new_empty(sim_t2i, {sim_t2i.size(0)}, ScalarType::Long);
  Tensor text_for_image = torch::stable::new_empty(sim_i2t, {sim_i2t.size(0)}, ScalarType::Long);
  const Settings settings{FixedPointExp(sim_i2t.size(1), epsilon), static_cast<float>(epsilon),
                          Philox(static_cast<uint64_t>(value(seed))), static_cast<uint64_t>(value(offset))};
  const Tensor sims[2] = {sim_t2i, sim_i2t};
  int64_t* const picks[2] = {static_cast<int64_t*>(image_for_text.mutable_data_ptr()),
                             static_cast<int64_t*>(text_for_image.mutable_data_ptr())};
  const int64_t* const id = ids ? static_cast<const int64_t*>(ids->const_data_ptr()) : nullptr;
  dispatch_float(sim_i2t.scalar_type(), [&](auto type) {
    torch::stable::parallel_for(0, 2 * sim_i2t.size(0), kGrain / sim_i2t.size(1) + 1, [&](int64_t begin, int64_t end) {
      draw_rows<typename decltype(type)::type>(sims, id, row_offset, settings, picks, begin, end);
    });
  });
  return {image_for_text, text_for_image};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def(
      "mine_hard_negatives(Tensor sim_i2t, Tensor sim_t2i, Tensor? ids, float epsilon, Tensor seed, Tensor offset, "
      "int row_offset) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) {
  m.impl("mine_hard_negatives", TORCH_BOX(&blip_fast::mine_hard_negatives));
}
