// Attention of a set of query rows to the keys of one head: what cross-attention and packed self-attention share on
// CPUs.
//
// Scores are held transposed, keys by rows and queries by lanes, in panels of up to 64 queries. Then neither operand of
// a product needs packing except the small query side, the softmax runs down the lanes without horizontal sums, and the
// vectors of all other products run along the head size.
#pragma once

#include "simd.h"  // first: it silences a warning about vectors in the headers below

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../common/attention.h"
#include "convert.h"
#include "matmul.h"

namespace blip_fast {

constexpr int64_t kKeyBlock = 256;  // scores of a block and a panel: 64 KB, in the L2 cache
constexpr int64_t kPanel = 64;      // queries, at most

// One head of a tensor (rows, heads, dim).
template <class T>
struct Rows {
  T* data;
  int64_t stride;

  BLIP_FAST_INLINE T* operator[](int64_t row) const { return data + row * stride; }
};

// A set of query rows, and the keys and values that they attend to.
template <class T>
struct AttentionTask {
  const int32_t* rows = nullptr;  // numbers of the query rows
  int64_t count = 0;
  int64_t head = 0;
  Rows<const T> query{}, key{}, value{};
  int64_t length = 0;  // keys attended to
};

template <class T>
struct ForwardTask : AttentionTask<T> {
  Rows<T> out{};
  Rows<SoftmaxStatistics> statistics{};
};

template <class T>
struct BackwardTask : AttentionTask<T> {
  Rows<const T> out{}, grad_out{};
  Rows<const SoftmaxStatistics> statistics{};
  Rows<T> grad_query{}, grad_key{}, grad_value{};
  int64_t keys = 0;  // rows of grad_key and grad_value; those from `length` on are zeros
};

struct AttentionSettings {
  int64_t heads, dim;
  float scale;
  bool causal;  // a query sees the keys up to its own place in the set
  AttentionDropout dropout;
  const int32_t* text_of_row;  // with cu_seqlens, the coordinates of dropout
  const int32_t* cu_seqlens;
};

// Memory of one thread, reused from task to task.
class Scratch {
 public:
  // For up to `pieces` that have so many floats together; each begins on a cache line.
  void reset(int64_t floats, int64_t pieces) {
    const size_t size = floats + 16 * (pieces + 1);
    if (memory_.size() < size) memory_.resize(size);
    next_ = memory_.data() + (16 - reinterpret_cast<uintptr_t>(memory_.data()) / sizeof(float) % 16) % 16;
  }

  float* take(int64_t floats) {
    float* const taken = next_;
    next_ += (floats + 15) / 16 * 16;
    STD_TORCH_CHECK(next_ <= memory_.data() + memory_.size(), "a task took more scratch than it asked for");
    return taken;
  }

 private:
  std::vector<float> memory_;
  float* next_ = nullptr;
};

// The least multiple of `unit` that is not less than x.
inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// The query side of a task: panels of lanes, scaled, and where dropout finds each row.
struct Panels {
  int64_t count, width;            // rows; rows rounded up to whole vectors
  int64_t dim, wide;               // wide: lanes of a panel, at most
  float* query;                    // panel by panel: (dim, lanes)
  uint32_t *position, *text_head;  // (width); null without dropout

  int64_t lanes(int64_t first) const { return std::min(wide, width - first); }
  int64_t rows(int64_t first) const { return std::min(wide, count - first); }
  float* panel(float* all, int64_t first) const { return all + first * dim; }
};

template <class T>
BLIP_FAST_INLINE void transpose_rows(const Panels& panels, const int32_t* rows, const Rows<const T>& from, float factor,
                                     float* to) {
  for (int64_t first = 0; first < panels.width; first += panels.wide) {
    const int64_t lanes = panels.lanes(first), count = panels.rows(first), dim = panels.dim;
    float* const panel = panels.panel(to, first);
    for (int64_t m = 0; m < count; ++m) {
      const T* const row = from[rows[first + m]];
      for (int64_t d = 0; d < dim; ++d) panel[d * lanes + m] = to_float(row[d]) * factor;
    }
    for (int64_t d = 0; d < dim; ++d) {
      for (int64_t m = count; m < lanes; ++m) panel[d * lanes + m] = 0.0f;
    }
  }
}

template <class Isa, class T>
BLIP_FAST_INLINE Panels make_panels(const AttentionTask<T>& task, const AttentionSettings& settings, int64_t wide,
                                    Scratch& scratch) {
  const int64_t width = round_up(task.count, Isa::kWidth);
  Panels panels{task.count, width, settings.dim, wide, scratch.take(width * settings.dim), nullptr, nullptr};
  transpose_rows(panels, task.rows, task.query, settings.scale, panels.query);
  if (settings.dropout.active()) {
    panels.position = reinterpret_cast<uint32_t*>(scratch.take(width));
    panels.text_head = reinterpret_cast<uint32_t*>(scratch.take(width));
    for (int64_t m = 0; m < width; ++m) {
      const int32_t row = task.rows[std::min(m, task.count - 1)], text = settings.text_of_row[row];
      panels.position[m] = static_cast<uint32_t>(row - settings.cu_seqlens[text]);
      panels.text_head[m] = static_cast<uint32_t>(text * settings.heads + task.head);
    }
  }
  return panels;
}

// Rows of fp32 numbers, as operands of products.
template <class T>
struct Block {
  T* data;
  int64_t ld;
};

// True where rows can be used as they lie: fp32, in whole vectors.
template <class Isa, class T>
BLIP_FAST_INLINE bool in_place(int64_t dim) {
  return std::is_same<std::remove_const_t<T>, float>::value && dim % Isa::kWidth == 0;
}

template <class T>
BLIP_FAST_INLINE void load_padded(float* to, int64_t ld, const T* from, int64_t dim) {
  load_row(to, from, dim);
  for (int64_t d = dim; d < ld; ++d) to[d] = 0.0f;
}

// Rows [begin, begin + count): in place, or converted into `buffer`, padded with zeros to whole vectors; `copied` there
// in any case, which pays for rows that lie pages apart and are read many times.
template <class Isa, class T>
BLIP_FAST_INLINE Block<const float> read_block(const Rows<const T>& from, int64_t begin, int64_t count, int64_t dim,
                                               float* buffer, bool copied = false) {
  const int64_t ld = round_up(dim, Isa::kWidth);
  if (in_place<Isa, T>(dim) && !copied) return {reinterpret_cast<const float*>(from[begin]), from.stride};
  for (int64_t l = 0; l < count; ++l) load_padded(buffer + l * ld, ld, from[begin + l], dim);
  return {buffer, ld};
}

// Keys or values that will be wanted next: those of one head lie pages apart.
template <class T>
BLIP_FAST_INLINE Prefetch rows_ahead(const AttentionTask<T>& task, const Rows<const T>& from, int64_t begin,
                                     int64_t count, int64_t dim) {
  constexpr int64_t kSize = sizeof(T);
  return {from[begin], from.stride * kSize, dim * kSize, std::min(count, task.length - begin)};
}

// Hide from each query of a panel the keys after its own place.
BLIP_FAST_INLINE void mask_future(float* scores, int64_t lanes, int64_t first, int64_t begin, int64_t keys) {
  for (int64_t l = std::max<int64_t>(0, first + 1 - begin); l < keys; ++l) {
    const int64_t hidden = std::min(lanes, begin + l - first);
    for (int64_t m = 0; m < hidden; ++m) scores[l * lanes + m] = kNoScore;
  }
}

// Keys of a block in the order of their counters: 0 .. 15, 64 .. 79, 128 ...
BLIP_FAST_INLINE int64_t next_slot(int64_t key) {
  return key % 64 == AttentionDropout::kSlots - 1 ? key + 49 : key + 1;
}

// Random words of a vector of queries (from lane `first` on) for the keys key + {0, 16, 32, 48}.
template <class Isa>
BLIP_FAST_INLINE void draw_words(const AttentionDropout& dropout, const Panels& panels, int64_t first, int64_t key,
                                 uint32_t (*words)[Isa::kWidth]) {
  const uint32_t counter = AttentionDropout::counter(key);
  for (int lane = 0; lane < Isa::kWidth; ++lane) {
    const PhiloxWords drawn = dropout.words(counter, panels.position[first + lane], panels.text_head[first + lane]);
    words[0][lane] = drawn.x;
    words[1][lane] = drawn.y;
    words[2][lane] = drawn.z;
    words[3][lane] = drawn.w;
  }
}

// All ones in the lanes whose probability is kept.
template <class Bits>
BLIP_FAST_INLINE auto keeps(const AttentionDropout& dropout, const uint32_t* words) {
  return (load<Bits>(words) >> 8) >= dropout.threshold;
}

}  // namespace blip_fast
