// The product of a few rows with one panel, in registers, for AVX-512, AVX2 and any other processor.
#include "gemm.h"

#include <array>
#include <utility>

namespace blip_fast {
namespace {

constexpr int64_t kDepth = 128;  // one sum's length: twice as long is 3 % faster and errs 1.5 times as much as eager

using Kernel = void (*)(Operand<float>, int64_t, const float*, float*, int64_t, bool);

// kRows x (2 vectors) accumulators; the panel is walked in slices of two vectors.
template <int kWidth, int kRows>
BLIP_FAST_INLINE void multiply_rows(Operand<float> a, int64_t depth, const float* panel, float* c, int64_t c_stride,
                                    bool accumulate) {
  typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));
  typedef float Unaligned __attribute__((vector_size(kWidth * sizeof(float)), aligned(sizeof(float))));
  for (int64_t slice = 0; slice < kPanelColumns; slice += 2 * kWidth) {
    Vector left[kRows], right[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      left[i] = right[i] = Vector{};
    }
    const float* in = a.data;
    const float* b = panel + slice;
#pragma GCC unroll 4  // with AVX2 1.15x as fast as one step of the depth per turn
    for (int64_t k = 0; k < depth; ++k, in += a.depth_stride, b += kPanelColumns) {
      const Vector b_left = *reinterpret_cast<const Unaligned*>(b);
      const Vector b_right = *reinterpret_cast<const Unaligned*>(b + kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const float x = in[i * a.row_stride];
        left[i] += x * b_left;
        right[i] += x * b_right;
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      float* row = c + i * c_stride + slice;
      if (accumulate) left[i] += *reinterpret_cast<const Unaligned*>(row);
      if (accumulate) right[i] += *reinterpret_cast<const Unaligned*>(row + kWidth);
      *reinterpret_cast<Unaligned*>(row) = left[i];
      *reinterpret_cast<Unaligned*>(row + kWidth) = right[i];
    }
  }
}

// As many rows as leave registers for the two vectors of B and one broadcast: 32 registers in AVX-512, else 16.
#if defined(BLIP_FAST_HAVE_TARGET_CLONES)
template <int kRows>
__attribute__((target("arch=x86-64-v4"))) void rows_avx512(Operand<float> a, int64_t depth, const float* panel,
                                                           float* c, int64_t c_stride, bool accumulate) {
  multiply_rows<16, kRows>(a, depth, panel, c, c_stride, accumulate);
}

template <int kRows>
__attribute__((target("arch=x86-64-v3"))) void rows_avx2(Operand<float> a, int64_t depth, const float* panel, float* c,
                                                         int64_t c_stride, bool accumulate) {
  multiply_rows<8, kRows>(a, depth, panel, c, c_stride, accumulate);
}
#endif

template <int kRows>
void rows_portable(Operand<float> a, int64_t depth, const float* panel, float* c, int64_t c_stride, bool accumulate) {
  multiply_rows<4, kRows>(a, depth, panel, c, c_stride, accumulate);
}

struct Kernels {
  int most_rows;
  std::array<Kernel, 14> by_rows;  // by_rows[i] takes i + 1 rows
};

#define BLIP_FAST_KERNELS(name)                                                    \
  template <size_t... i>                                                           \
  Kernels name##_kernels(std::index_sequence<i...>) {                              \
    return {static_cast<int>(sizeof...(i)), {{name<static_cast<int>(i) + 1>...}}}; \
  }

BLIP_FAST_KERNELS(rows_portable)
#if defined(BLIP_FAST_HAVE_TARGET_CLONES)
BLIP_FAST_KERNELS(rows_avx512)
BLIP_FAST_KERNELS(rows_avx2)
#endif

Kernels choose_kernels() {
#if defined(BLIP_FAST_HAVE_TARGET_CLONES)
  if (has_avx512()) return rows_avx512_kernels(std::make_index_sequence<14>());
  if (has_avx2()) return rows_avx2_kernels(std::make_index_sequence<6>());
#endif
  return rows_portable_kernels(std::make_index_sequence<6>());
}

}  // namespace

void multiply_panel(Operand<float> a, int64_t rows, int64_t depth, const float* panel, float* c, int64_t c_stride,
                    bool accumulate) {
  static const Kernels kernels = choose_kernels();
  const int64_t steps = (rows + kernels.most_rows - 1) / kernels.most_rows;
  for (int64_t k = 0; k < depth; k += kDepth) {
    const float* data = a.data + k * a.depth_stride;
    for (int64_t step = 0, row = 0; step < steps; ++step) {
      const int64_t next = rows * (step + 1) / steps;  // evenly: a step of one row runs at a fraction of the rate
      const Operand<float> part{data + row * a.row_stride, a.row_stride, a.depth_stride};
      kernels.by_rows[next - row - 1](part, std::min(kDepth, depth - k), panel + k * kPanelColumns, c + row * c_stride,
                                      c_stride, accumulate || k > 0);
      row = next;
    }
  }
}

BLIP_FAST_MULTIVERSION void transpose_block(const float* block, int64_t stride, int64_t rows, int64_t columns,
                                            float* out, int64_t out_stride) {
  for (int64_t j = 0; j < columns; ++j, out += out_stride) {
    for (int64_t i = 0; i < 32; ++i) out[i] = i < rows ? block[i * stride + j] : 0.0f;
  }
}

}  // namespace blip_fast
