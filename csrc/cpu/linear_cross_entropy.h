// What linear_cross_entropy multiplies: the rows that count, packed, and blocks of the weight's rows. E is the
// type of what is multiplied: float or, where the processor has products of bfloat16, that, or its thirds of floats.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <type_traits>
#include <vector>

#include "gemm_thirds.h"

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

template <class E>
constexpr bool kByThirds = std::is_same_v<E, Thirds>;

// Zeros from `depth` to the padded depth of a panel.
template <class E>
void clear_padding(int64_t depth, E* panel) {
  for (int64_t k = depth; k < Packing<E>::padded(depth); ++k) {
    for (int64_t j = 0; j < kPanelColumns; ++j) *at(panel, k, j) = E(0.0f);
  }
}

// Columns [first, first + columns) of the counted rows from `begin` to `end`, row by row.
inline Buffer<float> gather(const Layer<float>& layer, const Counted& counted, int64_t begin, int64_t end,
                            int64_t first, int64_t columns) {
  Buffer<float> rows = buffer<float>((end - begin) * columns);
  for (int64_t r = begin; r < end; ++r) {
    memcpy(rows.get() + (r - begin) * columns, layer.hidden + counted.row[r] * layer.width + first,
           columns * sizeof(float));
  }
  return rows;
}

// Panels over the counted rows of hidden^T (C x n), the right operand of the logits, for products of E.
template <class E, class T>
Buffer<E> pack_hidden_transposed(const Layer<T>& layer, const Counted& counted) {
  const int64_t width = layer.width, depth = Packing<E>::padded(width);
  Buffer<E> panels = buffer<E>(panel_count(counted.size()) * depth * kPanelColumns);
  parallel(panel_count(counted.size()), [&](int64_t p) {
    E* panel = panels.get() + p * depth * kPanelColumns;
    if constexpr (kByThirds<E>) {
      const int64_t begin = p * kPanelColumns, end = std::min(begin + kPanelColumns, counted.size());
      const Buffer<float> rows = gather(layer, counted, begin, end, 0, width);
      pack_right({rows.get(), width, true}, end - begin, width, panel);
    } else {
      clear_padding(width, panel);
      for (int64_t j = 0; j < kPanelColumns; ++j) {
        const int64_t r = p * kPanelColumns + j;
        const T* row = r < counted.size() ? layer.hidden + counted.row[r] * width : nullptr;
        for (int64_t c = 0; c < width; ++c) from_float(row ? to_float(row[c]) : 0.0f, at(panel, c, j));
      }
    }
  });
  return panels;
}

// Panels over the width of the counted rows of hidden (n x C), the right operand of grad_weight.
template <class E, class T>
Buffer<E> pack_hidden(const Layer<T>& layer, const Counted& counted) {
  const int64_t depth = Packing<E>::padded(counted.size());
  Buffer<E> panels = buffer<E>(padded_to_panels(layer.width) * depth);
  parallel(panel_count(layer.width), [&](int64_t p) {
    const int64_t first = p * kPanelColumns, columns = std::min(kPanelColumns, layer.width - first);
    E* panel = panels.get() + first * depth;
    if constexpr (kByThirds<E>) {
      const Buffer<float> rows = gather(layer, counted, 0, counted.size(), first, columns);
      pack_right({rows.get(), columns, false}, columns, counted.size(), panel);
    } else {
      clear_padding(counted.size(), panel);
      for (int64_t r = 0; r < counted.size(); ++r) {
        const T* row = layer.hidden + counted.row[r] * layer.width + first;
        for (int64_t j = 0; j < kPanelColumns; ++j) from_float(j < columns ? to_float(row[j]) : 0.0f, at(panel, r, j));
      }
    }
  });
  return panels;
}

// Rows [begin, begin + count) of the weight for products of E: where they lie, or in `scratch`.
template <class E, class T>
Operand<E> weight_rows(const Layer<T>& layer, int64_t begin, int64_t count, Buffer<E>& scratch) {
  const int64_t width = layer.width, depth = Packing<E>::padded(width);
  const T* rows = layer.weight + begin * width;
  if constexpr (std::is_same_v<T, E>) {
    if (depth == width) return row_operand(rows, width);
  }
  if (!scratch) scratch = buffer<E>(kBlock * depth);
  if constexpr (kByThirds<E>) {
    for (int64_t i = 0; i < count; i += kPanelColumns) {
      pack_left({rows + i * width, width, true}, std::min(kPanelColumns, count - i), width, scratch.get() + i * depth);
    }
    return {scratch.get(), depth};
  } else {
    for (int64_t i = 0; i < count; ++i) {
      convert(rows + i * width, width, scratch.get() + i * depth);
      std::fill_n(scratch.get() + i * depth + width, depth - width, E(0.0f));
    }
    return row_operand(scratch.get(), depth);
  }
}

template <class T>
BLIP_FAST_MULTIVERSION void add_bias(const T* bias, int64_t rows, float* tile, int64_t stride) {
  for (int64_t i = 0; bias && i < rows; ++i) {
    const float b = to_float(bias[i]);
    for (int64_t j = 0; j < kPanelColumns; ++j) tile[i * stride + j] += b;
  }
}

}  // namespace blip_fast
