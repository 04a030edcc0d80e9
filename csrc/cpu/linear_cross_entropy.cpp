// Cross-entropy of a linear layer without its logits: three products of the counted rows, 2 T C V FLOPs each.
//
//   logits[v, r] = weight[v] . hidden[r] + bias[v]          D[v, r] = (softmax - target)[v, r] * grad_losses[r]
//   grad_hidden  = D^T weight                                grad_weight = D hidden
//
// Forward walks blocks of the vocabulary; a tile of logits lives in the first-level cache while its statistics are
// taken. The memory of grad_weight, (V, C), meanwhile holds the transposed logits of the first C counted rows, so that
// backward needs no fourth product: it turns them, 1,024 words of the vocabulary at a time, into D and then into the
// gradient.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/dtypes.h"
#include "../common/exp.h"
#include "linear_cross_entropy.h"
#include "logit_gradient.h"

namespace blip_fast {
namespace {

using torch::stable::Tensor;

constexpr int64_t kChunk = 1024;  // words of the vocabulary whose D is held at a time
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Stores the tile, and rounds it to what was stored: backward must see the logits that the statistics are of.
template <class T>
BLIP_FAST_MULTIVERSION void store_logits(float* tile, int64_t rows, int64_t columns, T* out, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      from_float(tile[i * kPanelColumns + j], out + i * stride + j);
      tile[i * kPanelColumns + j] = to_float(out[i * stride + j]);
    }
  }
}

// Per column of a tile: maximum, sum of exp(x - maximum), sum of x.
struct Statistics {
  float maximum[kPanelColumns], exponentials[kPanelColumns], total[kPanelColumns];
};

BLIP_FAST_MULTIVERSION void take_statistics(const float* tile, int64_t rows, Statistics& out) {
  float reference[kPanelColumns];
  for (int64_t j = 0; j < kPanelColumns; ++j) {
    out.maximum[j] = -kInfinity;
    out.exponentials[j] = out.total[j] = 0.0f;
  }
  for (int64_t i = 0; i < rows; ++i) {
    const float* x = tile + i * kPanelColumns;
    for (int64_t j = 0; j < kPanelColumns; ++j) {
      out.maximum[j] = x[j] > out.maximum[j] ? x[j] : out.maximum[j];
      out.total[j] += x[j];
    }
  }
  for (int64_t j = 0; j < kPanelColumns; ++j) reference[j] = out.maximum[j] == -kInfinity ? 0.0f : out.maximum[j];
  for (int64_t i = 0; i < rows; ++i) {
    const float* x = tile + i * kPanelColumns;
    for (int64_t j = 0; j < kPanelColumns; ++j) out.exponentials[j] += exp_fp32(x[j] - reference[j]);
  }
}

// Combines the blocks' statistics of counted row r: its log-sum-exp, and the sum of its logits.
std::pair<float, float> combine(const std::vector<Statistics>& statistics, int64_t blocks, int64_t panels, int64_t r) {
  const int64_t p = r / kPanelColumns, j = r % kPanelColumns;
  float maximum = -kInfinity;
  for (int64_t b = 0; b < blocks; ++b) maximum = std::max(maximum, statistics[b * panels + p].maximum[j]);
  float sum = 0.0f, total = 0.0f;
  for (int64_t b = 0; b < blocks; ++b) {
    const Statistics& block = statistics[b * panels + p];
    sum += block.exponentials[j] * std::exp(block.maximum[j] - maximum);
    total += block.total[j];
  }
  return {maximum + std::log(sum), total};
}

// Of a thread in the forward pass: the weight's rows, where they are converted, and a tile of logits.
template <class E>
struct ForwardScratch {
  Buffer<E> weight;
  Buffer<float> tile;
};

template <class E, class T>
void forward(const Layer<T>& layer, const Counted& counted, float smoothing, T* logits, float* losses, float* lse) {
  const int64_t n = counted.size(), panels = panel_count(n), blocks = ceil_div(layer.vocabulary, kBlock);
  const int64_t depth = Packing<E>::padded(layer.width);
  const Buffer<E> hidden = pack_hidden_transposed<E>(layer, counted);
  std::vector<Statistics> statistics(blocks * panels);
  std::vector<float> at_label(n);
  const auto scratch = [] { return ForwardScratch<E>{nullptr, buffer<float>(kBlock * kPanelColumns)}; };
  parallel_with(blocks, scratch, [&](int64_t block, ForwardScratch<E>& own) {
    float* const tile = own.tile.get();
    const int64_t word = block * kBlock, rows = std::min(kBlock, layer.vocabulary - word);
    const Operand<E> weight = weight_rows(layer, word, rows, own.weight);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t first = p * kPanelColumns, columns = std::min(kPanelColumns, n - first);
      multiply_panel(weight, rows, depth, hidden.get() + first * depth, tile, kPanelColumns, false);
      add_bias(layer.bias ? layer.bias + word : nullptr, rows, tile, kPanelColumns);
      const int64_t kept = logits ? std::min(columns, layer.width - first) : 0;
      if (kept > 0) store_logits(tile, rows, kept, logits + word * layer.width + first, layer.width);
      take_statistics(tile, rows, statistics[block * panels + p]);
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t i = counted.label[first + j] - word;
        if (i >= 0 && i < rows) at_label[first + j] = tile[i * kPanelColumns + j];
      }
    }
  });
  for (int64_t r = 0; r < n; ++r) {
    const auto [row_lse, total] = combine(statistics, blocks, panels, r);
    float loss = row_lse - (1.0f - smoothing) * at_label[r];
    if (smoothing > 0.0f) loss -= smoothing / static_cast<float>(layer.vocabulary) * total;
    losses[counted.row[r]] = loss;
    lse[counted.row[r]] = row_lse;
  }
}

// What turns a logit into D, per counted row, zero padded.
struct RowFactors {
  Buffer<float> lse, grad;
};

RowFactors row_factors(const Counted& counted, const float* lse, const float* grad_losses) {
  const int64_t padded = padded_to_panels(counted.size());
  RowFactors factors{buffer<float>(padded), buffer<float>(padded)};
  for (int64_t r = 0; r < padded; ++r) {
    factors.lse[r] = r < counted.size() ? lse[counted.row[r]] : 0.0f;
    factors.grad[r] = r < counted.size() ? grad_losses[counted.row[r]] : 0.0f;
  }
  return factors;
}

// d = (softmax - uniform) * grad for the logits x; the label's share is taken off later.
template <class X>
BLIP_FAST_MULTIVERSION void softmax_gradient(const X* x, int64_t columns, const float* lse, const float* grad,
                                             float uniform, float* d) {
  for (int64_t j = 0; j < columns; ++j) d[j] = (exp_fp32(to_float(x[j]) - lse[j]) - uniform) * grad[j];
}

BLIP_FAST_MULTIVERSION float sum(const float* x, int64_t count) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (int64_t j = 0; j < 16; ++j) lanes[j] += x[i + j];
  }
  float result = 0.0f;
  for (; i < count; ++i) result += x[i];
  for (const float lane : lanes) result += lane;
  return result;
}

template <class E, class T>
class Backward {
 public:
  Backward(const Layer<T>& layer, const Counted& counted, RowFactors factors, float smoothing, T* logits)
      : layer_(layer),
        counted_(counted),
        factors_(std::move(factors)),
        smoothing_(smoothing),
        logits_(logits),
        kept_(logits == nullptr ? 0 : std::min(counted.size(), layer.width)),
        padded_(padded_to_panels(layer.width)),
        d_(std::min(kChunk, layer.vocabulary), counted.size()) {
    if (kept_ < size()) hidden_transposed_ = pack_hidden_transposed<E>(layer, counted);
  }

  // Null pointers: that gradient is not wanted. grad_weight may be the kept logits.
  void run(T* grad_hidden, T* grad_weight, T* grad_bias) {
    if (grad_weight) hidden_ = pack_hidden<E>(layer_, counted_);
    if (grad_hidden) weight_ = buffer<E>(padded(std::min(kChunk, layer_.vocabulary)) * padded_);
    if (grad_hidden) sum_hidden_ = buffer<float>(size() * padded_);
    const int64_t panels = panel_count(layer_.width), blocks = ceil_div(size(), kBlock);
    const int64_t strips = ceil_div(size(), kStrip);
    for (int64_t word = 0; word < layer_.vocabulary; word += kChunk) {
      const int64_t words = std::min(kChunk, layer_.vocabulary - word);
      parallel(ceil_div(words, kStrip), [&](int64_t i) { gradient_of_logits(word, i * kStrip, words, grad_bias); });
      if (grad_weight) {
        parallel(ceil_div(words, kBlock) * panels, [&](int64_t i) {
          weight_tile(words, i / panels * kBlock, i % panels * kPanelColumns, grad_weight + word * layer_.width);
        });
      }
      if (!grad_hidden) continue;
      parallel(panels, [&](int64_t i) { pack_weight(word, words, i * kPanelColumns); });
      parallel(blocks * panels, [&](int64_t i) {
        const int64_t r = strips * (i / panels) / blocks * kStrip, end = strips * (i / panels + 1) / blocks * kStrip;
        hidden_tile(word, words, r, std::min(end, size()) - r, i % panels * kPanelColumns);
      });
    }
    for (int64_t r = 0; grad_hidden && r < size(); ++r) {
      convert(sum_hidden_.get() + r * padded_, layer_.width, grad_hidden + counted_.row[r] * layer_.width);
    }
  }

 private:
  int64_t size() const { return counted_.size(); }
  static int64_t padded(int64_t depth) { return Packing<E>::padded(depth); }

  // The strip of D of the chunk from `chunk` on that begins with its word `first`.
  void gradient_of_logits(int64_t chunk, int64_t first, int64_t words, T* grad_bias) {
    const float uniform = smoothing_ / static_cast<float>(layer_.vocabulary);
    const int64_t word = chunk + first, rows = std::min(kStrip, words - first), stride = padded_to_panels(size());
    const Buffer<float> strip = buffer<float>(rows * stride);
    float* const d = strip.get();
    if (kept_ < size()) recompute(word, rows, uniform, d, stride);
    for (int64_t i = 0; i < rows && kept_ > 0; ++i) {
      const T* x = logits_ + (word + i) * layer_.width;
      softmax_gradient(x, kept_, factors_.lse.get(), factors_.grad.get(), uniform, d + i * stride);
    }
    for (int64_t r = 0; r < size(); ++r) {
      const int64_t i = counted_.label[r] - word;
      if (i >= 0 && i < rows) d[i * stride + r] -= (1.0f - smoothing_) * factors_.grad[r];
    }
    for (int64_t i = 0; grad_bias && i < rows; ++i) grad_bias[word + i] = static_cast<T>(sum(d + i * stride, size()));
    d_.store(d, stride, first, rows);
  }

  void recompute(int64_t word, int64_t rows, float uniform, float* d, int64_t stride) {
    Buffer<E> scratch;
    const Operand<E> weight = weight_rows(layer_, word, rows, scratch);
    const int64_t depth = padded(layer_.width);
    for (int64_t p = kept_ / kPanelColumns; p < panel_count(size()); ++p) {
      const int64_t r = p * kPanelColumns;
      multiply_panel(weight, rows, depth, hidden_transposed_.get() + r * depth, d + r, stride, false);
      add_bias(layer_.bias ? layer_.bias + word : nullptr, rows, d + r, stride);
      for (int64_t i = 0; i < rows; ++i) {
        float* x = d + i * stride + r;
        softmax_gradient(x, kPanelColumns, factors_.lse.get() + r, factors_.grad.get() + r, uniform, x);
      }
    }
  }

  // out (words x C) = D hidden, the 128 x 32 tile at (first, column)
  void weight_tile(int64_t words, int64_t first, int64_t column, T* out) {
    const int64_t rows = std::min(kBlock, words - first), columns = std::min(kPanelColumns, layer_.width - column);
    const int64_t depth = padded(size());
    alignas(64) float tile[kBlock * kPanelColumns];
    multiply_panel(d_.rows(first), rows, depth, hidden_.get() + column * depth, tile, kPanelColumns, false);
    for (int64_t i = 0; i < rows; ++i) {
      convert(tile + i * kPanelColumns, columns, out + (first + i) * layer_.width + column);
    }
  }

  void pack_weight(int64_t word, int64_t words, int64_t column) {
    const int64_t columns = std::min(kPanelColumns, layer_.width - column);
    const T* from = layer_.weight + word * layer_.width + column;
    E* const panel = weight_.get() + column * padded(words);
    if constexpr (kByThirds<E>) {
      pack_right({from, layer_.width, false}, columns, words, panel);
    } else {
      pack_panel(from, layer_.width, words, columns, panel);
    }
  }

  // sum_hidden (n x C) += D^T weight[word : word + words], the tile of up to 128 x 32 at (r, column)
  void hidden_tile(int64_t word, int64_t words, int64_t r, int64_t rows, int64_t column) {
    float* out = sum_hidden_.get() + r * padded_ + column;
    const E* panel = weight_.get() + column * padded(words);
    multiply_panel(d_.columns(r), rows, padded(words), panel, out, padded_, word > 0);
  }

  const Layer<T>& layer_;
  const Counted& counted_;
  RowFactors factors_;
  float smoothing_;
  T* logits_;                                      // (V, C): logits[v, r] of counted row r < C, or null
  int64_t kept_;                                   // rows whose logits are there; the others are multiplied again
  int64_t padded_;                                 // C, in whole panels
  LogitGradient<E> d_;                             // of a chunk of words
  Buffer<float> sum_hidden_;                       // (n, padded)
  Buffer<E> hidden_transposed_, hidden_, weight_;  // panels
};

// Calls f(T, E) for tensors of T whose products are computed in E.
template <class F>
void dispatch_products(ScalarType dtype, bool by_thirds, const F& f) {
  if (by_thirds) return f(Type<float>{}, Type<Thirds>{});
  if (dtype == ScalarType::BFloat16 && has_bf16_products()) return f(Type<BFloat16>{}, Type<BFloat16>{});
  dispatch_float(dtype, [&](auto type) { f(type, Type<float>{}); });
}

bool may_use_thirds(const Tensor& hidden) { return hidden.scalar_type() == ScalarType::Float && has_amx(); }

void check(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& labels) {
  const bool contiguous =
      hidden.is_contiguous() && weight.is_contiguous() && labels.is_contiguous() && (!bias || bias->is_contiguous());
  STD_TORCH_CHECK(contiguous, "hidden, weight, bias or labels is not contiguous; expected contiguous tensors");
}

std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy(Tensor hidden, Tensor weight, std::optional<Tensor> bias,
                                                        Tensor labels, double label_smoothing, int64_t ignore_index,
                                                        bool keep_logits) {
  check(hidden, weight, bias, labels);
  const Counted counted(labels, ignore_index, weight.size(0));
  const int64_t rows = labels.numel();
  Tensor losses = torch::stable::new_zeros(hidden, {rows}, ScalarType::Float);
  Tensor lse = torch::stable::new_zeros(hidden, {rows}, ScalarType::Float);
  Tensor logits = keep_logits ? torch::stable::empty_like(weight) : torch::stable::new_empty(weight, {0});
  const auto run = [&](auto type, auto products) {
    using T = typename decltype(type)::type;
    forward<typename decltype(products)::type>(
        Layer<T>(hidden, weight, bias), counted, static_cast<float>(label_smoothing),
        keep_logits ? static_cast<T*>(logits.mutable_data_ptr()) : nullptr,
        static_cast<float*>(losses.mutable_data_ptr()), static_cast<float*>(lse.mutable_data_ptr()));
  };
  const bool by_thirds = may_use_thirds(hidden);
  dispatch_products(hidden.scalar_type(), by_thirds, run);
  if (by_thirds && !all_finite(losses)) dispatch_products(hidden.scalar_type(), false, run);
  return {losses, lse, logits};
}

std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(Tensor grad_losses, Tensor hidden, Tensor weight,
                                                                 std::optional<Tensor> bias, Tensor labels, Tensor lse,
                                                                 Tensor logits, double label_smoothing,
                                                                 int64_t ignore_index, bool need_hidden,
                                                                 bool need_weight, bool need_bias) {
  check(hidden, weight, bias, labels);
  const Counted counted(labels, ignore_index, weight.size(0));
  const bool kept = logits.numel() > 0;
  const auto zeros = [&](bool wanted, const Tensor& like) {
    return wanted ? torch::stable::new_zeros(like, like.sizes()) : torch::stable::new_empty(like, {0});
  };
  Tensor grad_hidden = zeros(need_hidden, hidden), grad_bias = zeros(need_bias, bias ? *bias : labels);
  const bool allocate = need_weight && !kept;
  Tensor grad_weight = allocate ? torch::stable::empty_like(weight) : torch::stable::new_empty(weight, {0});
  const bool by_thirds = may_use_thirds(hidden) && all_finite(hidden) && all_finite(lse) && all_finite(grad_losses);
  dispatch_products(hidden.scalar_type(), by_thirds, [&](auto type, auto products) {
    using T = typename decltype(type)::type;
    const auto data = [](Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); };
    const Layer<T> layer(hidden, weight, bias);
    T* out = !need_weight ? nullptr : data(kept ? logits : grad_weight);
    if (counted.size() == 0) {
      if (out) std::fill_n(out, weight.numel(), T(0.0f));
      return;
    }
    RowFactors factors = row_factors(counted, static_cast<const float*>(lse.const_data_ptr()),
                                     static_cast<const float*>(grad_losses.const_data_ptr()));
    Backward<typename decltype(products)::type, T> backward(
        layer, counted, std::move(factors), static_cast<float>(label_smoothing), kept ? data(logits) : nullptr);
    backward.run(need_hidden ? data(grad_hidden) : nullptr, out, need_bias ? data(grad_bias) : nullptr);
  });
  return {grad_hidden, grad_weight, grad_bias};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, float label_smoothing, "
      "int ignore_index, bool keep_logits) -> (Tensor, Tensor, Tensor)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad_losses, Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, "
      "Tensor lse, Tensor(a!) logits, float label_smoothing, int ignore_index, bool need_hidden, bool need_weight, "
      "bool need_bias) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&blip_fast::linear_cross_entropy));
  m.impl("linear_cross_entropy_backward", TORCH_BOX(&blip_fast::linear_cross_entropy_backward));
}
