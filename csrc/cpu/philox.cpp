// Philox words for given counters, so that the functor which the operations share can be checked on its own.
#include "../common/philox.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace blip_fast {
namespace {

using torch::stable::Tensor;

// counters (N, 4) int64 with words in [0, 2^32) -> (N, 4) int64.
Tensor philox_words(int64_t seed, Tensor counters) {
  Tensor words = torch::stable::empty_like(counters);
  const Philox philox(static_cast<uint64_t>(seed));
  const int64_t* c = static_cast<const int64_t*>(counters.const_data_ptr());
  int64_t* out = static_cast<int64_t*>(words.mutable_data_ptr());
  for (int64_t i = 0; i < counters.size(0) * 4; i += 4) {
    const auto word = [&](int k) { return static_cast<uint32_t>(c[i + k]); };
    const PhiloxWords drawn = philox({word(0), word(1), word(2), word(3)});
    out[i] = drawn.x;
    out[i + 1] = drawn.y;
    out[i + 2] = drawn.z;
    out[i + 3] = drawn.w;
  }
  return words;
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) { m.def("philox_words(int seed, Tensor counters) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) { m.impl("philox_words", TORCH_BOX(&blip_fast::philox_words)); }
