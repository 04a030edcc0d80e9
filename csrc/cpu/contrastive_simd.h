// Vectors of W floats, 2^x on them, and the register tile from which matrix products are built.
//
// Code written on these is instantiated once per instruction set, in a function that carries its BLIP_FAST_AVX*
// attribute, and picked at run time by instruction_set(). Everything here is inlined there.
#pragma once

#include <cstdint>

#include "../common/macros.h"

#define BLIP_FAST_INLINE inline __attribute__((always_inline))
#define BLIP_FAST_UNROLL _Pragma("GCC unroll 16")

#if defined(BLIP_FAST_HAVE_TARGET_CLONES)
#define BLIP_FAST_AVX512 __attribute__((target("arch=x86-64-v4")))
#define BLIP_FAST_AVX2 __attribute__((target("arch=x86-64-v3")))
#else
#define BLIP_FAST_AVX512
#define BLIP_FAST_AVX2
#endif

namespace blip_fast {

enum class InstructionSet { kPortable, kAvx2, kAvx512 };

inline InstructionSet instruction_set() {
#if defined(BLIP_FAST_HAVE_TARGET_CLONES)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd")) {
    return InstructionSet::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    return InstructionSet::kAvx2;
  }
#endif
  return InstructionSet::kPortable;
}

template <int W>
struct Simd {
  typedef float Float __attribute__((vector_size(4 * W)));
  typedef int32_t Int __attribute__((vector_size(4 * W)));
};

// x = 2^x for x <= 0 or NaN, 2e-7 relative; below 2^-126 the result is 0. Polynomial: least maximum of the relative
// error.
template <int W>
BLIP_FAST_INLINE void exp2_nonpositive(typename Simd<W>::Float& x) {
  using Float = typename Simd<W>::Float;
  using Int = typename Simd<W>::Int;
  x = x < -127.0f ? Float{} - 127.0f : x;  // keeps NaN
  const Float shifted = x + 12582912.0f;   // 1.5 * 2^23: the low bits hold round(x)
  const Float f = x - (shifted - 12582912.0f);
  Float p = f * 1.5353362e-04f + 1.3398874e-03f;
  p = p * f + 9.6184374e-03f;
  p = p * f + 5.5503325e-02f;
  p = p * f + 2.4022648e-01f;
  p = p * f + 6.9314720e-01f;
  p = p * f + 1.0f;
  const Int exponent = ((Int)shifted - (0x4b400000 - 127)) << 23;
  x = p * (Float)exponent;
}

// c[m][v] += sum_k a[k * stride_k + m * stride_m] * b[k * V + v]: M broadcast scalars times V vectors in registers.
template <int W, int M, int V>
BLIP_FAST_INLINE void multiply_tile(const float* a, int64_t stride_k, int64_t stride_m, const float* b, int64_t depth,
                                    typename Simd<W>::Float (&c)[M][V]) {
  using Float = typename Simd<W>::Float;
  const Float* b_vectors = reinterpret_cast<const Float*>(b);
  for (int64_t k = 0; k < depth; ++k) {
    Float b_k[V];
    BLIP_FAST_UNROLL
    for (int v = 0; v < V; ++v) b_k[v] = b_vectors[k * V + v];
    BLIP_FAST_UNROLL
    for (int m = 0; m < M; ++m) {
      BLIP_FAST_UNROLL
      for (int v = 0; v < V; ++v) c[m][v] += a[k * stride_k + m * stride_m] * b_k[v];
    }
  }
}

}  // namespace blip_fast
