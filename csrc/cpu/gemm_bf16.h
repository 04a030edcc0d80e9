// Products of bfloat16 matrices with fp32 sums, in AMX's tiles or by fast dot products of pairs (gemm_bf16_dots.h).
// Processors without either convert to fp32 and use gemm.h.
//
// C (rows x columns) = A (rows x depth) B (depth x columns), as in gemm.h, but A's rows are contiguous, and depth is a
// multiple of 32: A and B are padded with zeros. In a panel of B two elements of a column lie side by side.
#pragma once

#include "gemm.h"

namespace blip_fast {

// Both are false, too, where ONEDNN_MAX_CPU_ISA forbids the instructions.
bool has_amx();
bool has_bf16_products();

template <>
struct Packing<BFloat16> {
  static constexpr int64_t kPair = 2;
  static int64_t padded(int64_t depth) { return ceil_div(depth, 32) * 32; }
};

template <>
struct Operand<BFloat16> {
  const BFloat16* data;
  int64_t row_stride;
};

inline Operand<BFloat16> row_operand(const BFloat16* data, int64_t stride) { return {data, stride}; }

// One panel from rows of B, float or bfloat16, padded to the depth of a product.
template <class T>
void pack_panel(const T* b, int64_t stride, int64_t depth, int64_t columns, BFloat16* panel);

// As in gemm.h, of up to 32 columns.
void transpose_block(const BFloat16* block, int64_t stride, int64_t rows, int64_t columns, BFloat16* out,
                     int64_t out_stride);

void multiply_panel(Operand<BFloat16> a, int64_t rows, int64_t depth, const BFloat16* panel, float* c, int64_t c_stride,
                    bool accumulate);

}  // namespace blip_fast
