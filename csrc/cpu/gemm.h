// Single-precision matrix products at the rate of the fused multiply-add units, for operations that fuse work around
// them.
//
// C (rows x columns) = A (rows x depth) B (depth x columns). B is packed into panels of 32 columns, zero padded; A is
// read where it lies, with any strides. A caller passes up to about 128 rows at a time, so that they stay in the
// second-level cache. Sums are taken over 128 products, then over those sums, in order: more accurate than one long
// sum, and the result depends neither on the tiling (depths split at multiples of 128) nor on the number of threads.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "../common/dtypes.h"
#include "../common/macros.h"
#include "convert.h"
#include "parallel.h"

namespace blip_fast {

constexpr int64_t kPanelColumns = 32;
constexpr int64_t kBlock = 128;  // rows of a product that stay in the second-level cache

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t panel_count(int64_t columns) { return ceil_div(columns, kPanelColumns); }
inline int64_t padded_to_panels(int64_t columns) { return panel_count(columns) * kPanelColumns; }

// How a panel holds elements of type E: those of kPair consecutive rows side by side, up to a padded depth.
template <class E>
struct Packing;

template <>
struct Packing<float> {
  static constexpr int64_t kPair = 1;
  static int64_t padded(int64_t depth) { return depth; }
};

// Element (k, j) of the panel.
template <class E>
E* at(E* panel, int64_t k, int64_t j) {
  constexpr int64_t kPair = Packing<E>::kPair;
  return panel + (k / kPair * kPanelColumns + j) * kPair + k % kPair;
}

// The left operand, A.
template <class E>
struct Operand;

// Element (i, k) of A is data[i * row_stride + k * depth_stride].
template <>
struct Operand<float> {
  const float* data;
  int64_t row_stride;
  int64_t depth_stride;
};

inline Operand<float> row_operand(const float* data, int64_t stride) { return {data, stride, 1}; }

// c[i * c_stride + j] = sum_k A(i, k) panel[k * 32 + j], added to c where `accumulate`; j runs over all 32 columns.
void multiply_panel(Operand<float> a, int64_t rows, int64_t depth, const float* panel, float* c, int64_t c_stride,
                    bool accumulate);

// out (columns x 32) = transpose of a block (rows x columns), of up to 32 rows; zeros for missing ones.
void transpose_block(const float* block, int64_t stride, int64_t rows, int64_t columns, float* out, int64_t out_stride);

// Uninitialised elements on a cache line.
struct Free {
  void operator()(void* data) const { std::free(data); }
};
template <class E>
using Buffer = std::unique_ptr<E[], Free>;

template <class E>
Buffer<E> buffer(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(E) + 63) / 64 * 64;
  auto* data = static_cast<E*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64)));
  STD_TORCH_CHECK(data != nullptr, "out of memory: ", bytes, " bytes of scratch");
  return Buffer<E>(data);
}

// One panel from rows of B: 32 (or `columns`) consecutive elements of each.
template <class T>
BLIP_FAST_MULTIVERSION void pack_panel(const T* b, int64_t stride, int64_t depth, int64_t columns, float* panel) {
  for (int64_t k = 0; k < depth; ++k, b += stride, panel += kPanelColumns) {
    if (columns == kPanelColumns) {
      for (int64_t j = 0; j < kPanelColumns; ++j) panel[j] = to_float(b[j]);
    } else {
      for (int64_t j = 0; j < kPanelColumns; ++j) panel[j] = j < columns ? to_float(b[j]) : 0.0f;
    }
  }
}

}  // namespace blip_fast
