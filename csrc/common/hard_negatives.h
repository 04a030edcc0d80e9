// Arithmetic of the hard-negative draw in 64-bit fixed point: sums do not depend on their order, so that every backend
// makes the same picks. The same functions in torch: blip_fast/reference/hard_negatives.py.
#pragma once

#include <algorithm>
#include <cmath>

#include "philox.h"

namespace blip_fast {

// a * b for numbers below 2^32, or vectors of them: AVX2 has no product of 64 bits, and Intel's AVX-512 one that takes
// three times as long.
template <class U>
BLIP_FAST_HOST_DEVICE U product_32(U a, U b) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__CUDACC__)
  if constexpr (sizeof(U) >= 32) {
    U product;
    asm("vpmuludq %2, %1, %0" : "=v"(product) : "v"(a), "v"(b));
    return product;
  }
#endif
  return a * b;
}

// exp(t) * 2^bits for t <= 0, relative error 2e-7; 0 where t <= -32 or NaN.
struct FixedPointExp {
  int drop;  // 40 - bits

  // As many bits, up to 40, as keep the sum of a row's weights below 2^62.
  FixedPointExp(int64_t columns, double epsilon)
      : drop(std::max(0, static_cast<int>(std::ceil(std::log2(columns * (1 + epsilon * columns)))) - 21)) {}

  BLIP_FAST_HOST_DEVICE int64_t operator()(float t) const {
    t = t > -32.0f ? t : -32.0f;
    return static_cast<int64_t>(
        of_units(static_cast<uint64_t>(static_cast<uint32_t>(static_cast<int32_t>(t * kUnits)))));
  }

  static constexpr float kUnits = -0x1p24f;

  // From -t with 24 bits after the point, for numbers or vectors of them.
  template <class U>
  BLIP_FAST_HOST_DEVICE U of_units(U base_e) const {
    const U base_2 = product_32(base_e, U{} + 1549082005u) >> 30;  // by log2(e)
    const U fraction = -base_2 & 0xFFFFFF;
    // 2^fraction on [0, 1), times 2^30: minimax of degree 6 with the constant 1, relative error 2e-9.
    U power = U{} + 232067u;
    power = 1338725u + (product_32(power, fraction) >> 24);
    power = 10388937u + (product_32(power, fraction) >> 24);
    power = 59576866u + (product_32(power, fraction) >> 24);
    power = 257944253u + (product_32(power, fraction) >> 24);
    power = 744260972u + (product_32(power, fraction) >> 24);
    power = 1073741824u + (product_32(power, fraction) >> 24);
    return ((power << 10) >> drop) >> ((base_2 + 0xFFFFFF) >> 24);
  }
};

// epsilon * sum, rounded the same way everywhere.
BLIP_FAST_HOST_DEVICE int64_t share_of(int64_t sum, float epsilon) {
  return static_cast<int64_t>(static_cast<float>(sum) * epsilon);
}

// total * r >> 62 for total < 2^62 and a 62-bit number r made of two random words: uniform in [0, total).
BLIP_FAST_HOST_DEVICE int64_t random_below(int64_t total, uint32_t x, uint32_t y) {
  const int64_t high = x >> 1, low = y >> 1, total_high = total >> 31, total_low = total & 0x7FFFFFFF;
  return total_high * high + ((total_high * low + total_low * high + ((total_low * low) >> 31)) >> 31);
}

}  // namespace blip_fast
