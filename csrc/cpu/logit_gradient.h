// D, the gradient of the logits of a chunk of words, as two products read it: its rows for grad_weight = D hidden, its
// columns for grad_hidden = D^T weight. It is computed in fp32, in strips of up to 32 words.
#pragma once

#include "gemm_bf16.h"

namespace blip_fast {

constexpr int64_t kStrip = 32;

// In fp32 one matrix serves both products.
template <class E>
class LogitGradient {
 public:
  LogitGradient(int64_t words, int64_t counted) : stride_(strip_stride(counted)), d_(buffer<E>(words * stride_)) {}

  // Between rows of a strip. An odd number of cache lines: columns then spread over all sets of the cache.
  static int64_t strip_stride(int64_t counted) { return padded_to_panels(counted) + 16; }

  // Where the strip that begins with `word` is to be computed, and what follows.
  float* strip(int64_t word, FloatBuffer&) { return d_.get() + word * stride_; }
  void store(const float*, int64_t, int64_t) {}

  Operand<E> rows(int64_t word) const { return {d_.get() + word * stride_, stride_, 1}; }
  Operand<E> columns(int64_t row) const { return {d_.get() + row, 1, stride_}; }

 private:
  int64_t stride_;
  Buffer<E> d_;
};

// In bfloat16 both forms are contiguous and padded with zeros.
template <>
class LogitGradient<BFloat16> {
 public:
  LogitGradient(int64_t words, int64_t counted)
      : counted_(counted),
        row_stride_(Packing<BFloat16>::padded(counted)),
        column_stride_(Packing<BFloat16>::padded(words) + kStrip),  // an odd number of cache lines
        rows_(buffer<BFloat16>(words * row_stride_)),
        columns_(buffer<BFloat16>(counted * column_stride_)) {}

  static int64_t strip_stride(int64_t counted) { return LogitGradient<float>::strip_stride(counted); }

  float* strip(int64_t, FloatBuffer& scratch) {
    if (!scratch) scratch = float_buffer(kStrip * strip_stride(counted_));
    return scratch.get();
  }

  void store(const float* strip, int64_t word, int64_t words) {
    for (int64_t i = 0; i < words; ++i) {
      BFloat16* const row = rows_.get() + (word + i) * row_stride_;
      convert(strip + i * strip_stride(counted_), counted_, row);
      std::fill(row + counted_, row + row_stride_, BFloat16(0.0f));
    }
    for (int64_t r = 0; r < counted_; r += kPanelColumns) {
      transpose_block(rows_.get() + word * row_stride_ + r, row_stride_, words, std::min(kPanelColumns, counted_ - r),
                      columns_.get() + r * column_stride_ + word, column_stride_);
    }
  }

  Operand<BFloat16> rows(int64_t word) const { return {rows_.get() + word * row_stride_, row_stride_}; }
  Operand<BFloat16> columns(int64_t row) const { return {columns_.get() + row * column_stride_, column_stride_}; }

 private:
  int64_t counted_, row_stride_, column_stride_;
  Buffer<BFloat16> rows_, columns_;
};

}  // namespace blip_fast
