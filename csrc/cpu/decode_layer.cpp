// One token of each text through a layer of the text decoder: self-attention to a cache that is addressed by ancestry,
// cross-attention to the text's image, MLP. What is computed is what `linear`, `cross_attention` and
// `dropout_add_layer_norm` compute; for few rows, calling them one by one from Python takes a fifth of the time.
#include "simd.h"  // first: it silences a warning about vectors in the headers below

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention_dots.h"
#include "operations.h"

namespace blip_fast {
namespace {

constexpr int64_t kPlacesPerTask = 256;  // fewer keys are not worth waking a thread

// Parameters in the order of LayerParameters in blip_fast/reference/decode_layer.py, a weight and a bias each.
enum Part {
  kQuery,
  kKey,
  kValue,
  kOutput,
  kNorm,
  kImageQuery,
  kImageOutput,
  kImageNorm,
  kUp,
  kDown,
  kLastNorm,
  kParts
};

// Keys and values (2, S, N, H, D) of the tokens so far, and where each text (R) finds its own.
struct Cache {
  float* data;
  const int64_t *ancestry, *slots, *lengths;  // (R, N), (R), (R)
  int64_t texts, places, heads, dim;          // S, N, H, D

  BLIP_FAST_INLINE float* at(int64_t kind, int64_t slot, int64_t place) const {
    return data + ((kind * texts + slot) * places + place) * heads * dim;
  }
};

struct CachedHead {
  const Cache& cache;
  int64_t row, head;
  const float* query;  // (D)
  float scale;
  float* scores;  // (N, rounded up to whole vectors)
  float* out;     // (D)
};

template <class Isa>
BLIP_FAST_INLINE float dot(const float* a, const float* b, int64_t count) {
  using Vector = typename Isa::Vector;
  Vector sums{};
  int64_t i = 0;
  for (; i + Isa::kWidth <= count; i += Isa::kWidth) sums += load<Vector>(a + i) * load<Vector>(b + i);
  float sum = sum_lanes<Isa::kWidth>(sums);
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

struct AttendToCache {
  template <class Isa>
  static BLIP_FAST_INLINE void run(const CachedHead& call) {
    const Cache& cache = call.cache;
    const int64_t *ancestry = cache.ancestry + call.row * cache.places, keys = cache.lengths[call.row] + 1;
    const int64_t dim = cache.dim, offset = call.head * dim;
    for (int64_t n = 0; n < keys; ++n) {
      call.scores[n] = call.scale * dot<Isa>(call.query, cache.at(0, ancestry[n], n) + offset, dim);
    }
    std::fill(call.scores + keys, call.scores + round_up(keys, Isa::kWidth), kNoScore);
    float maximum = kNoScore, sum = 0.0f, unused;
    softmax_row<Isa>(call.scores, keys, &maximum, &sum, &unused);
    std::fill(call.out, call.out + dim, 0.0f);
    for (int64_t n = 0; n < keys; ++n) {
      const float* const value = cache.at(1, ancestry[n], n) + offset;
      const float p = call.scores[n] / sum;
      for (int64_t d = 0; d < dim; ++d) call.out[d] += p * value[d];
    }
  }
};

// The token's own key and value go to the slot of its text, at the text's length.
void write_cache(const Cache& cache, const Tensor& key, const Tensor& value) {
  const int64_t width = cache.heads * cache.dim, rows = key.size(0);
  const float* const from[2] = {static_cast<const float*>(key.const_data_ptr()),
                                static_cast<const float*>(value.const_data_ptr())};
  for (int64_t kind = 0; kind < 2; ++kind) {
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(cache.at(kind, cache.slots[r], cache.lengths[r]), from[kind] + r * width, width * sizeof(float));
    }
  }
}

void attend_to_cache(const Cache& cache, const Tensor& query, Tensor& out) {
  const int64_t rows = query.size(0), dim = cache.dim;
  const float* const queries = static_cast<const float*>(query.const_data_ptr());
  float* const outs = static_cast<float*>(out.mutable_data_ptr());
  const int64_t longest = *std::max_element(cache.lengths, cache.lengths + rows) + 1;
  const int64_t grain = std::max<int64_t>(1, kPlacesPerTask / longest);
  torch::stable::parallel_for(0, rows * cache.heads, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(round_up(longest, 16));
    for (int64_t i = begin; i < end; ++i) {
      const CachedHead call{
          cache,         i / cache.heads, i % cache.heads, queries + i * dim, 1.0f / std::sqrt(static_cast<float>(dim)),
          scores.data(), outs + i * dim};
      run_best<AttendToCache>(call);
    }
  });
}

Cache cache_of(Tensor& cache, const Tensor& ancestry, const Tensor& slots, const Tensor& lengths) {
  const Cache found{static_cast<float*>(cache.mutable_data_ptr()),
                    static_cast<const int64_t*>(ancestry.const_data_ptr()),
                    static_cast<const int64_t*>(slots.const_data_ptr()),
                    static_cast<const int64_t*>(lengths.const_data_ptr()),
                    cache.size(1),
                    cache.size(2),
                    cache.size(3),
                    cache.size(4)};
  for (int64_t r = 0; r < slots.size(0); ++r) {
    const int64_t length = found.lengths[r], *const parents = found.ancestry + r * found.places;
    STD_TORCH_CHECK(length >= 0 && length < found.places, "lengths has ", length, "; expected a place of the cache");
    STD_TORCH_CHECK(found.slots[r] >= 0 && found.slots[r] < found.texts, "slots has ", found.slots[r],
                    "; expected a slot of the cache");
    for (int64_t n = 0; n <= length; ++n) {
      STD_TORCH_CHECK(parents[n] >= 0 && parents[n] < found.texts, "ancestry has ", parents[n],
                      "; expected slots of the cache");
    }
  }
  return found;
}

struct Layer {
  const std::vector<Tensor>& parameters;
  double eps;

  const Tensor& weight(Part part) const { return parameters[2 * part]; }
  const Tensor& bias(Part part) const { return parameters[2 * part + 1]; }

  Tensor product(Part part, const Tensor& input, bool gelu = false) const {
    Tensor output = torch::stable::new_empty(input, {input.size(0), weight(part).size(0)});
    linear_into(input, weight(part), bias(part), gelu, output);
    return output;
  }

  Tensor add_norm(Part part, const Tensor& x, const Tensor& residual) const {
    return std::get<0>(dropout_add_layer_norm(x, residual, weight(part), bias(part), eps, 0.0, std::nullopt,
                                              std::nullopt, false, false));
  }
};

Tensor decode_layer(Tensor hidden, std::vector<Tensor> parameters, Tensor cache, Tensor ancestry, Tensor slots,
                    Tensor lengths, Tensor key, Tensor value, std::vector<Tensor> groups, double eps) {
  STD_TORCH_CHECK(parameters.size() == 2 * kParts, "parameters has ", parameters.size(), " tensors; expected ",
                  2 * kParts);
  const int64_t rows = hidden.size(0);
  if (rows == 0) return torch::stable::empty_like(hidden);
  const Layer layer{parameters, eps};
  const Cache tokens = cache_of(cache, ancestry, slots, lengths);
  write_cache(tokens, layer.product(kKey, hidden), layer.product(kValue, hidden));
  const Tensor query = layer.product(kQuery, hidden);
  Tensor attended = torch::stable::empty_like(query);
  attend_to_cache(tokens, query, attended);
  hidden = layer.add_norm(kNorm, layer.product(kOutput, attended), hidden);

  const double scale = 1.0 / std::sqrt(static_cast<double>(tokens.dim));
  Tensor image_query = torch::stable::new_empty(hidden, {rows, tokens.heads, tokens.dim});
  linear_into(hidden, layer.weight(kImageQuery), layer.bias(kImageQuery), false, image_query);
  const Tensor seen = std::get<0>(
      cross_attention(image_query, key, value, groups, std::nullopt, std::nullopt, std::nullopt, 0.0, scale, 0));
  hidden = layer.add_norm(kImageNorm, layer.product(kImageOutput, seen), hidden);
  return layer.add_norm(kLastNorm, layer.product(kDown, layer.product(kUp, hidden, true)), hidden);
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def(
      "decode_layer(Tensor hidden, Tensor[] parameters, Tensor(a!) cache, Tensor ancestry, Tensor slots, "
      "Tensor lengths, Tensor key, Tensor value, Tensor[] groups, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) { m.impl("decode_layer", TORCH_BOX(&blip_fast::decode_layer)); }
