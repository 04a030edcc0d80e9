#include "gemm_bf16_dots.h"

#include <array>
#include <utility>

#include "simd.h"

#if defined(BLIP_FAST_X86)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace blip_fast {

#if defined(BLIP_FAST_X86)
namespace {

#define BLIP_FAST_TARGET_BF16 __attribute__((target("arch=x86-64-v4,avx512bf16")))

constexpr int64_t kSlice = 256;    // of the depth: 16 KB of a panel in the first cache
constexpr int64_t kMostRows = 14;  // with two vectors of sums each, two of the panel and a pair: 31 of 32 registers

template <int kRows>
BLIP_FAST_TARGET_BF16 void multiply_rows(Operand<BFloat16> a, int64_t depth, const BFloat16* panel, float* c,
                                         int64_t c_stride, bool accumulate) {
  __m512 left[kRows], right[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) left[i] = right[i] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k += 2, panel += 2 * kPanelColumns) {
    const auto b_left = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel));
    const auto b_right = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel + kPanelColumns));
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      int pair;
      memcpy(&pair, a.data + i * a.row_stride + k, sizeof pair);
      const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
      left[i] = _mm512_dpbf16_ps(left[i], x, b_left);
      right[i] = _mm512_dpbf16_ps(right[i], x, b_right);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    float* const row = c + i * c_stride;
    if (accumulate) left[i] = _mm512_add_ps(left[i], _mm512_loadu_ps(row));
    if (accumulate) right[i] = _mm512_add_ps(right[i], _mm512_loadu_ps(row + 16));
    _mm512_storeu_ps(row, left[i]);
    _mm512_storeu_ps(row + 16, right[i]);
  }
}

using Kernel = void (*)(Operand<BFloat16>, int64_t, const BFloat16*, float*, int64_t, bool);

template <size_t... i>
constexpr std::array<Kernel, sizeof...(i)> kernels_of(std::index_sequence<i...>) {
  return {multiply_rows<static_cast<int>(i) + 1>...};
}

constexpr auto kKernels = kernels_of(std::make_index_sequence<kMostRows>());  // kKernels[i] takes i + 1 rows

bool has_avx512_bf16() {
  constexpr unsigned kBf16 = 1u << 5;  // of EAX
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kBf16) != 0;
}

}  // namespace

bool has_fast_bf16_dots() {
  static const bool has = __builtin_cpu_is("amd") && has_avx512_bf16();
  return has;
}

void multiply_panel_by_dots(Operand<BFloat16> a, int64_t rows, int64_t depth, const BFloat16* panel, float* c,
                            int64_t c_stride, bool accumulate) {
  const int64_t steps = ceil_div(rows, kMostRows);
  for (int64_t k = 0; k < depth; k += kSlice) {
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t row = rows * step / steps, next = rows * (step + 1) / steps;
      const Operand<BFloat16> part{a.data + row * a.row_stride + k, a.row_stride};
      kKernels[next - row - 1](part, std::min(kSlice, depth - k), panel + k * kPanelColumns, c + row * c_stride,
                               c_stride, accumulate || k > 0);
    }
  }
}

#else

bool has_fast_bf16_dots() { return false; }

void multiply_panel_by_dots(Operand<BFloat16>, int64_t, int64_t, const BFloat16*, float*, int64_t, bool) {
  STD_TORCH_CHECK(false, "this processor has no dot products of bfloat16");
}

#endif

}  // namespace blip_fast
