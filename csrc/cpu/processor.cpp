// What is to be known about this processor before work is given to it.
#include <torch/csrc/stable/library.h>

#include "gemm_bf16.h"
#include "simd.h"

#if defined(BLIP_FAST_X86)
#include <cpuid.h>
#endif

namespace blip_fast {
namespace {

// MKL, which multiplies torch's fp32 matrices, uses AVX2 on AMD's processors. From family 26 (Zen 5) on their AVX-512
// is twice as wide; before, it is as wide as AVX2.
bool outruns_mkl() {
#if defined(BLIP_FAST_X86)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__builtin_cpu_is("amd") || !has_avx512() || __get_cpuid(1, &a, &b, &c, &d) == 0) return false;
  const unsigned family = (a >> 8 & 0xf) + (a >> 20 & 0xff);
  return family >= 26;
#else
  return false;
#endif
}

// Elsewhere MKL, or what torch has instead, uses the widest vectors that there are.
bool mkl_at_full_rate() {
#if defined(BLIP_FAST_X86)
  return !__builtin_cpu_is("amd") || !has_avx512();
#else
  return true;
#endif
}

// Large matrices are multiplied faster than by any processor's fp32 arithmetic (gemm_thirds.h).
bool multiplies_by_thirds() { return has_amx(); }

// Operations that fuse work around bfloat16 products multiply in bfloat16 (gemm_bf16.h), not in fp32.
bool multiplies_in_bf16() { return has_bf16_products(); }

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def("outruns_mkl() -> bool");
  m.def("mkl_at_full_rate() -> bool");
  m.def("multiplies_by_thirds() -> bool");
  m.def("multiplies_in_bf16() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CompositeExplicitAutograd, m) {
  m.impl("outruns_mkl", TORCH_BOX(&blip_fast::outruns_mkl));
  m.impl("mkl_at_full_rate", TORCH_BOX(&blip_fast::mkl_at_full_rate));
  m.impl("multiplies_by_thirds", TORCH_BOX(&blip_fast::multiplies_by_thirds));
  m.impl("multiplies_in_bf16", TORCH_BOX(&blip_fast::multiplies_in_bf16));
}
