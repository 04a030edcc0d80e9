// Momentum update of a list of tensors in one launch: the table of tensors travels in the kernel's parameters.
//
// Reads 8 and writes 4 bytes per fp32 parameter for 3 FLOPs: bound by memory bandwidth.
#include "../common/momentum.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "launch.h"

namespace blip_fast {
namespace {

using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kVector = 4;                      // elements per access: 16 bytes of fp32
constexpr int kChunk = kThreads * kVector * 8;  // elements per block
constexpr int kMaxTensors = 1024;

struct Table {
  void* param_m[kMaxTensors];
  const void* param[kMaxTensors];
  int64_t size[kMaxTensors];
  int32_t first_chunk[kMaxTensors + 1];
  int32_t tensors;
};
static_assert(sizeof(Table) + sizeof(MomentumUpdate) <= 32764, "kernel parameters are limited to 32,764 bytes");

template <class T>
struct alignas(kVector * sizeof(T)) Pack {
  T values[kVector];
};

__device__ int tensor_of_chunk(const Table& table, int chunk) {
  int low = 0, high = table.tensors - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_chunk[middle] <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

template <class T>
__device__ bool aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(Pack<T>) == 0;
}

template <class M, class P>
__global__ void __launch_bounds__(kThreads)
    momentum_update_kernel(const __grid_constant__ Table table, const MomentumUpdate update) {
  const int tensor = tensor_of_chunk(table, blockIdx.x);
  const int64_t begin = static_cast<int64_t>(blockIdx.x - table.first_chunk[tensor]) * kChunk;
  const int count = static_cast<int>(min(static_cast<int64_t>(kChunk), table.size[tensor] - begin));
  M* const param_m = static_cast<M*>(table.param_m[tensor]) + begin;
  const P* const param = static_cast<const P*>(table.param[tensor]) + begin;

  const int vectors = aligned(param_m) && aligned(param) ? count / kVector : 0;
#pragma unroll 4
  for (int v = threadIdx.x; v < vectors; v += kThreads) {
    Pack<M> m = reinterpret_cast<const Pack<M>*>(param_m)[v];
    const Pack<P> p = reinterpret_cast<const Pack<P>*>(param)[v];
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      m.values[k] = static_cast<M>(update(static_cast<float>(m.values[k]), static_cast<float>(p.values[k])));
    }
    reinterpret_cast<Pack<M>*>(param_m)[v] = m;
  }
  for (int i = vectors * kVector + threadIdx.x; i < count; i += kThreads) {
    param_m[i] = static_cast<M>(update(static_cast<float>(param_m[i]), static_cast<float>(param[i])));
  }
}

void launch(const Table& table, ScalarType dtype_m, ScalarType dtype, const MomentumUpdate& update,
            cudaStream_t stream) {
  dispatch_float(dtype_m, [&](auto m) {
    dispatch_float(dtype, [&](auto p) {
      momentum_update_kernel<typename decltype(m)::type, typename decltype(p)::type>
          <<<table.first_chunk[table.tensors], kThreads, 0, stream>>>(table, update);
    });
  });
  check_launch("momentum_update_kernel");
}

bool same_dtypes(const Tensor& a_m, const Tensor& a, const Tensor& b_m, const Tensor& b) {
  return a_m.scalar_type() == b_m.scalar_type() && a.scalar_type() == b.scalar_type();
}

// One launch per pair of dtypes (and per kMaxTensors tensors).
void momentum_update_(std::vector<Tensor> params_m, std::vector<Tensor> params, double momentum) {
  const torch::stable::accelerator::DeviceGuard guard(params_m.front().get_device_index());
  const cudaStream_t stream = current_stream(params_m.front());
  const MomentumUpdate update(momentum);
  const auto table = std::make_unique<Table>();
  std::vector<bool> done(params_m.size());
  for (size_t first = 0; first < params_m.size(); ++first) {
    while (!done[first]) {
      table->tensors = 0;
      table->first_chunk[0] = 0;
      for (size_t i = first; i < params_m.size() && table->tensors < kMaxTensors; ++i) {
        if (done[i] || !same_dtypes(params_m[first], params[first], params_m[i], params[i])) continue;
        done[i] = true;
        const int t = table->tensors;
        table->param_m[t] = params_m[i].mutable_data_ptr();
        table->param[t] = params[i].const_data_ptr();
        table->size[t] = params_m[i].numel();
        table->first_chunk[t + 1] =
            table->first_chunk[t] + static_cast<int32_t>((table->size[t] + kChunk - 1) / kChunk);
        table->tensors = t + 1;
      }
      if (table->first_chunk[table->tensors] > 0) {
        launch(*table, params_m[first].scalar_type(), params[first].scalar_type(), update, stream);
      }
    }
  }
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CUDA, m) {
  m.impl("momentum_update_", TORCH_BOX(&blip_fast::momentum_update_));
}
