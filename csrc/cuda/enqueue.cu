// Enqueue of features into a ring buffer of columns: one launch, the pointer is read and advanced on the device.
#include "launch.h"

namespace blip_fast {
namespace {

using torch::stable::Tensor;

constexpr int kTile = 32;

// queue (E, Q), features (N, E). A tile of features goes through shared memory: rows are read and columns written
// coalesced. Rows that later ones would overwrite (N > Q) are skipped.
template <class Q, class F>
__global__ void __launch_bounds__(kTile * 8)
    enqueue_kernel(Q* queue, const F* features, const int64_t* pointer, int64_t rows, int64_t size, int64_t count) {
  __shared__ F tile[kTile][kTile + 1];
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kTile, first = static_cast<int64_t>(blockIdx.x) * kTile;
  for (int i = threadIdx.y; i < kTile; i += 8) {
    if (first + i < count && row + threadIdx.x < rows) {
      tile[i][threadIdx.x] = features[(first + i) * rows + row + threadIdx.x];
    }
  }
  __syncthreads();
  const int64_t i = first + threadIdx.x;
  if (i >= count || i + size < count) return;
  const int64_t column = (*pointer + i) % size;
  for (int e = threadIdx.y; e < kTile && row + e < rows; e += 8) {
    queue[(row + e) * size + column] = static_cast<Q>(tile[threadIdx.x][e]);
  }
}

__global__ void advance_kernel(int64_t* pointer, int64_t count, int64_t size) { *pointer = (*pointer + count) % size; }

template <class Q, class F>
void launch(Tensor& queue, const Tensor& features, const Tensor& pointer, cudaStream_t stream) {
  const int64_t rows = queue.size(0), size = queue.size(1), count = features.size(0);
  const dim3 grid((count + kTile - 1) / kTile, (rows + kTile - 1) / kTile);
  enqueue_kernel<<<grid, dim3(kTile, 8), 0, stream>>>(
      static_cast<Q*>(queue.mutable_data_ptr()), static_cast<const F*>(features.const_data_ptr()),
      static_cast<const int64_t*>(pointer.const_data_ptr()), rows, size, count);
  check_launch("enqueue_kernel");
}

void enqueue_(Tensor queue, Tensor features, Tensor pointer) {
  const torch::stable::accelerator::DeviceGuard guard(queue.get_device_index());
  const cudaStream_t stream = current_stream(queue);
  if (queue.scalar_type() == ScalarType::Long) {
    launch<int64_t, int64_t>(queue, features, pointer, stream);
  } else {
    dispatch_float(queue.scalar_type(), [&](auto q) {
      dispatch_float(features.scalar_type(), [&](auto f) {
        launch<typename decltype(q)::type, typename decltype(f)::type>(queue, features, pointer, stream);
      });
    });
  }
  advance_kernel<<<1, 1, 0, stream>>>(static_cast<int64_t*>(pointer.mutable_data_ptr()), features.size(0),
                                      queue.size(1));
  check_launch("advance_kernel");
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CUDA, m) { m.impl("enqueue_", TORCH_BOX(&blip_fast::enqueue_)); }
