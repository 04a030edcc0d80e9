// What linear_cross_entropy multiplies: the rows that count, packed, and blocks of the weight's rows, in fp32.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <type_traits>
#include <vector>

#include "gemm.h"

namespace blip_fast {

using torch::stable::Tensor;

// The rows that count, in order.
struct Counted {
  std::vector<int64_t> row, label;

  Counted(const Tensor& labels, int64_t ignore_index, int64_t vocabulary) {
    const auto* label_of = static_cast<const int64_t*>(labels.const_data_ptr());
    for (int64_t t = 0; t < labels.numel(); ++t) {
      if (label_of[t] == ignore_index) continue;
      STD_TORCH_CHECK(label_of[t] >= 0 && label_of[t] < vocabulary, "labels[", t, "] is ", label_of[t],
                      "; expected a word below ", vocabulary, " or ignore_index = ", ignore_index);
      row.push_back(t);
      label.push_back(label_of[t]);
    }
  }
  int64_t size() const { return static_cast<int64_t>(row.size()); }
};

template <class T>
struct Layer {
  const T *hidden, *weight, *bias;  // (T, C), (V, C), (V) or null
  int64_t width, vocabulary;        // C, V

  Layer(const Tensor& h, const Tensor& w, const std::optional<Tensor>& b)
      : hidden(static_cast<const T*>(h.const_data_ptr())),
        weight(static_cast<const T*>(w.const_data_ptr())),
        bias(b ? static_cast<const T*>(b->const_data_ptr()) : nullptr),
        width(w.size(1)),
        vocabulary(w.size(0)) {}
};

template <class From, class To>
BLIP_FAST_MULTIVERSION void convert(const From* from, int64_t count, To* to) {
  for (int64_t i = 0; i < count; ++i) from_float(to_float(from[i]), to + i);
}

// Panels over the counted rows of hidden^T (C x n), the right operand of the logits.
template <class T>
FloatBuffer pack_hidden_transposed(const Layer<T>& layer, const Counted& counted) {
  const int64_t width = layer.width;
  FloatBuffer panels = float_buffer(panel_count(counted.size()) * width * kPanelColumns);
  parallel(panel_count(counted.size()), [&](int64_t p) {
    float* panel = panels.get() + p * width * kPanelColumns;
    for (int64_t j = 0; j < kPanelColumns; ++j) {
      const int64_t r = p * kPanelColumns + j;
      const T* row = r < counted.size() ? layer.hidden + counted.row[r] * width : nullptr;
      for (int64_t c = 0; c < width; ++c) panel[c * kPanelColumns + j] = row ? to_float(row[c]) : 0.0f;
    }
  });
  return panels;
}

// Panels over the width of the counted rows of hidden (n x C), the right operand of grad_weight.
template <class T>
FloatBuffer pack_hidden(const Layer<T>& layer, const Counted& counted) {
  FloatBuffer panels = float_buffer(padded_to_panels(layer.width) * counted.size());
  parallel(panel_count(layer.width), [&](int64_t p) {
    const int64_t columns = std::min(kPanelColumns, layer.width - p * kPanelColumns);
    float* panel = panels.get() + p * kPanelColumns * counted.size();
    for (int64_t r = 0; r < counted.size(); ++r, panel += kPanelColumns) {
      pack_panel(layer.hidden + counted.row[r] * layer.width + p * kPanelColumns, 0, 1, columns, panel);
    }
  });
  return panels;
}

// Rows [begin, begin + count) of the weight in fp32: where they lie, or converted into `scratch`.
template <class T>
Operand weight_rows(const Layer<T>& layer, int64_t begin, int64_t count, FloatBuffer& scratch) {
  const T* rows = layer.weight + begin * layer.width;
  if constexpr (std::is_same_v<T, float>) return {rows, layer.width, 1};
  if (!scratch) scratch = float_buffer(kBlock * layer.width);
  convert(rows, count * layer.width, scratch.get());
  return {scratch.get(), layer.width, 1};
}

template <class T>
BLIP_FAST_MULTIVERSION void add_bias(const T* bias, int64_t rows, float* tile, int64_t stride) {
  for (int64_t i = 0; bias && i < rows; ++i) {
    const float b = to_float(bias[i]);
    for (int64_t j = 0; j < kPanelColumns; ++j) tile[i * stride + j] += b;
  }
}

}  // namespace blip_fast
