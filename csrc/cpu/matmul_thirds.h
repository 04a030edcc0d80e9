// The product of two fp32 matrices by thirds (gemm_thirds.h), shared out to all threads.
#pragma once

#include <functional>

#include "gemm_thirds.h"

namespace blip_fast {

// Part of a matrix.
struct Area {
  int64_t row, rows, column, columns;
};

// Called once for each part of the result, when it is there and still in the cache.
using Finish = std::function<void(const Area&)>;

// out (rows x columns, contiguous) = a b. Returns whether all sums are finite. depth > 0
bool multiply_by_thirds(Side a, Side b, int64_t rows, int64_t depth, int64_t columns, float* out,
                        const Finish& finish = {});

}  // namespace blip_fast
