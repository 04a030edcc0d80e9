// Momentum update of a list of tensors: one threaded pass, 12 bytes per fp32 parameter.
#include "../common/momentum.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "../common/dtypes.h"

namespace blip_fast {
namespace {

using torch::stable::Tensor;

constexpr int64_t kChunk = 1 << 15;  // elements per task: small enough to balance threads, large enough to stream

template <class M, class P>
BLIP_FAST_MULTIVERSION void update_range(M* param_m, const P* param, int64_t count, MomentumUpdate update) {
  for (int64_t i = 0; i < count; ++i) {
    param_m[i] = static_cast<M>(update(static_cast<float>(param_m[i]), static_cast<float>(param[i])));
  }
}

void update_chunk(const Tensor& param_m, const Tensor& param, int64_t begin, const MomentumUpdate& update) {
  const int64_t count = std::min(kChunk, param_m.numel() - begin);
  dispatch_float(param_m.scalar_type(), [&](auto m) {
    dispatch_float(param.scalar_type(), [&](auto p) {
      using M = typename decltype(m)::type;
      using P = typename decltype(p)::type;
      update_range(static_cast<M*>(param_m.mutable_data_ptr()) + begin,
                   static_cast<const P*>(param.const_data_ptr()) + begin, count, update);
    });
  });
}

void momentum_update_(std::vector<Tensor> params_m, std::vector<Tensor> params, double momentum) {
  std::vector<int64_t> first_chunk{0};
  for (const Tensor& tensor : params_m) {
    first_chunk.push_back(first_chunk.back() + (tensor.numel() + kChunk - 1) / kChunk);
  }
  const MomentumUpdate update(momentum);
  torch::stable::parallel_for(0, first_chunk.back(), 1, [&](int64_t begin, int64_t end) {
    auto next = std::upper_bound(first_chunk.begin(), first_chunk.end(), begin);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      while (chunk >= *next) ++next;
      const int64_t i = next - first_chunk.begin() - 1;
      update_chunk(params_m[i], params[i], (chunk - first_chunk[i]) * kChunk, update);
    }
  });
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def("momentum_update_(Tensor(a!)[] params_m, Tensor[] params, float momentum) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) {
  m.impl("momentum_update_", TORCH_BOX(&blip_fast::momentum_update_));
}
