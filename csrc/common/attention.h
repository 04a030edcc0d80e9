// Arithmetic of attention that all its kernels share: the online softmax and the coordinates of dropout.
#pragma once

#include "exp.h"
#include "philox.h"

namespace blip_fast {

constexpr float kNoScore = -__builtin_inff();

// What a row keeps for its backward pass: probability = 2^(score * log2(e) - shift) / sum. Two numbers and not their
// logarithm: that would be rounded to 2^-22 or worse, more than all other errors of an fp32 softmax together.
struct SoftmaxStatistics {
  float shift, sum;
};

// The shift for a maximal score: 0 where every score is -inf (or NaN, which then shows in the sum).
template <class Float>
BLIP_FAST_HOST_DEVICE Float softmax_shift(Float maximum) {
  return maximum == kNoScore ? Float{} : maximum * kLog2E;
}

template <class Float, class Bits>
BLIP_FAST_HOST_DEVICE Float softmax_power(Float score, Float shift) {
  return exp2_of<Float, Bits>(score * kLog2E - shift);  // a fused multiply-add
}

// Dropout of attention probabilities (section 3.2.1 of "Attention is all you need", as BERT does it). Probability
// (text, head, query position in the text, key) is kept if its word is at least `threshold`. Words come in fours: one
// counter serves the keys {s, s + 16, s + 32, s + 48} of a block of 64, so that neither lanes nor tensor-core fragments
// need a shuffle.
struct AttentionDropout {
  static constexpr int kSlots = 16;  // counters per block of 64 keys

  Philox philox;
  uint32_t offset;
  uint32_t threshold;  // of 2^24
  float scale;         // 1 / (1 - p)

  AttentionDropout(double p, uint64_t seed, uint64_t offset)
      : philox(seed),
        offset(static_cast<uint32_t>(offset)),
        threshold(static_cast<uint32_t>(p * 0x1p24 + 0.5)),
        scale(static_cast<float>(1.0 / (1.0 - p))) {}

  bool active() const { return threshold > 0; }

  // The first word of the counter for a key and those 16, 32 and 48 after it; key % 64 < 16.
  static BLIP_FAST_HOST_DEVICE uint32_t counter(int64_t key) {
    return static_cast<uint32_t>(key / 64 * kSlots + key % 64);
  }

  BLIP_FAST_HOST_DEVICE PhiloxWords words(uint32_t counter, uint32_t position, uint32_t text_head) const {
    return philox({counter, position, text_head, offset});
  }

  BLIP_FAST_HOST_DEVICE bool keeps(uint32_t word) const { return (word >> 8) >= threshold; }
};

}  // namespace blip_fast
