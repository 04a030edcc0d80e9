// Philox4x32-10 for 64 neighbouring counters at a time, round by round, so that compilers vectorise each round.
//
// One counter after the other leaves most of each multiplication's latency idle: 2.2 ns a counter against 0.6
// (AVX-512).
#pragma once

#include "../common/philox.h"
#include "simd.h"

namespace blip_fast {

constexpr int64_t kPhiloxBlock = 64;

// words[j][i]: word j for the counter (first.x + i, first.y, first.z, first.w).
BLIP_FAST_INLINE void philox_block(const Philox& philox, PhiloxWords first, uint32_t (*words)[kPhiloxBlock]) {
  uint32_t *x = words[0], *y = words[1], *z = words[2], *w = words[3];
  for (int64_t i = 0; i < kPhiloxBlock; ++i) {
    x[i] = first.x + static_cast<uint32_t>(i);
    y[i] = first.y;
    z[i] = first.z;
    w[i] = first.w;
  }
  uint32_t key0 = philox.key0, key1 = philox.key1;
  for (int round = 0; round < 10; ++round) {
    for (int64_t i = 0; i < kPhiloxBlock; ++i) {
      const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * x[i];
      const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * z[i];
      x[i] = static_cast<uint32_t>(b >> 32) ^ y[i] ^ key0;
      z[i] = static_cast<uint32_t>(a >> 32) ^ w[i] ^ key1;
      y[i] = static_cast<uint32_t>(b);
      w[i] = static_cast<uint32_t>(a);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

}  // namespace blip_fast
