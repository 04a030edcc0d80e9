// Enqueue of features into a ring buffer of columns. Rows of the queue are independent, so threads split them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>

#include "../common/dtypes.h"

namespace blip_fast {
namespace {

using torch::stable::Tensor;

constexpr int64_t kElementsPerThread = 1 << 13;  // fewer are not worth waking a thread

// Rows [begin, end) of `count` features (count, E) into columns side by side, by way of a block that is turned in the
// cache: features are read and columns written in the order of memory.
template <class Q, class F>
void write_run(const F* features, int64_t embed, int64_t count, int64_t begin, int64_t end, Q* columns, int64_t size) {
  constexpr int64_t kRows = 16, kColumns = 128;
  Q block[kRows][kColumns];
  for (int64_t e = begin; e < end; e += kRows) {
    const int64_t rows = std::min(kRows, end - e);
    for (int64_t first = 0; first < count; first += kColumns) {
      const int64_t width = std::min(kColumns, count - first);
      for (int64_t i = 0; i < width; ++i) {
        const F* const feature = features + (first + i) * embed + e;
        for (int64_t r = 0; r < rows; ++r) block[r][i] = static_cast<Q>(feature[r]);
      }
      for (int64_t r = 0; r < rows; ++r) std::memcpy(columns + (e + r) * size + first, block[r], width * sizeof(Q));
    }
  }
}

template <class Q, class F>
void write_columns(Tensor& queue, const Tensor& features, int64_t pointer) {
  const int64_t embed = queue.size(0), size = queue.size(1), count = features.size(0);
  const int64_t skipped = std::max<int64_t>(0, count - size);  // rows that later ones would overwrite
  const int64_t column = (pointer + skipped) % size, before_end = std::min(count - skipped, size - column);
  Q* const out = static_cast<Q*>(queue.mutable_data_ptr());
  const F* const in = static_cast<const F*>(features.const_data_ptr()) + skipped * embed;
  const int64_t grain = 1 + kElementsPerThread / std::max<int64_t>(1, count - skipped);
  torch::stable::parallel_for(0, embed, grain, [&](int64_t begin, int64_t end) {
    write_run(in, embed, before_end, begin, end, out + column, size);
    write_run(in + before_end * embed, embed, count - skipped - before_end, begin, end, out, size);
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
