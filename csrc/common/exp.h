// 2^x and e^x in fp32, to 1e-7 relative, by a polynomial: for loops that compilers vectorise, and for vector types.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "macros.h"

namespace blip_fast {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

// x = n + f with |f| <= 1/2; 2^f by a minimax polynomial of degree 6; 2^n by its exponent bits. Below -126.5
// the result is 0, from 127.5 on it is infinite; NaN stays NaN. Float and Bits are float and uint32_t, or GCC vectors
// of them.
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

// Error at most 1 unit in the last place; NaN stays NaN, results below 2^-125 are 0.
BLIP_FAST_HOST_DEVICE float exp_fp32(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  const float shifted = x * 1.44269504088896341f + kMagic;
  const float n = shifted - kMagic;
  const float r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;  // x - n ln 2, |r| <= 0.347
  float p = 1.0f / 5040;  // Taylor series: its remainder is below 2^-28 there
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  const int32_t half_scale_bits = (bits - 0x4B400000 + 126) << 23;  // 2^(n - 1): 2^128 has no encoding
  float half_scale;
  std::memcpy(&half_scale, &half_scale_bits, sizeof(half_scale));
  float result = p * half_scale * 2.0f;
  result = x < -86.64340f ? 0.0f : result;
  return x > 88.72283f ? std::numeric_limits<float>::infinity() : result;
}

}  // namespace blip_fast
