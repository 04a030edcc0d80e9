// Rows of float32, bfloat16 or float16 to fp32 and back, in loops that compilers vectorise.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

#include "../common/macros.h"
#include "simd.h"

namespace blip_fast {

BLIP_FAST_INLINE float to_float(float x) { return x; }

BLIP_FAST_INLINE float to_float(torch::headeronly::BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.x) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

BLIP_FAST_INLINE void from_float(float x, float* out) { *out = x; }

// To the nearest, ties to even; NaN stays NaN.
BLIP_FAST_INLINE void from_float(float x, torch::headeronly::BFloat16* out) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->x = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

#if defined(__FLT16_MAX__)  // the compiler converts in hardware where the target can
BLIP_FAST_INLINE float to_float(torch::headeronly::Half x) {
  _Float16 value;
  memcpy(&value, &x.x, sizeof value);
  return static_cast<float>(value);
}

BLIP_FAST_INLINE void from_float(float x, torch::headeronly::Half* out) {
  const _Float16 value = static_cast<_Float16>(x);
  memcpy(&out->x, &value, sizeof value);
}
#else
BLIP_FAST_INLINE float to_float(torch::headeronly::Half x) { return static_cast<float>(x); }
BLIP_FAST_INLINE void from_float(float x, torch::headeronly::Half* out) {
  *out = static_cast<torch::headeronly::Half>(x);
}
#endif

template <class T>
BLIP_FAST_INLINE void load_row(float* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

template <class T>
BLIP_FAST_INLINE void store_row(T* to, const float* from, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) from_float(from[i] * factor, to + i);
}

template <class From, class To>
BLIP_FAST_MULTIVERSION void convert(const From* from, int64_t count, To* to) {
  for (int64_t i = 0; i < count; ++i) from_float(to_float(from[i]), to + i);
}

}  // namespace blip_fast
