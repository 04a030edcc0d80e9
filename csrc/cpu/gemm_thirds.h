// Products of fp32 matrices by products of bfloat16, on processors with AMX (has_amx()): as exact as fp32's
// own, at more than their rate.
//
// A number of 24 bits is the sum of three of bfloat16, x = x1 + x2 + x3, each what rounding left of the ones before
// (arXiv 1904.06376). Of the nine products of two numbers six are added, x1 y1, x1 y2, x2 y1, x1 y3, x2 y2 and x3 y1;
// the others are below 2^-25 of the result. Two things differ from fp32: results below 2^-126 count as zero, and where
// an element is infinite or a sum overflows, the result is infinite or NaN, but not always which of the two fp32 says:
// who finds a result that is not finite multiplies again in fp32.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "gemm_bf16.h"

namespace blip_fast {

// Of one element, x1 to x3. In a panel the thirds of many lie apart; only its size counts.
struct Thirds {
  BFloat16 part[3];
};

template <>
struct Packing<Thirds> {
  static int64_t padded(int64_t depth) { return ceil_div(depth, 32) * 32; }
};

constexpr int64_t kLongestSum = 1024;  // sums over more of the depth are added in fp32, which rounds less

// Either operand in fp32: A(i, k), or B(k, i), is data[i * stride + k] if `along`, else data[k * stride + i].
struct Side {
  const float* data;
  int64_t stride;
  bool along;  // the depth is contiguous

  Side from(int64_t i, int64_t k) const { return {data + (along ? i * stride + k : k * stride + i), stride, along}; }
};

// Up to 32 rows of A, or columns of B, as a panel; they and the depth are padded with zeros.
void pack_left(Side a, int64_t rows, int64_t depth, Thirds* panel);
void pack_right(Side b, int64_t columns, int64_t depth, Thirds* panel);

// Tiles for up to 32 rows, from here to the end of the scope; they cost as much as half a product of a depth of 64.
class Tiles {
 public:
  explicit Tiles(int64_t rows);
  ~Tiles();
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// c (up to 32 rows, 32 columns) = A B for a panel of either; the depth is padded. Needs Tiles for these rows.
void multiply_panels(const Thirds* left, int64_t rows, int64_t depth, const Thirds* right, float* c, int64_t c_stride);

// A in panels of 32 rows, one behind the other. The depth of each is row_stride; a part of it begins 32 elements on for
// each of the depth.
template <>
struct Operand<Thirds> {
  const Thirds* data;
  int64_t row_stride;
};

// As in gemm.h, of any number of rows.
void multiply_panel(Operand<Thirds> a, int64_t rows, int64_t depth, const Thirds* panel, float* c, int64_t c_stride,
                    bool accumulate);

// Adds a tile of 32 x 32 to a part of a matrix.
void add_tile(const float* tile, int64_t rows, int64_t columns, float* matrix, int64_t stride);

bool all_finite(const float* matrix, int64_t rows, int64_t columns, int64_t stride);
inline bool all_finite(const torch::stable::Tensor& floats) {
  return all_finite(static_cast<const float*>(floats.const_data_ptr()), 1, floats.numel(), 0);
}

}  // namespace blip_fast
