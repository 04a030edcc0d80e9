// Which elements survive dropout in dropout_add_layer_norm, shared by all backends.
#pragma once

#include "philox.h"

namespace blip_fast {

// Elements 4 c to 4 c + 3 of a row take the four words of the counter (c, row, kLayerNormTag, offset); an element is
// kept if the high 24 bits of its word are at least `threshold`.
struct HiddenDropout {
  static constexpr uint32_t kLayerNormTag = 0xFFFFFFFFu;  // no head of attention: its dropout draws other numbers

  Philox philox;
  uint32_t offset;
  uint32_t threshold;  // of 2^24
  float scale;         // 1 / (1 - p)

  HiddenDropout(double p, int64_t seed, int64_t offset)
      : philox(static_cast<uint64_t>(seed)),
        offset(static_cast<uint32_t>(offset)),
        threshold(static_cast<uint32_t>(p * 0x1p24 + 0.5)),
        scale(static_cast<float>(1.0 / (1.0 - p))) {}

  bool active() const { return threshold > 0; }

  BLIP_FAST_HOST_DEVICE PhiloxWords counter(uint32_t c, uint32_t row) const { return {c, row, kLayerNormTag, offset}; }

  BLIP_FAST_HOST_DEVICE float factor(uint32_t word) const { return (word >> 8) >= threshold ? scale : 0.0f; }
};

}  // namespace blip_fast
