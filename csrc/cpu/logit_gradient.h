// D, the gradient of the logits of a chunk of words, as two products read it: by rows for grad_weight = D hidden, by
// columns for grad_hidden = D^T weight. It is computed in fp32, in strips of up to 32 words.
#pragma once

#include "gemm_thirds.h"

namespace blip_fast {

constexpr int64_t kStrip = 32;

template <class E>
class LogitGradient {
 public:
  LogitGradient(int64_t words, int64_t counted)
      : counted_(counted),
        row_stride_(Packing<E>::padded(counted)),
        column_stride_(ceil_div(words, kStrip) * kStrip + kLine),  // an odd number of cache lines
        rows_(buffer<E>(words * row_stride_)),
        columns_(buffer<E>(counted * column_stride_)) {}

  // `words` rows of D from `word` on, stride apart.
  void store(const float* strip, int64_t stride, int64_t word, int64_t words) {
    for (int64_t i = 0; i < words; ++i) {
      E* const row = rows_.get() + (word + i) * row_stride_;
      convert(strip + i * stride, counted_, row);
      std::fill(row + counted_, row + row_stride_, E(0.0f));
    }
    for (int64_t r = 0; r < counted_; r += kStrip) {
      transpose_block(rows_.get() + word * row_stride_ + r, row_stride_, words, std::min(kStrip, counted_ - r),
                      columns_.get() + r * column_stride_ + word, column_stride_);
    }
  }

  Operand<E> rows(int64_t word) const { return row_operand(rows_.get() + word * row_stride_, row_stride_); }
  Operand<E> columns(int64_t row) const { return row_operand(columns_.get() + row * column_stride_, column_stride_); }

 private:
  static constexpr int64_t kLine = 64 / sizeof(E);

  int64_t counted_, row_stride_, column_stride_;
  Buffer<E> rows_, columns_;  // (words, counted), (counted, words); bfloat16 is padded with zeros
};

// By thirds both are panels of 32 rows: a strip is one of D, and 32 of the depth of each panel of D^T.
template <>
class LogitGradient<Thirds> {
 public:
  LogitGradient(int64_t words, int64_t counted)
      : counted_(counted),
        row_stride_(Packing<Thirds>::padded(counted)),
        column_stride_(Packing<Thirds>::padded(words)),
        rows_(buffer<Thirds>(column_stride_ * row_stride_)),
        columns_(buffer<Thirds>(row_stride_ * column_stride_)) {}

  void store(const float* strip, int64_t stride, int64_t word, int64_t words) {
    pack_left({strip, stride, true}, words, counted_, rows_.get() + word * row_stride_);
    for (int64_t r = 0; r < counted_; r += kStrip) {
      pack_left({strip + r, stride, false}, std::min(kStrip, counted_ - r), words,
                columns_.get() + r * column_stride_ + word * kStrip);
    }
  }

  Operand<Thirds> rows(int64_t word) const { return {rows_.get() + word * row_stride_, row_stride_}; }
  Operand<Thirds> columns(int64_t row) const { return {columns_.get() + row * column_stride_, column_stride_}; }

 private:
  int64_t counted_, row_stride_, column_stride_;
  Buffer<Thirds> rows_, columns_;
};

}  // namespace blip_fast
