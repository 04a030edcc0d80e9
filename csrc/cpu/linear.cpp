// y = x W^T + b, and GELU behind it where asked for, in fp32, for inference.
//
// The weight (N x K) is read where the model has it, 4 N K bytes for 2 R N K operations; six rows of x and four of the
// weight are multiplied at a time, with sums along the depth in registers. Few rows of x stay in the cache while the
// weight streams past in four places, the rows behind being fetched meanwhile at an even pace: the rate is the
// memory's. Of many rows, x streams past some rows of the weight: the rate is that of the multiply-add units. On
// processors with AMX many rows are multiplied by thirds (gemm_thirds.h).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "../common/gelu.h"
#include "../common/macros.h"
#include "matmul_thirds.h"
#include "operations.h"
#include "simd.h"

namespace blip_fast {
namespace {

constexpr int kTogether = 4;                 // rows of the weight multiplied at once
constexpr int64_t kFewRows = 18;             // up to here the weight streams
constexpr int64_t kFetchedDepth = 1024;      // longer rows are better fetched by the hardware alone
constexpr int64_t kThirdsRows = 64;          // from here on by thirds; MANY_ROWS of ops/linear.py
constexpr int64_t kColumns = 64;             // of y per task, of many rows
constexpr int64_t kFewestColumns = 16;       // of few rows
constexpr int64_t kBlockRows = 600;          // of y per task, at most
constexpr int64_t kLongestSum = 256;         // vectors: longer ones round more than eager's
constexpr int64_t kCachedBytes = 200 << 10;  // of the weight in the second-level cache

struct Layer {
  const float *x, *weight, *bias;  // (R, K), (N, K), (N) or null
  float* y;                        // (R, N)
  int64_t rows, depth, columns;    // R, K, N
  bool gelu;
};

// Rows [row, end) and columns [column, last) of y.
struct Tile {
  int64_t row, end, column, last;
};

// Bias and GELU for a tile of y that is still in the cache.
BLIP_FAST_MULTIVERSION void finish(const Layer& p, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  for (int64_t r = row; r < row + rows; ++r) {
    float* y = p.y + r * p.columns + column;
    if (p.bias != nullptr) {
      for (int64_t j = 0; j < columns; ++j) y[j] += p.bias[column + j];
    }
    if (p.gelu) {
      for (int64_t j = 0; j < columns; ++j) y[j] = gelu(y[j]);
    }
  }
}

// R rows of x times J rows of the weight, `step` apart. Meanwhile the rows behind F of these are fetched, from the
// `ahead`-th on.
template <class Isa, int R, int J, int F>
BLIP_FAST_INLINE void dots(const Layer& p, int64_t row, int64_t column, int64_t step, int64_t ahead) {
  using Vector = typename Isa::Vector;
  constexpr int W = Isa::kWidth;
  const float* x = p.x + row * p.depth;
  const float* w = p.weight + column * p.depth;
  const int64_t stride = step * p.depth;
  const float* const next = w + ahead * stride + p.depth;
  for (int64_t begin = 0; begin == 0 || begin < p.depth; begin += kLongestSum * W) {
    const int64_t end = std::min(p.depth, begin + kLongestSum * W);
    Vector sum[R][J];
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < J; ++j) sum[r][j] = Vector{};
    }
    int64_t k = begin;
    for (; k + W <= end; k += W) {
      Vector w_row[J];
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) w_row[j] = load<Vector>(w + j * stride + k);
#pragma GCC unroll 4
      for (int f = 0; f < F; ++f) __builtin_prefetch(next + f * stride + k, 0, 2);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const Vector x_row = load<Vector>(x + r * p.depth + k);
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) sum[r][j] += x_row * w_row[j];
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) {
        float dot = sum_lanes<W>(sum[r][j]);
        for (int64_t i = k; i < end; ++i) dot += x[r * p.depth + i] * w[j * stride + i];
        float& y = p.y[(row + r) * p.columns + column + j * step];
        y = begin == 0 ? dot : y + dot;
      }
    }
  }
}

// As `dots`, for `rows` <= R of them.
template <class Isa, int R, int J, int F>
BLIP_FAST_INLINE void dots_of(const Layer& p, int64_t rows, int64_t row, int64_t column, int64_t step, int64_t ahead) {
  if constexpr (R > 0) {
    if (rows == R) return dots<Isa, R, J, F>(p, row, column, step, ahead);
    dots_of<Isa, R - 1, J, F>(p, rows, row, column, step, ahead);
  }
}

// Rows of x whose sums fill the registers.
template <class Isa>
constexpr int kRows = Isa::kWidth == 16 ? 6 : 3;

// All rows of a tile times J rows of the weight; each of the first J / F groups of rows fetches F of the rows behind.
template <class Isa, int J, int F>
BLIP_FAST_INLINE void multiply_columns(const Layer& p, const Tile& tile, int64_t column, int64_t step) {
  constexpr int R = kRows<Isa>;
  int64_t fetched = 0;
  for (int64_t row = tile.row; row < tile.end; row += R) {
    const int64_t rows = std::min<int64_t>(R, tile.end - row);
    if (F > 0 && fetched < J) {
      dots_of<Isa, R, J, F>(p, rows, row, column, step, fetched);
      fetched += F;
    } else {
      dots_of<Isa, R, J, 0>(p, rows, row, column, step, 0);
    }
  }
}

// Few rows: a pass over the weight, with the rows of x in the cache. It is read in kTogether places at once, far apart:
// the hardware then fetches ahead in as many pages.
template <class Isa>
BLIP_FAST_INLINE void stream_weight(const Layer& p, const Tile& tile) {
  const bool one_group = tile.end - tile.row <= kRows<Isa>;
  const int64_t step = (tile.last - tile.column) / kTogether;
  for (int64_t column = tile.column; column < tile.column + step; ++column) {
    if (column + 1 == tile.column + step || p.depth > kFetchedDepth) {
      multiply_columns<Isa, kTogether, 0>(p, tile, column, step);
    } else if (one_group) {
      multiply_columns<Isa, kTogether, 4>(p, tile, column, step);
    } else {
      multiply_columns<Isa, kTogether, 2>(p, tile, column, step);
    }
  }
}

// Many rows: passes over x, with some rows of the weight in the cache.
template <class Isa>
BLIP_FAST_INLINE void stream_input(const Layer& p, const Tile& tile) {
  constexpr int R = kRows<Isa>;
  const int64_t cached =
      std::max<int64_t>(kCachedBytes / sizeof(float) / std::max<int64_t>(p.depth, 1) / kTogether, 1) * kTogether;
  for (int64_t first = tile.column; first < tile.last; first += cached) {
    const int64_t last = std::min(first + cached, tile.last);
    for (int64_t row = tile.row; row < tile.end; row += R) {
      const int64_t rows = std::min<int64_t>(R, tile.end - row);
      for (int64_t column = first; column + kTogether <= last; column += kTogether) {
        dots_of<Isa, R, kTogether, 0>(p, rows, row, column, 1, 0);
      }
    }
  }
}

struct Multiply {
  template <class Isa>
  static BLIP_FAST_INLINE void run(const Layer& p, const Tile& tile) {
    if (p.rows <= kFewRows) {
      stream_weight<Isa>(p, tile);
    } else {
      stream_input<Isa>(p, tile);
    }
    const int64_t rest = (tile.last - tile.column) % kTogether;
    for (int64_t column = tile.last - rest; column < tile.last; ++column) {
      multiply_columns<Isa, 1, 0>(p, tile, column, 1);
    }
  }
};

// Few rows: two tasks per thread, so that what is read in one place is long. Many rows: some columns at a time.
int64_t columns_per_task(const Layer& p) {
  if (p.rows > kFewRows) return kColumns;
  const int64_t tasks = 2 * torch::stable::get_num_threads();
  return std::max((p.columns / tasks + kTogether - 1) / kTogether * kTogether, kFewestColumns);
}

void multiply(const Layer& p) {
  const int64_t wide = columns_per_task(p);
  const int64_t blocks = (p.rows + kBlockRows - 1) / kBlockRows, groups = (p.columns + wide - 1) / wide;
  torch::stable::parallel_for(0, blocks * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / groups, column = task % groups * wide;
      const Tile tile{p.rows * block / blocks, p.rows * (block + 1) / blocks, column,
                      std::min(column + wide, p.columns)};
      run_best<Multiply>(p, tile);
      finish(p, tile.row, tile.end - tile.row, column, tile.last - column);
    }
  });
}

// Whether the result is finite.
bool multiply_many_rows(const Layer& p) {
  const auto finish_area = [&](const Area& area) { finish(p, area.row, area.rows, area.column, area.columns); };
  return multiply_by_thirds({p.x, p.depth, true}, {p.weight, p.depth, true}, p.rows, p.depth, p.columns, p.y,
                            finish_area);
}

Layer layer_of(const Tensor& input, const Tensor& weight, const Tensor* bias, bool gelu, Tensor& output) {
  return {static_cast<const float*>(input.const_data_ptr()),
          static_cast<const float*>(weight.const_data_ptr()),
          bias != nullptr ? static_cast<const float*>(bias->const_data_ptr()) : nullptr,
          static_cast<float*>(output.mutable_data_ptr()),
          input.size(0),
          weight.size(1),
          weight.size(0),
          gelu};
}

Tensor linear(Tensor input, Tensor weight, std::optional<Tensor> bias, bool gelu) {
  Tensor output = torch::stable::new_empty(input, {input.size(0), weight.size(0)});
  const Layer layer = layer_of(input, weight, bias ? &*bias : nullptr, gelu, output);
  if (layer.rows == 0 || layer.columns == 0) return output;
  const bool by_thirds = layer.rows >= kThirdsRows && layer.depth > 0 && has_amx();
  if (!by_thirds || !multiply_many_rows(layer)) multiply(layer);
  return output;
}

}  // namespace

void linear_into(const Tensor& input, const Tensor& weight, const Tensor& bias, bool gelu, Tensor& output) {
  multiply(layer_of(input, weight, &bias, gelu, output));
}

}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def("linear(Tensor input, Tensor weight, Tensor? bias, bool gelu) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) { m.impl("linear", TORCH_BOX(&blip_fast::linear)); }
