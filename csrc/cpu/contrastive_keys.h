// A tile of keys, and the two products with it: scores^T = keys X^T and sum^T = keys^T weights^T. Meanwhile the next
// tile is fetched to the cache: its rows lie pages apart, which no hardware prefetches. E is the type of what is
// multiplied: float or, where the processor has products of bfloat16, that (if features and queue are), or thirds.
#pragma once

#include "contrastive_panel.h"  // first: it silences a warning about vectors in the headers below
#include "contrastive_problem.h"
#include "gemm_thirds.h"

namespace blip_fast {

// Keys [begin, begin + count), of the batch and then of the queue, into columns of a tile (E, kTile).
template <int64_t kTile, class E>
void pack_keys(const Problem& problem, const Direction& d, int64_t begin, int64_t count, E* tile) {
  const float* const batch_keys = static_cast<const float*>(d.batch_keys.const_data_ptr());
  const int64_t of_batch = std::clamp<int64_t>(problem.gathered - begin, 0, count);
  for (int64_t j = 0; j < of_batch; ++j) {
    for (int64_t e = 0; e < problem.embed; ++e) {
      from_float(batch_keys[(begin + j) * problem.embed + e], tile + e * kTile + j);
    }
  }
  if (of_batch == count) return;
  dispatch_float(d.queue.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const T* queue = static_cast<const T*>(d.queue.const_data_ptr()) + begin + of_batch - problem.gathered;
    for (int64_t e = 0; e < problem.embed; ++e, queue += problem.queued) {
      convert(queue, count - of_batch, tile + e * kTile + of_batch);
    }
  });
}

template <class E>
class KeyTile;

template <>
class KeyTile<float> {
 public:
  static constexpr int64_t kTile = 128;    // keys; at E = 256 they take 128 KB of the second-level cache
  static constexpr int64_t kRowUnit = 16;  // the widest vector

  explicit KeyTile(int64_t embed) : keys_(buffer<float>(embed * kTile)) {}

  // A panel of features as `scores` reads it, from its rows (width, E).
  static void pack_features(const float* rows, int64_t width, int64_t embed, float* panel) {
    for (int64_t r = 0; r < width; ++r) {
      for (int64_t e = 0; e < embed; ++e) panel[e * width + r] = rows[r * embed + e];
    }
  }

  void pack(const Problem& problem, const Direction& d, int64_t begin, int64_t count, const Prefetch& next) {
    pack_keys<kTile>(problem, d, begin, count, keys_.get());
    next_ = next;
  }
  void scores(const float* features, const Panel& p) {
    run_best<Multiply>(
        Product{{keys_.get(), 1, kTile}, features, p.rows, p.scores, p.rows, p.keys, p.rows, p.embed, false, {next_}});
    next_ = {};
  }
  void weighted_sum(const Panel& p) {
    run_best<Multiply>(
        Product{{keys_.get(), kTile, 1}, p.scores, p.rows, p.sum, p.rows, p.embed, p.rows, p.keys, false});
  }

 private:
  struct Multiply {
    template <class Isa>
    static BLIP_FAST_INLINE void run(const Product& product) {
      multiply<Isa>(product);
    }
  };

  Buffer<float> keys_;  // (E, kTile)
  Prefetch next_;       // what the next product is to fetch
};

template <>
class KeyTile<BFloat16> {
 public:
  static constexpr int64_t kTile = 256;  // 512 bytes of each row of the queue, as in fp32
  static constexpr int64_t kRowUnit = kPanelColumns;

  explicit KeyTile(int64_t embed)
      : depth_(Packing<BFloat16>::padded(embed)),
        row_stride_(depth_ + 32),  // an odd number of cache lines
        columns_(buffer<BFloat16>(depth_ * kTile)),
        rows_(buffer<BFloat16>(kTile * row_stride_)),
        weights_(buffer<BFloat16>(kTile * kPanelColumns)) {
    std::fill_n(columns_.get(), depth_ * kTile, BFloat16(0.0f));
  }

  static void pack_features(const float* rows, int64_t width, int64_t embed, BFloat16* panel) {
    const int64_t depth = Packing<BFloat16>::padded(embed);
    std::fill_n(panel, width * depth, BFloat16(0.0f));
    for (int64_t r = 0; r < width; ++r) {
      BFloat16* const part = panel + r / kPanelColumns * kPanelColumns * depth;
      for (int64_t e = 0; e < embed; ++e) from_float(rows[r * embed + e], at(part, e, r % kPanelColumns));
    }
  }

  void pack(const Problem& problem, const Direction& d, int64_t begin, int64_t count, const Prefetch& next) {
    pack_keys<kTile>(problem, d, begin, count, columns_.get());
    for (int64_t e = 0; count < kTile && e < problem.embed; ++e) {
      std::fill(columns_.get() + e * kTile + count, columns_.get() + (e + 1) * kTile, BFloat16(0.0f));
    }
    constexpr int64_t kAcross = kTile / 32;
    const int64_t blocks = depth_ / 32 * kAcross;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t e = block / kAcross * 32, key = block % kAcross * 32;
      transpose_block(columns_.get() + e * kTile + key, kTile, 32, 32, rows_.get() + key * row_stride_ + e,
                      row_stride_);
      next.fetch(block, block + 1, blocks);
    }
  }

  void scores(const BFloat16* features, const Panel& p) const {
    for (int64_t r = 0; r < p.rows; r += kPanelColumns) {
      multiply_panel({rows_.get(), row_stride_}, p.keys, depth_, features + r * depth_, p.scores + r, p.rows, false);
    }
  }

  void weighted_sum(const Panel& p) {
    for (int64_t r = 0; r < p.rows; r += kPanelColumns) {
      pack_panel(p.scores + r, p.rows, p.keys, kPanelColumns, weights_.get());
      multiply_panel({columns_.get(), kTile}, p.embed, Packing<BFloat16>::padded(p.keys), weights_.get(), p.sum + r,
                     p.rows, false);
    }
  }

 private:
  int64_t depth_, row_stride_;
  Buffer<BFloat16> columns_, rows_;  // (depth, kTile), zero padded, and (kTile, depth)
  Buffer<BFloat16> weights_;         // a panel
};

template <>
class KeyTile<Thirds> {
 public:
  static constexpr int64_t kTile = 128;
  static constexpr int64_t kRowUnit = kPanelColumns;

  explicit KeyTile(int64_t embed)
      : depth_(Packing<Thirds>::padded(embed)),
        keys_(buffer<float>(embed * kTile)),
        columns_(buffer<Thirds>(depth_ * kTile)),
        rows_(buffer<Thirds>(kTile * depth_)),
        weights_(buffer<Thirds>(kTile * kPanelColumns)) {}

  static void pack_features(const float* rows, int64_t width, int64_t embed, Thirds* panel) {
    for (int64_t r = 0; r < width; r += kPanelColumns) {
      pack_right({rows + r * embed, embed, true}, kPanelColumns, embed, panel + r * Packing<Thirds>::padded(embed));
    }
  }

  void pack(const Problem& problem, const Direction& d, int64_t begin, int64_t count, const Prefetch& next) {
    pack_keys<kTile>(problem, d, begin, count, keys_.get());
    const Side rows{keys_.get(), kTile, false}, columns{keys_.get(), kTile, true};
    const int64_t embed = problem.embed;
    for (int64_t key = 0; key < count; key += kPanelColumns) {
      pack_left(rows.from(key, 0), std::min(kPanelColumns, count - key), embed, rows_.get() + key * depth_);
    }
    for (int64_t e = 0; e < embed; e += kPanelColumns) {
      pack_left(columns.from(e, 0), std::min(kPanelColumns, embed - e), count, columns_.get() + e * kTile);
      next.fetch(e, std::min(e + kPanelColumns, embed), embed);
    }
  }

  void scores(const Thirds* features, const Panel& p) const {
    for (int64_t r = 0; r < p.rows; r += kPanelColumns) {
      multiply_panel({rows_.get(), depth_}, p.keys, depth_, features + r * depth_, p.scores + r, p.rows, false);
    }
  }

  void weighted_sum(const Panel& p) {
    for (int64_t r = 0; r < p.rows; r += kPanelColumns) {
      pack_right({p.scores + r, p.rows, false}, kPanelColumns, p.keys, weights_.get());
      multiply_panel({columns_.get(), kTile}, p.embed, Packing<Thirds>::padded(p.keys), weights_.get(), p.sum + r,
                     p.rows, false);
    }
  }

 private:
  int64_t depth_;
  Buffer<float> keys_;             // (E, kTile)
  Buffer<Thirds> columns_, rows_;  // panels of the keys' columns, and of the keys
  Buffer<Thirds> weights_;         // a panel
};

}  // namespace blip_fast
