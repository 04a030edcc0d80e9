// exp(x) in fp32 without a branch, so that loops over it vectorise. Host only: devices have their own.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "macros.h"

namespace blip_fast {

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
