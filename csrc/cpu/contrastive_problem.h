// The contrastive loss of one batch: features, keys, and how they are divided into panels, groups and splits.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

namespace blip_fast {

using torch::stable::Tensor;

constexpr int64_t kPanelRows = 64;  // at most

// Rows in panels of kPanelRows; the last panel is as narrow as it can be.
struct Rows {
  int64_t count, unit;  // widths are multiples of the unit

  int64_t padded() const { return (count + unit - 1) / unit * unit; }
  int64_t panels() const { return (count + kPanelRows - 1) / kPanelRows; }
  int64_t start(int64_t panel) const { return panel * kPanelRows; }
  int64_t width(int64_t panel) const { return std::min(kPanelRows, padded() - start(panel)); }
};

// Similarities of one direction: rows are online features and, unless alpha is 0, momentum features of one modality;
// keys are momentum features of the other one, those of the batch (N) and then those in the queue (Q).
struct Direction {
  Tensor online, momentum;   // (B, E), (N, E)
  Tensor batch_keys, queue;  // (N, E), (E, Q)
  Tensor logits, gradient;   // out: (B, N) online logits of the batch's keys, (B, E)
};

struct Problem {
  int64_t batch, gathered, queued, embed, offset;
  float temp, alpha;
  const int64_t *ids, *queue_ids;  // (N), (Q), or null: row i's one positive is key offset + i
  Rows rows, positive_rows;
  int64_t tile;            // keys at a time
  int64_t groups, splits;  // of the rows, of the keys

  int64_t keys() const { return gathered + queued; }
  int64_t id(int64_t key) const { return key < gathered ? ids[key] : queue_ids[key - gathered]; }
};

// What one split of the keys contributes to one direction.
class Partial {
 public:
  Partial(const Problem& problem, float* memory) : embed_(problem.embed) {
    const int64_t rows = problem.rows.padded(), positives = problem.ids ? problem.positive_rows.padded() : 0;
    maximum = memory;
    total = maximum + rows;
    carry = total + rows;
    matches = carry + rows;
    expected_ = matches + positives;
    positive_ = expected_ + embed_ * rows;
  }
  static int64_t size(const Problem& problem) {
    const int64_t positives = problem.ids ? problem.positive_rows.padded() : 0;
    return (problem.embed + 3) * problem.rows.padded() + (problem.embed + 1) * positives;
  }
  float* expected(int64_t start) const { return expected_ + embed_ * start; }
  float* positive(int64_t start) const { return positive_ + embed_ * start; }

  float *maximum, *total, *carry;  // (rows) each, see Panel
  float* matches;                  // (online rows): number of positives seen

 private:
  int64_t embed_;
  float *expected_, *positive_;  // sums of weighted keys, of positive keys; packed panel by panel
};

struct Range {
  int64_t begin, end;
};

inline Range share(int64_t total, int64_t parts, int64_t part) {
  return {total * part / parts, total * (part + 1) / parts};
}

}  // namespace blip_fast
