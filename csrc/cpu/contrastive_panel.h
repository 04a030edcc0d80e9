// A few rows of features against one tile of keys: softmax weights, and the sum of weighted keys.
//
// Matrices of a panel hold its rows innermost, so that vectors run over rows, and neither product in fp32 needs its
// keys transposed: scores^T = keys X^T and expected^T = keys^T weights^T.
#pragma once

#include "simd.h"  // first: it silences a warning about vectors in the headers below

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../common/exp.h"
#include "matmul.h"

namespace blip_fast {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

struct Panel {
  int64_t rows;     // a multiple of the widest vector
  int64_t embed;    // E
  int64_t keys;     // in the tile
  float scale;      // log2(e) / temp
  float* scores;    // (keys, rows): products feature . key, then weights
  float* sum;       // (E, rows): scratch
  float* expected;  // (E, rows): sum of weight * key over all tiles
  float* maximum;   // (rows): of the logits to base 2
  float* total;     // (rows): sum of weights
  float* carry;     // (rows): what rounding has added to total (Kahan): hundreds of tiles would make it several units
  float* factor;    // (rows): what brings earlier sums to the new maximum
};

// Scores become weights 2^(logit - maximum); maximum, total and factor follow.
struct Weights {
  template <class Isa>
  static BLIP_FAST_INLINE void run(const Panel& p) {
    for (int64_t r = 0; r < p.rows; r += Isa::kWidth) run_lanes<Isa>(p, r);
  }

 private:
  template <class Isa>
  static BLIP_FAST_INLINE void run_lanes(const Panel& p, int64_t r) {
    using Vector = typename Isa::Vector;
    float* const scores = p.scores + r;
    const Vector maximum = load<Vector>(p.maximum + r);
    Vector top = maximum;
    for (int64_t j = 0; j < p.keys; ++j) {
      const Vector logit = load<Vector>(scores + j * p.rows) * p.scale;
      top = logit > top ? logit : top;
    }
    const Vector shift = top == kMinusInf ? Vector{} : top;  // -inf - -inf would be NaN
    const Vector factor = exp2_of<Vector, typename Isa::Bits>(maximum - shift);
    Vector sum{};
    for (int64_t first = 0; first < p.keys; first += 16) {  // in two levels, for the sake of rounding
      Vector part{};
      for (int64_t j = first; j < std::min<int64_t>(first + 16, p.keys); ++j) {
        const Vector logit = load<Vector>(scores + j * p.rows) * p.scale;
        const Vector weight = exp2_of<Vector, typename Isa::Bits>(logit - shift);
        store(scores + j * p.rows, weight);
        part += weight;
      }
      sum += part;
    }
    const Vector before = load<Vector>(p.total + r) * factor;
    const Vector increment = sum - load<Vector>(p.carry + r) * factor;
    const Vector total = before + increment;
    store(p.carry + r, (total - before) - increment);
    store(p.total + r, total);
    store(p.maximum + r, top);
    store(p.factor + r, factor);
  }
};

// expected = expected * factor + sum. A tile is summed on its own: one chain over all keys would round more.
struct AddSum {
  template <class Isa>
  static BLIP_FAST_INLINE void run(const Panel& p) {
    using Vector = typename Isa::Vector;
    for (int64_t e = 0; e < p.embed; ++e) {
      for (int64_t r = 0; r < p.rows; r += Isa::kWidth) {
        float* const expected = p.expected + e * p.rows + r;
        const Vector rescaled = load<Vector>(expected) * load<Vector>(p.factor + r);
        store(expected, rescaled + load<Vector>(p.sum + e * p.rows + r));
      }
    }
  }
};

}  // namespace blip_fast
