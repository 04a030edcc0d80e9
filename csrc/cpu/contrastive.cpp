// Contrastive loss of a batch against momentum keys, with its gradients, in one sweep over the keys.
//
// Online and momentum features are rows of one matrix X. For each row the sweep accumulates, tile by tile of keys, the
// log-sum-exp of the logits x . k / temp and the expected key under their softmax; loss and gradients follow from
// these:
//   loss_i = lse_i - online_i . target_key_i / temp,   d loss_i / d online_i = (expected_key_i - target_key_i) / temp,
// where target_key_i = alpha * expected_key(momentum_i) + (1 - alpha) * mean of the positive keys. Per direction that
// is 16 B E (N + Q) FLOPs (half of that if alpha is 0) and one read of the queue.
#include "contrastive_panel.h"  // first: it silences a warning about vectors in the headers below

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/dtypes.h"

namespace blip_fast {
namespace {

using torch::stable::Tensor;

constexpr int64_t kGroup = 128;  // rows per task, at least, so that reading the keys does not bound it

// Rows in panels of kPanelRows; the last panel is as narrow as it can be.
struct Rows {
  int64_t count;

  int64_t padded() const { return (count + kRowUnit - 1) / kRowUnit * kRowUnit; }
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
  Tensor features;           // rows packed panel by panel
};

struct Problem {
  int64_t batch, gathered, queued, embed, offset;
  float temp, alpha;
  const int64_t *ids, *queue_ids;  // (N), (Q), or null: row i's one positive is key offset + i
  Rows rows, positive_rows;
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

void pack_rows(const Problem& problem, const Direction& d) {
  const float* const online = static_cast<const float*>(d.online.const_data_ptr());
  const float* const momentum = static_cast<const float*>(d.momentum.const_data_ptr()) + problem.offset * problem.embed;
  float* const out = static_cast<float*>(d.features.mutable_data_ptr());
  for (int64_t panel = 0; panel < problem.rows.panels(); ++panel) {
    const int64_t start = problem.rows.start(panel), width = problem.rows.width(panel);
    for (int64_t r = start; r < std::min(start + width, problem.rows.count); ++r) {
      const float* const row =
          r < problem.batch ? online + r * problem.embed : momentum + (r - problem.batch) * problem.embed;
      for (int64_t e = 0; e < problem.embed; ++e) out[(start * problem.embed) + e * width + r - start] = row[e];
    }
  }
}

template <class T>
BLIP_FAST_MULTIVERSION void pack_columns(const T* queue, int64_t stride, int64_t embed, int64_t count, float* tile) {
  for (int64_t e = 0; e < embed; ++e) {
    for (int64_t j = 0; j < count; ++j) tile[e * kTile + j] = static_cast<float>(queue[e * stride + j]);
  }
}

void pack_keys(const Problem& problem, const Direction& d, int64_t begin, int64_t count, float* tile) {
  const float* const batch_keys = static_cast<const float*>(d.batch_keys.const_data_ptr());
  const int64_t of_batch = std::clamp<int64_t>(problem.gathered - begin, 0, count);
  for (int64_t j = 0; j < of_batch; ++j) {
    for (int64_t e = 0; e < problem.embed; ++e) tile[e * kTile + j] = batch_keys[(begin + j) * problem.embed + e];
  }
  if (of_batch == count) return;
  dispatch_float(d.queue.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const T* const queue = static_cast<const T*>(d.queue.const_data_ptr()) + begin + of_batch - problem.gathered;
    pack_columns(queue, problem.queued, problem.embed, count - of_batch, tile + of_batch);
  });
}

// Weights 1 for positives and 0 for other keys; false if there is none.
BLIP_FAST_MULTIVERSION bool mark_positives(const Problem& problem, int64_t begin, int64_t start, const Panel& p,
                                           float* matches) {
  const int64_t rows = std::min(p.rows, problem.batch - start);
  const int64_t* const ids = problem.ids + problem.offset + start;
  std::fill(p.scores, p.scores + p.keys * p.rows, 0.0f);
  std::fill(p.factor, p.factor + p.rows, 1.0f);
  bool found = false;
  for (int64_t j = 0; j < p.keys; ++j) {
    const int64_t id = problem.id(begin + j);
    for (int64_t r = 0; r < rows; ++r) {
      const bool equal = ids[r] == id;
      p.scores[j * p.rows + r] = equal ? 1.0f : 0.0f;
      matches[start + r] += equal ? 1.0f : 0.0f;
      found |= equal;
    }
  }
  return found;
}

// Online logits of the batch's own keys, which mining needs.
void write_logits(const Problem& problem, const Direction& d, int64_t begin, int64_t start, const Panel& p) {
  float* const logits = static_cast<float*>(d.logits.mutable_data_ptr());
  for (int64_t r = start; r < std::min(start + p.rows, problem.batch); ++r) {
    for (int64_t j = 0; j < std::min(p.keys, problem.gathered - begin); ++j) {
      logits[r * problem.gathered + begin + j] = p.scores[j * p.rows + r - start] / problem.temp;
    }
  }
}

struct Range {
  int64_t begin, end;
};

Range share(int64_t total, int64_t parts, int64_t part) { return {total * part / parts, total * (part + 1) / parts}; }

// One group of rows against one split of the keys.
class Sweep {
 public:
  Sweep(const Problem& problem, const Direction& direction, const Partial& partial, int64_t group)
      : problem_(problem), direction_(direction), partial_(partial), group_(group) {
    const int64_t embed = problem.embed, rows = std::min(kPanelRows, problem.rows.padded());
    scratch_ =
        torch::stable::new_empty(direction.features, {kTile * (embed + rows) + (embed + 1) * rows}, ScalarType::Float);
    tile_ = static_cast<float*>(scratch_.mutable_data_ptr());
    panel_.embed = embed;
    panel_.tile = tile_;
    panel_.scale = kLog2E / problem.temp;
    panel_.scores = tile_ + kTile * embed;
    panel_.sum = panel_.scores + kTile * rows;
    panel_.factor = panel_.sum + embed * rows;
  }

  void run(int64_t split) {
    const Range tiles = share((problem_.keys() + kTile - 1) / kTile, problem_.splits, split);
    for (int64_t begin = tiles.begin * kTile; begin < std::min(tiles.end * kTile, problem_.keys()); begin += kTile) {
      panel_.keys = std::min(kTile, problem_.keys() - begin);
      pack_keys(problem_, direction_, begin, panel_.keys, tile_);
      accumulate(begin);
      if (problem_.ids) accumulate_positives(begin);
    }
  }

 private:
  void accumulate(int64_t begin) {
    const Rows& rows = problem_.rows;
    const Range panels = share(rows.panels(), problem_.groups, group_);
    panel_.next = after_tile(begin);
    for (int64_t i = panels.begin; i < panels.end; ++i) {
      const int64_t start = rows.start(i);
      panel_.rows = rows.width(i);
      panel_.features = static_cast<const float*>(direction_.features.const_data_ptr()) + start * problem_.embed;
      panel_.expected = partial_.expected(start);
      panel_.maximum = partial_.maximum + start;
      panel_.total = partial_.total + start;
      panel_.carry = partial_.carry + start;
      run_best<Scores>(panel_);
      write_logits(problem_, direction_, begin, start, panel_);
      run_best<Weights>(panel_);
      run_best<WeightedKeys>(panel_);
      panel_.next = {};
    }
  }

  void accumulate_positives(int64_t begin) {
    const Rows& rows = problem_.positive_rows;
    const Range panels = share(rows.panels(), problem_.groups, group_);
    for (int64_t i = panels.begin; i < panels.end; ++i) {
      const int64_t start = rows.start(i);
      panel_.rows = rows.width(i);
      panel_.expected = partial_.positive(start);
      if (mark_positives(problem_, begin, start, panel_, partial_.matches)) run_best<WeightedKeys>(panel_);
    }
  }

  // The keys of the queue that follow the tile. Its rows lie pages apart, which no hardware prefetches.
  Prefetch after_tile(int64_t begin) const {
    const int64_t next = begin + kTile - problem_.gathered, size = direction_.queue.element_size();
    if (next < 0 || next >= problem_.queued) return {};
    const char* const keys = static_cast<const char*>(direction_.queue.const_data_ptr()) + next * size;
    return {keys, problem_.queued * size, kTile * size, problem_.embed};
  }

  const Problem& problem_;
  const Direction& direction_;
  const Partial& partial_;
  const int64_t group_;
  Tensor scratch_;
  float* tile_;
  Panel panel_{};
};

// Expected key of a row over all splits into `expected` (E); returns the log-sum-exp of its logits.
double merge(const Problem& problem, const std::vector<Partial>& partials, int64_t row, float* expected) {
  const int64_t panel = row / kPanelRows, start = problem.rows.start(panel);
  const int64_t width = problem.rows.width(panel);
  float top = kMinusInf;
  for (const Partial& partial : partials) top = std::max(top, partial.maximum[row]);
  double total = 0;
  std::fill(expected, expected + problem.embed, 0.0f);
  for (const Partial& partial : partials) {
    const float factor = std::exp2(partial.maximum[row] - top);
    const float* const sum = partial.expected(start) + row - start;
    total += (static_cast<double>(partial.total[row]) - partial.carry[row]) * factor;
    for (int64_t e = 0; e < problem.embed; ++e) expected[e] += sum[e * width] * factor;
  }
  for (int64_t e = 0; e < problem.embed; ++e) expected[e] = static_cast<float>(expected[e] / total);
  return (top + std::log2(total)) / static_cast<double>(kLog2E);
}

// Mean of a row's positive keys.
void merge_positives(const Problem& problem, const Direction& d, const std::vector<Partial>& partials, int64_t row,
                     float* mean) {
  const int64_t embed = problem.embed;
  if (!problem.ids) {
    const float* const key = static_cast<const float*>(d.batch_keys.const_data_ptr()) + (problem.offset + row) * embed;
    std::copy(key, key + embed, mean);
    return;
  }
  const int64_t panel = row / kPanelRows, start = problem.positive_rows.start(panel);
  const int64_t width = problem.positive_rows.width(panel);
  float matches = 0;
  std::fill(mean, mean + embed, 0.0f);
  for (const Partial& partial : partials) {
    matches += partial.matches[row];
    for (int64_t e = 0; e < embed; ++e) mean[e] += partial.positive(start)[e * width + row - start];
  }
  for (int64_t e = 0; e < embed; ++e) mean[e] /= matches;
}

struct RowResult {
  double loss, gradient_dot_row;
};

// Loss of an online row; its gradient, for a mean over 2 B rows, goes to d.gradient.
RowResult finish_row(const Problem& problem, const Direction& d, const std::vector<Partial>& partials, int64_t row) {
  const int64_t embed = problem.embed;
  std::vector<float> expected(embed), target(embed), positive(embed);
  const double lse = merge(problem, partials, row, expected.data());
  merge_positives(problem, d, partials, row, positive.data());
  if (problem.alpha != 0) merge(problem, partials, problem.batch + row, target.data());
  const float* const online = static_cast<const float*>(d.online.const_data_ptr()) + row * embed;
  float* const gradient = static_cast<float*>(d.gradient.mutable_data_ptr()) + row * embed;
  const float scale = 1.0f / (problem.temp * 2 * problem.batch);
  RowResult result{lse, 0};
  for (int64_t e = 0; e < embed; ++e) {
    const float target_e = problem.alpha * target[e] + (1 - problem.alpha) * positive[e];
    gradient[e] = (expected[e] - target_e) * scale;
    result.loss -= static_cast<double>(online[e]) * target_e / problem.temp;
    result.gradient_dot_row += static_cast<double>(online[e]) * gradient[e];
  }
  return result;
}

// Splits the work for the number of threads: into groups of rows first, which share nothing, then of keys.
void split(Problem& problem) {
  const int64_t threads = torch::stable::get_num_threads();
  problem.groups = std::clamp<int64_t>(problem.rows.padded() / kGroup, 1, (threads + 1) / 2);
  const int64_t tiles = (problem.keys() + kTile - 1) / kTile;
  problem.splits = std::clamp<int64_t>(threads / std::gcd(threads, 2 * problem.groups), 1, tiles);  // as many for each
}

Tensor as_float(const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::Float); }

std::vector<Partial> sweep_all(const Problem& problem, const Direction (&directions)[2], const Tensor& memory) {
  std::vector<Partial> partials;  // of direction 0, then of direction 1
  float* const begin = static_cast<float*>(memory.mutable_data_ptr());
  for (int64_t i = 0; i < 2 * problem.splits; ++i) {
    partials.emplace_back(problem, begin + i * Partial::size(problem));
    std::fill_n(partials.back().maximum, problem.rows.padded(), kMinusInf);
  }
  torch::stable::parallel_for(0, 2 * problem.splits * problem.groups, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t i = task / problem.groups;
      Sweep(problem, directions[i / problem.splits], partials[i], task % problem.groups).run(i % problem.splits);
    }
  });
  return partials;
}

// Loss and d loss / d temp, (1) each; the gradients of the features go to the directions.
std::tuple<Tensor, Tensor> finish(const Problem& problem, const Direction (&directions)[2],
                                  const std::vector<Partial>& partials) {
  std::vector<RowResult> results(2 * problem.batch);
  torch::stable::parallel_for(0, 2 * problem.batch, 8, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t d = i / problem.batch;
      const auto begin = partials.begin() + d * problem.splits;
      results[i] = finish_row(problem, directions[d], {begin, begin + problem.splits}, i % problem.batch);
    }
  });
  double loss = 0, dot = 0;
  for (const RowResult& result : results) {
    loss += result.loss;
    dot += result.gradient_dot_row;
  }
  const Tensor scalars[2] = {torch::stable::empty({}, ScalarType::Float), torch::stable::empty({}, ScalarType::Float)};
  *static_cast<float*>(scalars[0].mutable_data_ptr()) = static_cast<float>(loss / (2 * problem.batch));
  *static_cast<float*>(scalars[1].mutable_data_ptr()) = static_cast<float>(-dot / problem.temp);
  return {scalars[0], scalars[1]};
}

Direction direction(const Problem& problem, const Tensor& online, const Tensor& momentum, const Tensor& keys,
                    const Tensor& queue) {
  const auto buffer = [](std::initializer_list<int64_t> size) {
    return torch::stable::empty(std::vector<int64_t>(size), ScalarType::Float);
  };
  Direction d{online,
              momentum,
              keys,
              queue,
              buffer({problem.batch, problem.gathered}),
              buffer({problem.batch, problem.embed}),
              torch::stable::new_zeros(online, {problem.rows.padded() * problem.embed}, ScalarType::Float)};
  pack_rows(problem, d);
  return d;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> contrastive_loss(
    Tensor image_feat, Tensor text_feat, Tensor image_feat_m, Tensor text_feat_m, Tensor image_queue, Tensor text_queue,
    Tensor temp, Tensor alpha, std::optional<Tensor> ids, std::optional<Tensor> queue_ids, int64_t offset) {
  Problem problem{};
  problem.batch = image_feat.size(0);
  problem.gathered = image_feat_m.size(0);
  problem.queued = image_queue.size(1);
  problem.embed = image_feat.size(1);
  problem.offset = offset;
  problem.temp = *static_cast<const float*>(temp.const_data_ptr());
  problem.alpha = *static_cast<const float*>(alpha.const_data_ptr());
  problem.ids = ids ? static_cast<const int64_t*>(ids->const_data_ptr()) : nullptr;
  problem.queue_ids = queue_ids ? static_cast<const int64_t*>(queue_ids->const_data_ptr()) : nullptr;
  problem.rows = {problem.alpha == 0 ? problem.batch : 2 * problem.batch};
  problem.positive_rows = {problem.batch};
  split(problem);

  const Tensor images_m = as_float(image_feat_m), texts_m = as_float(text_feat_m);
  const Direction directions[2] = {direction(problem, as_float(image_feat), images_m, texts_m, text_queue),
                                   direction(problem, as_float(text_feat), texts_m, images_m, image_queue)};
  const Tensor memory =
      torch::stable::new_zeros(images_m, {2 * problem.splits * Partial::size(problem)}, ScalarType::Float);
  const std::vector<Partial> partials = sweep_all(problem, directions, memory);
  const auto [loss, grad_temp] = finish(problem, directions, partials);
  return {loss, directions[0].logits, directions[1].logits, directions[0].gradient, directions[1].gradient, grad_temp};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def(
      "contrastive_loss(Tensor image_feat, Tensor text_feat, Tensor image_feat_m, Tensor text_feat_m, "
      "Tensor image_queue, Tensor text_queue, Tensor temp, Tensor alpha, Tensor? ids, Tensor? queue_ids, int offset) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) {
  m.impl("contrastive_loss", TORCH_BOX(&blip_fast::contrastive_loss));
}
