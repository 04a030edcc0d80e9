#include "matmul.h"

namespace blip_fast {
namespace {

template <class Isa, int R, int C>
BLIP_FAST_INLINE void tile(const Product& p, int64_t row, int64_t column) {
  using Vector = typename Isa::Vector;
  constexpr int W = Isa::kWidth;
  const float* a = p.a.data + row * p.a.row;
  const float* b = p.b + column;
  float* c = p.c + row * p.ldc + column;
  Vector sum[R][C];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) sum[r][j] = p.add ? load<Vector>(c + r * p.ldc + j * W) : Vector{};
  }
  for (int64_t k = 0; k < p.depth; ++k) {
    Vector b_row[C];
    for (int j = 0; j < C; ++j) b_row[j] = load<Vector>(b + k * p.ldb + j * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const float x = a[r * p.a.row + k * p.a.column];
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) sum[r][j] += b_row[j] * x;
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) store(c + r * p.ldc + j * W, sum[r][j]);
  }
}

// The rows left over, fewer than R + 1: a tile of just that height.
template <class Isa, int R, int C>
BLIP_FAST_INLINE void rest(const Product& p, int64_t row, int64_t column) {
  if constexpr (R > 0) {
    if (p.rows - row == R) return tile<Isa, R, C>(p, row, column);
    rest<Isa, R - 1, C>(p, row, column);
  }
}

// The share of the rows [row, row + count) of p in what is to be fetched.
BLIP_FAST_INLINE void fetch(const Product& p, int64_t row, int64_t count) {
  for (const Prefetch& next : p.prefetch) {
    const int64_t end = next.rows * (row + count) / p.rows;
    for (int64_t r = next.rows * row / p.rows; r < end; ++r) {
      const char* const address = static_cast<const char*>(next.data) + r * next.stride;
      for (int64_t i = 0; i < next.bytes; i += 64) __builtin_prefetch(address + i, 0, 2);
    }
  }
}

template <class Isa, int R, int C>
BLIP_FAST_INLINE void columns(const Product& p, int64_t column) {
  int64_t row = 0;
  for (; row + R <= p.rows; row += R) {
    if (column == 0) fetch(p, row, R);
    tile<Isa, R, C>(p, row, column);
  }
  rest<Isa, R - 1, C>(p, row, column);
}

// Narrow tiles are taller, so that enough sums are in flight to hide the latency of a multiply-add.
template <class Isa>
BLIP_FAST_INLINE void multiply_body(const Product& p) {
  constexpr int W = Isa::kWidth;
  for (int64_t column = 0; column < p.columns; column += Isa::kColumns * W) {
    const int64_t left = (p.columns - column) / W;
    if constexpr (Isa::kColumns == 4) {
      if (left >= 4) {
        columns<Isa, 6, 4>(p, column);
      } else if (left == 3) {
        columns<Isa, 8, 3>(p, column);
      } else if (left == 2) {
        columns<Isa, 12, 2>(p, column);
      } else {
        columns<Isa, 16, 1>(p, column);
      }
    } else if (left >= 2) {
      columns<Isa, 6, 2>(p, column);
    } else {
      columns<Isa, 8, 1>(p, column);
    }
  }
}

}  // namespace

#if defined(BLIP_FAST_X86)
template <>
BLIP_FAST_TARGET_AVX512 void multiply<Avx512>(const Product& product) {
  multiply_body<Avx512>(product);
}

template <>
BLIP_FAST_TARGET_AVX2 void multiply<Avx2>(const Product& product) {
  multiply_body<Avx2>(product);
}
#endif

template <>
void multiply<Portable>(const Product& product) {
  multiply_body<Portable>(product);
}

}  // namespace blip_fast
