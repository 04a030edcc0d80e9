// Enqueue of features into a ring buffer of columns. Rows of the queue are independent, so threads split them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "../common/dtypes.h"

namespace blip_fast {
namespace {

using torch::stable::Tensor;

constexpr int64_t kElementsPerThread = 1 << 15;  // fewer are not worth waking a thread

template <class Q, class F>
void write_columns(Tensor& queue, const Tensor& features, int64_t pointer) {
  const int64_t rows = queue.size(0), size = queue.size(1), count = features.size(0);
  const int64_t skipped = std::max<int64_t>(0, count - size);  // rows that later ones would overwrite
  Q* const out = static_cast<Q*>(queue.mutable_data_ptr());
  const F* const in = static_cast<const F*>(features.const_data_ptr());
  const int64_t grain = 1 + kElementsPerThread / std::max<int64_t>(1, count - skipped);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      int64_t column = (pointer + skipped) % size;
      for (int64_t i = skipped; i < count; ++i) {
        out[e * size + column] = static_cast<Q>(in[i * rows + e]);
        column = column + 1 == size ? 0 : column + 1;
      }
    }
  });
}

void enqueue_(Tensor queue, Tensor features, Tensor pointer) {
  int64_t& position = *static_cast<int64_t*>(pointer.mutable_data_ptr());
  STD_TORCH_CHECK(position >= 0 && position < queue.size(1), "pointer is ", position,
                  "; expected a column of the queue");
  if (queue.scalar_type() == ScalarType::Long) {
    write_columns<int64_t, int64_t>(queue, features, position);
  } else {
    dispatch_float(queue.scalar_type(), [&](auto q) {
      dispatch_float(features.scalar_type(), [&](auto f) {
        write_columns<typename decltype(q)::type, typename decltype(f)::type>(queue, features, position);
      });
    });
  }
  position = (position + features.size(0)) % queue.size(1);
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def("enqueue_(Tensor(a!) queue, Tensor features, Tensor(b!) pointer) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) { m.impl("enqueue_", TORCH_BOX(&blip_fast::enqueue_)); }
