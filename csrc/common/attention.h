// Arithmetic of attention that all its kernels share: the online softmax and the coordinates of dropout.
//
// Scores are in units of log2: score = q . k * scale * log2(e), so that probabilities are powers of two.
#pragma once

#include "exp.h"
#include "philox.h"

namespace blip_fast {

constexpr float kNoScore = -__builtin_inff();

// What is subtracted from the scores of a row: its maximum, or 0 where every score is -inf (or NaN, which then shows).
template <class Float>
BLIP_FAST_HOST_DEVICE Float softmax_shift(Float maximum) {
  return maximum == kNoScore ? Float{} : maximum;
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
