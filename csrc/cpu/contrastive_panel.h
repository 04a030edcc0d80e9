// A few rows of features against one tile of keys: products, softmax weights, and the sum of weighted keys.
//
// Matrices of a panel hold its rows innermost, so that vectors run over rows and neither product needs its keys
// transposed: scores^T = keys X^T and expected^T = keys^T weights^T.
#pragma once

#include "simd.h"  // first: it silences a warning about vectors in the headers below

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../common/exp.h"
#include "matmul.h"

namespace blip_fast {

constexpr int64_t kTile = 128;      // keys per tile: at E = 256 a tile takes 128 KB of the second-level cache
constexpr int64_t kRowUnit = 16;    // the widest vector: numbers of rows are rounded up to it
constexpr int64_t kPanelRows = 64;  // at most
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

struct Panel {
  int64_t rows;           // a multiple of kRowUnit
  int64_t embed;          // E
  const float* tile;      // (E, kTile)
  int64_t keys;           // in the tile
  const float* features;  // (E, rows)
  float scale;            // log2(e) / temp
  float* scores;          // (kTile, rows): products feature . key, then weights
  float* sum;             // (E, rows): scratch
  float* expected;        // (E, rows): sum of weight * key over all tiles
  float* maximum;         // (rows): of the logits to base 2
  float* total;           // (rows): sum of weights
  float* carry;   // (rows): what rounding has added to total (Kahan): hundreds of tiles would make it several units
  float* factor;  // (rows): what brings earlier sums to the new maximum
  Prefetch next;  // where the queue continues after this tile
};

struct Scores {
  template <class Isa>
  static BLIP_FAST_INLINE void run(const Panel& p) {
    multiply<Isa>({{p.tile, 1, kTile}, p.features, p.rows, p.scores, p.rows, p.keys, p.rows, p.embed, false, {p.next}});
  }
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

// expected = expected * factor + weighted keys. The tile is summed on its own: one chain over all keys would round
// more.
struct WeightedKeys {
  template <class Isa>
  static BLIP_FAST_INLINE void run(const Panel& p) {
    using Vector = typename Isa::Vector;
    multiply<Isa>({{p.tile, kTile, 1}, p.scores, p.rows, p.sum, p.rows, p.embed, p.rows, p.keys, false});
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
