// Product of small fp32 matrices that lie in the cache: C = A B, or C += A B.
//
// A has any strides, since its elements are broadcast: a matrix, its transpose and rows of a larger one are alike. Rows
// of B and C are contiguous. A tile of C stays in registers for the whole depth.
#pragma once

#include <cstdint>

#include "simd.h"

namespace blip_fast {

struct Strided {
  const float* data;
  int64_t row, column;
};

// Rows of memory that will be wanted after a product, fetched to the L2 cache while it computes. For rows that lie
// pages apart, which no hardware prefetches.
struct Prefetch {
  const void* data = nullptr;
  int64_t stride = 0, bytes = 0;  // of a row
  int64_t rows = 0;

  // The part [begin, end) of `parts` equal ones.
  BLIP_FAST_INLINE void fetch(int64_t begin, int64_t end, int64_t parts) const {
    for (int64_t r = rows * begin / parts; r < rows * end / parts; ++r) {
      const char* const address = static_cast<const char*>(data) + r * stride;
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(address + i, 0, 2);
    }
  }
};

struct Product {
  Strided a;       // (rows, depth)
  const float* b;  // (depth, columns), rows ldb apart
  int64_t ldb;
  float* c;  // (rows, columns), rows ldc apart
  int64_t ldc;
  int64_t rows, columns, depth;  // columns: a multiple of Isa::kWidth
  bool add;                      // to what C holds
  Prefetch prefetch[2] = {};
};

template <class Isa>
void multiply(const Product& product);

#if defined(BLIP_FAST_X86)
template <>
void multiply<Avx512>(const Product& product);
template <>
void multiply<Avx2>(const Product& product);
#endif
template <>
void multiply<Portable>(const Product& product);

}  // namespace blip_fast
