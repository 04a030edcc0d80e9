// Philox4x32-10, the counter-based random numbers of every operation (Salmon et al., SC'11).
//
// Key: the two halves of a 64-bit seed. Counter: four words that name the number that is wanted (an offset, a row,
// ...), never a thread or a tile, so that all backends draw the same. Its twins: blip_fast/reference/philox.py,
// kernels/philox.py.
#pragma once

#include <cstdint>

#include "macros.h"

namespace blip_fast {

struct PhiloxWords {
  uint32_t x, y, z, w;
};

struct Philox {
  uint32_t key0, key1;

  BLIP_FAST_HOST_DEVICE explicit Philox(uint64_t seed)
      : key0(static_cast<uint32_t>(seed)), key1(static_cast<uint32_t>(seed >> 32)) {}

  BLIP_FAST_HOST_DEVICE PhiloxWords operator()(PhiloxWords c) const {
    uint32_t k0 = key0, k1 = key1;
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c.x;
      const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c.z;
      c = {static_cast<uint32_t>(b >> 32) ^ c.y ^ k0, static_cast<uint32_t>(b),
           static_cast<uint32_t>(a >> 32) ^ c.w ^ k1, static_cast<uint32_t>(a)};
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return c;
  }
};

// Uniform in [0, 1): the high 24 bits of a word, exact in fp32.
BLIP_FAST_HOST_DEVICE float uniform(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

}  // namespace blip_fast
