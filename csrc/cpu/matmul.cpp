#include "matmul.h"

namespace blip_fast {
namespace {

// One step of the depth: sum += A's column k times B's row k.
template <class Isa, int R, int C>
BLIP_FAST_INLINE void step(const float* a, const Product& p, const float* b, int64_t k,
                           typename Isa::Vector (&sum)[R][C]) {
  using Vector = typename Isa::Vector;
  Vector b_row[C];
  for (int j = 0; j < C; ++j) b_row[j] = load<Vector>(b + k * p.ldb + j * Isa::kWidth);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const float x = a[r * p.a.row + k * p.a.column];
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) sum[r][j] += b_row[j] * x;
  }
}

// Every S-th step of the depth goes to the same one of S sums: shorter sums round less.
template <class Isa, int R, int C, int S>
BLIP_FAST_INLINE void tile(const Product& p, int64_t row, int64_t column) {
  using Vector = typename Isa::Vector;
  constexpr int W = Isa::kWidth;
  const float* a = p.a.data + row * p.a.row;
  const float* b = p.b + column;
  float* c = p.c + row * p.ldc + column;
  Vector sum[S][R][C] = {};
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) {
      if (p.add) sum[0][r][j] = load<Vector>(c + r * p.ldc + j * W);
    }
  }
  int64_t k = 0;
#pragma GCC unroll 4  // with AVX2 1.05x to 1.1x as fast
  for (; k + S <= p.depth; k += S) {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) step<Isa, R, C>(a, p, b, k + s, sum[s]);
  }
  for (; k < p.depth; ++k) step<Isa, R, C>(a, p, b, k, sum[0]);
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) {
      Vector total = sum[0][r][j];
      for (int s = 1; s < S; ++s) total += sum[s][r][j];
      store(c + r * p.ldc + j * W, total);
    }
  }
}

// The rows left over, fewer than R + 1: a tile of just that height.
template <class Isa, int R, int C, int S>
BLIP_FAST_INLINE void rest(const Product& p, int64_t row, int64_t column) {
  if constexpr (R > 0) {
    if (p.rows - row == R) return tile<Isa, R, C, S>(p, row, column);
    rest<Isa, R - 1, C, S>(p, row, column);
  }
}

template <class Isa, int R, int C, int S = 1>
BLIP_FAST_INLINE void columns(const Product& p, int64_t column) {
  int64_t row = 0;
  for (; row + R <= p.rows; row += R) {
    for (const Prefetch& next : p.prefetch) {
      if (column == 0 && next.rows > 0) next.fetch(row, row + R, p.rows);
    }
    tile<Isa, R, C, S>(p, row, column);
  }
  rest<Isa, R - 1, C, S>(p, row, column);
}

// Narrow tiles are taller or have more sums, so that enough of them are in flight to hide the latency of a
// multiply-add.
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
        columns<Isa, 12, 1, 2>(p, column);
      }
    } else if (left >= 2) {
      columns<Isa, 6, 2>(p, column);
    } else {
      columns<Isa, 6, 1, 2>(p, column);
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
