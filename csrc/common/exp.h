// 2^x and e^x in fp32, to 1e-7 relative, by a polynomial: for loops that compilers vectorise, and for vector types.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace blip_fast {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

// x = n + f with |f| <= 1/2; 2^f by a minimax polynomial of degree 6; 2^n by its exponent bits. Up to -127 the result is 0,
// from 128 on it is infinite; NaN stays NaN. Float and Bits are float and uint32_t, or GCC vectors of them.
template <class Float, class Bits>
BLIP_FAST_HOST_DEVICE Float exp2_of(Float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  x = x < -127.0f ? Float{} - 127.0f : x;
  x = x > 128.0f ? Float{} + 128.0f : x;
  const Float rounded = x + kRound;
  const Float f = x - (rounded - kRound);
  Float p = f * 1.53458124e-4f + 1.33999309e-3f;
  p = p * f + 9.61848907e-3f;
  p = p * f + 5.55032864e-2f;
  p = p * f + 2.40226462e-1f;
  p = p * f + 6.93147182e-1f;
  p = p * f + 1.0f;
  Bits bits;
  memcpy(&bits, &rounded, sizeof bits);
  bits = (bits + 127u) << 23;
  Float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

BLIP_FAST_HOST_DEVICE float exp2_fast(float x) { return exp2_of<float, uint32_t>(x); }
BLIP_FAST_HOST_DEVICE float exp_fast(float x) { return exp2_fast(x * kLog2E); }

}  // namespace blip_fast
