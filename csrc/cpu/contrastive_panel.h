// A few rows of features against one tile of keys: scores, softmax weights, and the sum of weighted keys.
//
// Vectors run over rows, so that neither of the two products needs the keys transposed:
//   scores^T = keys X^T,   expected^T = keys^T weights^T.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "contrastive_simd.h"

namespace blip_fast {

constexpr int64_t kTile = 128;   // keys per tile: at E = 256 a tile takes 128 KB of the second-level cache
constexpr int64_t kVectors = 3;  // of rows in a panel, at most
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Some rows against one tile of keys. Matrices of a panel are stored with its rows innermost.
struct Panel {
  int64_t rows;           // one to kVectors vectors
  int64_t embed;          // E
  const float* tile;      // (E rounded up to 8, kTile)
  int64_t keys;           // in the tile
  const float* features;  // (E, rows)
  float scale;            // log2(e) / temp
  float* scores;          // (kTile, rows): products feature . key, then weights
  float* expected;        // (E rounded up to 8, rows): sum of weight * key
  float* maximum;         // (rows)
  float* total;           // (rows): sum of weights
  float* carry;   // (rows): what rounding has added to total (Kahan), which hundreds of tiles would make several units
  float* factor;  // (rows): what brings earlier sums to the new maximum
  // Where the queue continues after this tile, or null: E rows of ahead_bytes, ahead_stride bytes apart, too short for
  // the hardware to see them coming.
  const char* ahead;
  int64_t ahead_stride, ahead_bytes;
};

// The part [j, j + M) / keys of what comes after the tile.
template <int M>
BLIP_FAST_INLINE void prefetch_ahead(const Panel& p, int64_t j) {
  if (!p.ahead) return;
  for (int64_t e = p.embed * j / p.keys; e < std::min(p.embed, p.embed * (j + M) / p.keys); ++e) {
    for (int64_t b = 0; b < p.ahead_bytes; b += 64) __builtin_prefetch(p.ahead + e * p.ahead_stride + b, 0, 2);
  }
}

template <int W, int M, int V>
BLIP_FAST_INLINE void compute_scores(const Panel& p) {
  using Float = typename Simd<W>::Float;
  for (int64_t j = 0; j < p.keys; j += M) {
    prefetch_ahead<M>(p, j);
    Float c[M][V] = {};
    multiply_tile<W, M, V>(p.tile + j, kTile, 1, p.features, p.embed, c);
    Float* const scores = reinterpret_cast<Float*>(p.scores) + j * V;
    BLIP_FAST_UNROLL
    for (int m = 0; m < M; ++m) {
      BLIP_FAST_UNROLL
      for (int v = 0; v < V; ++v) scores[m * V + v] = c[m][v];
    }
  }
}

template <int W, int M, int V>
BLIP_FAST_INLINE void compute_weights(const Panel& p) {
  using Float = typename Simd<W>::Float;
  for (int v = 0; v < V; ++v) {
    Float* const scores = reinterpret_cast<Float*>(p.scores) + v;
    Float& maximum = reinterpret_cast<Float*>(p.maximum)[v];
    Float& total = reinterpret_cast<Float*>(p.total)[v];
    Float& carry = reinterpret_cast<Float*>(p.carry)[v];
    Float top = maximum;
    for (int64_t j = 0; j < p.keys; ++j) {
      const Float score = scores[j * V] * p.scale;
      top = score > top ? score : top;
    }
    const Float shift = top == kMinusInf ? Float{} : top;  // -inf - -inf would be NaN
    Float factor = maximum - shift;
    exp2_nonpositive<W>(factor);
    Float sum{};
    for (int64_t first = 0; first < p.keys; first += 16) {  // in two levels, for the sake of rounding
      Float part{};
      for (int64_t j = first; j < std::min<int64_t>(first + 16, p.keys); ++j) {
        Float weight = scores[j * V] * p.scale - shift;
        exp2_nonpositive<W>(weight);
        scores[j * V] = weight;
        part += weight;
      }
      sum += part;
    }
    const Float before = total * factor, increment = sum - carry * factor;
    total = before + increment;
    carry = (total - before) - increment;
    maximum = top;
    reinterpret_cast<Float*>(p.factor)[v] = factor;
  }
}

template <int W, int M, int V>
BLIP_FAST_INLINE void add_weighted_keys(const Panel& p) {
  using Float = typename Simd<W>::Float;
  const Float* const factor = reinterpret_cast<const Float*>(p.factor);
  for (int64_t e = 0; e < p.embed; e += M) {
    Float* const expected = reinterpret_cast<Float*>(p.expected) + e * V;
    Float c[M][V] = {};  // starts at 0 in each tile: a single chain over all keys would round far more
    multiply_tile<W, M, V>(p.tile + e * kTile, 1, kTile, p.scores, p.keys, c);
    BLIP_FAST_UNROLL
    for (int m = 0; m < M; ++m) {
      BLIP_FAST_UNROLL
      for (int v = 0; v < V; ++v) expected[m * V + v] = expected[m * V + v] * factor[v] + c[m][v];
    }
  }
}

enum class Step { kScores, kWeights, kSum };

template <int W, int M, int V>
BLIP_FAST_INLINE void run_step(Step step, const Panel& p) {
  switch (step) {
    case Step::kScores:
      return compute_scores<W, M, V>(p);
    case Step::kWeights:
      return compute_weights<W, M, V>(p);
    case Step::kSum:
      return add_weighted_keys<W, M, V>(p);
  }
}

template <int W, int M>
BLIP_FAST_INLINE void run_width(Step step, const Panel& p) {
  switch (p.rows / W) {
    case 1:
      return run_step<W, M, 1>(step, p);
    case 2:
      return run_step<W, M, 2>(step, p);
    default:
      return run_step<W, M, 3>(step, p);
  }
}

// M x V accumulators, V vectors of b and a scalar fit the 32 registers of AVX-512 and the 16 of the others.
BLIP_FAST_AVX512 inline void run_avx512(Step step, const Panel& p) { run_width<16, 8>(step, p); }

BLIP_FAST_AVX2 inline void run_avx2(Step step, const Panel& p) { run_width<8, 4>(step, p); }

inline void run_portable(Step step, const Panel& p) { run_width<4, 4>(step, p); }

struct Machine {
  int64_t lanes;  // floats in a vector
  void (*run)(Step, const Panel&);
};

inline Machine machine() {
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return {16, run_avx512};
    case InstructionSet::kAvx2:
      return {8, run_avx2};
    default:
      return {4, run_portable};
  }
}

}  // namespace blip_fast
