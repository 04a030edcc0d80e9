// Gradients of y = x W^T + b in fp32: dx = dy W, dW = dy^T x, db = sum of dy's rows.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "matmul_thirds.h"

namespace blip_fast {
namespace {

using torch::stable::Tensor;

// Panels of a matrix (depth x columns) that lies row by row.
Buffer<float> pack(const float* matrix, int64_t depth, int64_t columns) {
  Buffer<float> panels = buffer<float>(padded_to_panels(columns) * depth);
  parallel(panel_count(columns), [&](int64_t p) {
    const int64_t first = p * kPanelColumns;
    pack_panel(matrix + first, columns, depth, std::min(kPanelColumns, columns - first), panels.get() + first * depth);
  });
  return panels;
}

Side side(Operand<float> a) {
  return a.depth_stride == 1 ? Side{a.data, a.row_stride, true} : Side{a.data, a.depth_stride, false};
}

// out (rows x columns) = a (rows x depth) b (depth x columns)
void multiply(Operand<float> a, const float* b, int64_t rows, int64_t depth, int64_t columns, float* out) {
  if (depth == 0) std::fill_n(out, rows * columns, 0.0f);
  if (depth == 0 || rows == 0) return;
  if (has_amx() && multiply_by_thirds(side(a), {b, columns, false}, rows, depth, columns, out)) return;
  const Buffer<float> panels = pack(b, depth, columns);
  const int64_t blocks = ceil_div(rows, kBlock), across = panel_count(columns);
  parallel(blocks * across, [&](int64_t task) {
    const int64_t block = task / across, column = task % across * kPanelColumns;
    const int64_t row = rows * block / blocks, end = rows * (block + 1) / blocks;
    const size_t bytes = std::min(kPanelColumns, columns - column) * sizeof(float);
    alignas(64) float tile[kBlock * kPanelColumns];  // sums over the depth stay in the first-level cache
    multiply_panel({a.data + row * a.row_stride, a.row_stride, a.depth_stride}, end - row, depth,
                   panels.get() + column * depth, tile, kPanelColumns, false);
    for (int64_t i = row; i < end; ++i) memcpy(out + i * columns + column, tile + (i - row) * kPanelColumns, bytes);
  });
}

// Sums of up to 64 columns, in fp32 over 32 rows at a time.
BLIP_FAST_MULTIVERSION void sum_columns(const float* matrix, int64_t rows, int64_t stride, int64_t columns,
                                        float* out) {
  double totals[64] = {};
  for (int64_t row = 0; row < rows; row += 32) {
    float sums[64] = {};
    for (int64_t i = row; i < std::min<int64_t>(row + 32, rows); ++i) {
      for (int64_t j = 0; j < columns; ++j) sums[j] += matrix[i * stride + j];
    }
    for (int64_t j = 0; j < columns; ++j) totals[j] += sums[j];
  }
  for (int64_t j = 0; j < columns; ++j) out[j] = static_cast<float>(totals[j]);
}

void sum_rows(const float* matrix, int64_t rows, int64_t columns, float* out) {
  parallel(ceil_div(columns, 64), [&](int64_t task) {
    const int64_t first = task * 64;
    sum_columns(matrix + first, rows, columns, std::min<int64_t>(64, columns - first), out + first);
  });
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(Tensor grad_output, Tensor input, Tensor weight, bool need_input,
                                                   bool need_weight, bool need_bias) {
  const int64_t rows = input.size(0), depth = input.size(1), columns = weight.size(0);
  const auto gradient = [&](bool wanted, const Tensor& like) {
    return wanted ? torch::stable::empty_like(like) : torch::stable::new_empty(like, {0});
  };
  Tensor grad_input = gradient(need_input, input), grad_weight = gradient(need_weight, weight);
  Tensor grad_bias = torch::stable::new_empty(weight, {need_bias ? columns : 0});
  const auto* dy = static_cast<const float*>(grad_output.const_data_ptr());
  const auto* x = static_cast<const float*>(input.const_data_ptr());
  const auto* w = static_cast<const float*>(weight.const_data_ptr());
  const auto out = [](Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); };
  if (need_input) multiply({dy, columns, 1}, w, rows, columns, depth, out(grad_input));
  if (need_weight) multiply({dy, 1, columns}, x, columns, rows, depth, out(grad_weight));
  if (need_bias) sum_rows(dy, rows, columns, out(grad_bias));
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def(
      "linear_backward(Tensor grad_output, Tensor input, Tensor weight, bool need_input, bool need_weight, "
      "bool need_bias) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) {
  m.impl("linear_backward", TORCH_BOX(&blip_fast::linear_backward));
}
