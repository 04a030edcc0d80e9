// LayerNorm of a residual sum with dropout: sum = residual + dropout(x), out = norm(sum) * weight + bias.
//
// A row stays in the first-level cache between its passes, so memory is read and written once: bound by memory
// bandwidth.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/dtypes.h"
#include "../common/layer_norm.h"
#include "convert.h"
#include "operations.h"
#include "philox_block.h"
#include "simd.h"

namespace blip_fast {
namespace {

constexpr int64_t kRows = 64;  // rows whose gradients of weight and bias are summed together

// A row in fp32: where it lies, or converted into `scratch`.
BLIP_FAST_INLINE const float* in_floats(const float* row, int64_t, float*) { return row; }

template <class T>
BLIP_FAST_INLINE const float* in_floats(const T* row, int64_t width, float* scratch) {
  load_row(scratch, row, width);
  return scratch;
}

// Sum over f(i, Vector{}) and, for what is left, f(i, float{}), which return the values at i.
template <class Isa, class F>
BLIP_FAST_INLINE float sum_over(int64_t width, const F& f) {
  using Vector = typename Isa::Vector;
  constexpr int kWidth = Isa::kWidth;
  Vector sums[4] = {};  // as many as hide the latency of an addition
  int64_t i = 0;
  for (; i + 4 * kWidth <= width; i += 4 * kWidth) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sums[u] += f.template at<Vector>(i + u * kWidth);
  }
  for (; i + kWidth <= width; i += kWidth) sums[0] += f.template at<Vector>(i);
  const Vector folded = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float total = 0.0f;
  for (int lane = 0; lane < kWidth; ++lane) total += folded[lane];
  for (; i < width; ++i) total += f.template at<float>(i);
  return total;
}

struct Value {
  const float* z;
  template <class V>
  BLIP_FAST_INLINE V at(int64_t i) const {
    return load<V>(z + i);
  }
};

struct SquaredDistance {
  const float* z;
  float mean;
  template <class V>
  BLIP_FAST_INLINE V at(int64_t i) const {
    const V distance = load<V>(z + i) - mean;
    return distance * distance;
  }
};

// The gradient before the norm, times weight; on the way the gradients of weight and bias grow.
struct Weighted {
  const float *grad, *z, *weight;
  float mean, inverse;
  float *grad_weight, *grad_bias, *weighted;
  template <class V>
  BLIP_FAST_INLINE V at(int64_t i) const {
    const V g = load<V>(grad + i);
    const V normed = (load<V>(z + i) - mean) * inverse;
    store(grad_bias + i, load<V>(grad_bias + i) + g);
    store(grad_weight + i, load<V>(grad_weight + i) + g * normed);
    const V product = g * load<V>(weight + i);
    store(weighted + i, product);
    return product;
  }
};

struct WeightedNormed {
  const float *weighted, *z;
  float mean, inverse;
  template <class V>
  BLIP_FAST_INLINE V at(int64_t i) const {
    return load<V>(weighted + i) * ((load<V>(z + i) - mean) * inverse);
  }
};

// factors[c]: 0 for an element that is dropped, else the scale. Written to the next multiple of 256. (By value: stores
// cannot change it.)
BLIP_FAST_INLINE void draw_factors(HiddenDropout dropout, uint32_t row, int64_t width, float* factors) {
  uint32_t words[4][kPhiloxBlock];
  for (int64_t c = 0; c < width; c += 4 * kPhiloxBlock, factors += 4 * kPhiloxBlock) {
    philox_block(dropout.philox, dropout.counter(static_cast<uint32_t>(c / 4), row), words);
    for (int64_t i = 0; i < kPhiloxBlock; ++i) {
      for (int64_t j = 0; j < 4; ++j) factors[4 * i + j] = dropout.factor(words[j][i]);
    }
  }
}

// What a thread needs between the passes over a row.
struct Scratch {
  int64_t width;
  std::unique_ptr<float[]> x, residual, z, factors;

  explicit Scratch(int64_t width)
      : width(width),
        x(new float[width]),
        residual(new float[width]),
        z(new float[width]),
        factors(new float[width + 4 * kPhiloxBlock]) {}
};

template <class X, class R, class O>
struct ForwardRow {
  const HiddenDropout& dropout;
  uint32_t row;
  const X* x;
  const R* residual;
  const float *weight, *bias;
  float eps;
  R* sum;  // or null
  O* out;
  float *mean, *inverse;

  template <class Isa>
  BLIP_FAST_INLINE static void run(const ForwardRow& r, const Scratch& scratch) {
    const int64_t width = scratch.width;
    const float* x = in_floats(r.x, width, scratch.x.get());
    const float* residual = in_floats(r.residual, width, scratch.residual.get());
    float* z = scratch.z.get();
    if constexpr (std::is_same_v<R, float>) z = r.sum ? r.sum : z;
    if (r.dropout.active()) {
      const float* factors = scratch.factors.get();
      draw_factors(r.dropout, r.row, width, scratch.factors.get());
      for (int64_t c = 0; c < width; ++c) z[c] = residual[c] + x[c] * factors[c];
    } else {
      for (int64_t c = 0; c < width; ++c) z[c] = residual[c] + x[c];
    }
    if constexpr (!std::is_same_v<R, float>) {  // the statistics are of what is stored
      R* stored = r.sum ? r.sum : reinterpret_cast<R*>(scratch.x.get());
      store_row(stored, z, width, 1.0f);
      load_row(z, stored, width);
    }
    const float count = static_cast<float>(width);
    const float mean = sum_over<Isa>(width, Value{z}) / count;
    const float inverse = 1.0f / std::sqrt(sum_over<Isa>(width, SquaredDistance{z, mean}) / count + r.eps);
    for (int64_t c = 0; c < width; ++c) {
      from_float((z[c] - mean) * inverse * r.weight[c] + r.bias[c], r.out + c);
    }
    *r.mean = mean;
    *r.inverse = inverse;
  }
};

template <class X, class R, class O>
struct BackwardRow {
  const HiddenDropout& dropout;
  uint32_t row;
  const O* grad_out;
  const R *sum, *grad_sum;  // grad_sum may be null
  const float* weight;
  float mean, inverse;
  float *grad_weight, *grad_bias;
  X* grad_x;  // or null
  R* grad_residual;

  template <class Isa>
  BLIP_FAST_INLINE static void run(const BackwardRow& r, const Scratch& scratch) {
    const int64_t width = scratch.width;
    const float* grad = in_floats(r.grad_out, width, scratch.x.get());
    const float* z = in_floats(r.sum, width, scratch.residual.get());
    float* total = scratch.z.get();
    const float count = static_cast<float>(width), mean = r.mean, inverse = r.inverse;
    const Weighted weighted{grad, z, r.weight, mean, inverse, r.grad_weight, r.grad_bias, total};
    const float shift = sum_over<Isa>(width, weighted) / count;
    const float slope = sum_over<Isa>(width, WeightedNormed{total, z, mean, inverse}) / count;
    for (int64_t c = 0; c < width; ++c) {
      total[c] = (total[c] - shift - (z[c] - mean) * inverse * slope) * inverse;
    }
    for (int64_t c = 0; r.grad_sum && c < width; ++c) total[c] += to_float(r.grad_sum[c]);
    store_row(r.grad_residual, total, width, 1.0f);
    if (!r.grad_x) return;
    const float* factors = scratch.factors.get();
    if (r.dropout.active()) {
      draw_factors(r.dropout, r.row, width, scratch.factors.get());
      for (int64_t c = 0; c < width; ++c) total[c] *= factors[c];
    }
    store_row(r.grad_x, total, width, 1.0f);
  }
};

std::vector<float> to_floats(const Tensor& tensor) {
  std::vector<float> values(tensor.numel());
  dispatch_float(tensor.scalar_type(), [&](auto type) {
    load_row(values.data(), static_cast<const typename decltype(type)::type*>(tensor.const_data_ptr()), tensor.numel());
  });
  return values;
}

int64_t scalar(const std::optional<Tensor>& tensor) {
  return tensor ? *static_cast<const int64_t*>(tensor->const_data_ptr()) : 0;
}

template <class T>
T* data(Tensor& tensor) {
  return tensor.numel() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// Calls f(Type<X>{}, Type<R>{}, Type<O>{}): out has the dtype of x where the sum goes on as the residual, else its own.
template <class F>
void dispatch(ScalarType x, ScalarType residual, bool prenorm, const F& f) {
  dispatch_float(x, [&](auto x_type) {
    dispatch_float(residual, [&](auto r_type) {
      if (prenorm) {
        f(x_type, r_type, x_type);
      } else {
        f(x_type, r_type, r_type);
      }
    });
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias,
                                                                  double eps, double dropout_p,
                                                                  std::optional<Tensor> seed,
                                                                  std::optional<Tensor> offset, bool prenorm,
                                                                  bool keep_sum) {
  const int64_t width = weight.numel(), rows = x.numel() / width;
  const HiddenDropout dropout(dropout_p, scalar(seed), scalar(offset));
  const std::vector<float> weights = to_floats(weight), biases = to_floats(bias);
  Tensor out = torch::stable::empty_like(prenorm ? x : residual);
  Tensor sum = keep_sum ? torch::stable::empty_like(residual) : torch::stable::new_empty(residual, {0});
  Tensor mean = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  Tensor inverse = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  dispatch(x.scalar_type(), residual.scalar_type(), prenorm, [&](auto x_type, auto r_type, auto o_type) {
    using X = typename decltype(x_type)::type;
    using R = typename decltype(r_type)::type;
    using O = typename decltype(o_type)::type;
    R* const sums = data<R>(sum);
    O* const outs = data<O>(out);
    float *means = data<float>(mean), *inverses = data<float>(inverse);
    torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      Scratch scratch(width);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r * width;
        const ForwardRow<X, R, O> row{dropout,
                                      static_cast<uint32_t>(r),
                                      data<X>(std::as_const(x)) + at,
                                      data<R>(std::as_const(residual)) + at,
                                      weights.data(),
                                      biases.data(),
                                      static_cast<float>(eps),
                                      sums ? sums + at : nullptr,
                                      outs + at,
                                      means + r,
                                      inverses + r};
        run_best<ForwardRow<X, R, O>>(row, scratch);
      }
    });
  });
  return {out, sum, mean, inverse};
}

namespace {

// Sums the blocks' gradients of weight and bias, (blocks, 2, width), in order.
BLIP_FAST_MULTIVERSION void add_blocks(const std::vector<float>& blocks, int64_t width, float* sums) {
  for (int64_t c = 0; c < 2 * width; ++c) sums[c] = 0.0f;
  for (size_t at = 0; at < blocks.size(); at += 2 * width) {
    for (int64_t c = 0; c < 2 * width; ++c) sums[c] += blocks[at + c];
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_backward(
    Tensor grad_out, std::optional<Tensor> grad_sum, Tensor sum, Tensor mean, Tensor inverse, Tensor weight,
    ScalarType x_dtype, double dropout_p, std::optional<Tensor> seed, std::optional<Tensor> offset, bool prenorm) {
  const int64_t width = weight.numel(), rows = mean.numel();
  const HiddenDropout dropout(dropout_p, scalar(seed), scalar(offset));
  const std::vector<float> weights = to_floats(weight);
  const bool separate = seed.has_value() || x_dtype != sum.scalar_type();
  Tensor grad_residual = torch::stable::empty_like(sum);
  Tensor grad_x =
      separate ? torch::stable::new_empty(sum, sum.sizes(), x_dtype) : torch::stable::new_empty(sum, {0}, x_dtype);
  std::vector<float> blocks((rows + kRows - 1) / kRows * 2 * width), sums(2 * width);
  dispatch(x_dtype, sum.scalar_type(), prenorm, [&](auto x_type, auto r_type, auto o_type) {
    using X = typename decltype(x_type)::type;
    using R = typename decltype(r_type)::type;
    using O = typename decltype(o_type)::type;
    X* const grads_x = data<X>(grad_x);
    R* const grads_residual = data<R>(grad_residual);
    const auto *means = data<float>(std::as_const(mean)), *inverses = data<float>(std::as_const(inverse));
    torch::stable::parallel_for(0, (rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch(width);
      for (int64_t r = begin * kRows; r < std::min(end * kRows, rows); ++r) {
        const int64_t at = r * width;
        float* block = blocks.data() + r / kRows * 2 * width;
        const BackwardRow<X, R, O> row{dropout,
                                       static_cast<uint32_t>(r),
                                       data<O>(std::as_const(grad_out)) + at,
                                       data<R>(std::as_const(sum)) + at,
                                       grad_sum ? data<R>(std::as_const(*grad_sum)) + at : nullptr,
                                       weights.data(),
                                       means[r],
                                       inverses[r],
                                       block,
                                       block + width,
                                       grads_x ? grads_x + at : nullptr,
                                       grads_residual + at};
        run_best<BackwardRow<X, R, O>>(row, scratch);
      }
    });
  });
  add_blocks(blocks, width, sums.data());
  Tensor grad_weight = torch::stable::empty_like(weight), grad_bias = torch::stable::empty_like(weight);
  dispatch_float(weight.scalar_type(), [&](auto type) {
    using W = typename decltype(type)::type;
    store_row(data<W>(grad_weight), sums.data(), width, 1.0f);
    store_row(data<W>(grad_bias), sums.data() + width, width, 1.0f);
  });
  return {grad_x, grad_residual, grad_weight, grad_bias};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def(
      "dropout_add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, float dropout_p, "
      "Tensor? seed, Tensor? offset, bool prenorm, bool keep_sum) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "dropout_add_layer_norm_backward(Tensor grad_out, Tensor? grad_sum, Tensor sum, Tensor mean, Tensor inverse, "
      "Tensor weight, ScalarType x_dtype, float dropout_p, Tensor? seed, Tensor? offset, bool prenorm) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) {
  m.impl("dropout_add_layer_norm", TORCH_BOX(&blip_fast::dropout_add_layer_norm));
  m.impl("dropout_add_layer_norm_backward", TORCH_BOX(&blip_fast::dropout_add_layer_norm_backward));
}
