// Contrastive loss of a batch against momentum keys, with its gradients, in one sweep over the keys.
//
// Online and momentum features are rows of one matrix X. For each row the sweep accumulates, tile by tile of keys, the
// log-sum-exp of the logits x . k / temp and the expected key under their softmax; loss and gradients follow from
// these:
//   loss_i = lse_i - online_i . target_key_i / temp,   d loss_i / d online_i = (expected_key_i - target_key_i) / temp,
// where target_key_i = alpha * expected_key(momentum_i) + (1 - alpha) * mean of the positive keys. Per direction that
// is 16 B E (N + Q) FLOPs (half of that if alpha is 0) and one read of the queue.
#include "contrastive_keys.h"  // first: it silences a warning about vectors in the headers below

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

constexpr int64_t kThirdsRows = 128;  // from so many on products by thirds are faster
constexpr int64_t kGroup = 128;       // rows per task, at least, so that reading the keys does not bound it

// Rows of X, packed panel by panel.
template <class E>
Buffer<E> pack_rows(const Problem& problem, const Direction& d) {
  const float* const online = static_cast<const float*>(d.online.const_data_ptr());
  const float* const momentum = static_cast<const float*>(d.momentum.const_data_ptr()) + problem.offset * problem.embed;
  const int64_t depth = Packing<E>::padded(problem.embed);
  Buffer<E> features = buffer<E>(problem.rows.padded() * depth);
  const Buffer<float> rows = buffer<float>(kPanelRows * problem.embed);
  for (int64_t panel = 0; panel < problem.rows.panels(); ++panel) {
    const int64_t start = problem.rows.start(panel), width = problem.rows.width(panel);
    for (int64_t r = start; r < start + width; ++r) {
      float* const row = rows.get() + (r - start) * problem.embed;
      if (r < problem.batch) {
        std::copy_n(online + r * problem.embed, problem.embed, row);
      } else if (r < problem.rows.count) {
        std::copy_n(momentum + (r - problem.batch) * problem.embed, problem.embed, row);
      } else {
        std::fill_n(row, problem.embed, 0.0f);
      }
    }
    KeyTile<E>::pack_features(rows.get(), width, problem.embed, features.get() + start * depth);
  }
  return features;
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

// One group of rows against one split of the keys.
template <class E>
class Sweep {
 public:
  Sweep(const Problem& problem, const Direction& direction, const E* features, const Partial& partial, int64_t group)
      : problem_(problem),
        direction_(direction),
        features_(features),
        partial_(partial),
        group_(group),
        tile_(problem.embed) {
    const int64_t embed = problem.embed, rows = std::min(kPanelRows, problem.rows.padded());
    scratch_ = buffer<float>(kTile * rows + (embed + 1) * rows);
    panel_.embed = embed;
    panel_.scale = kLog2E / problem.temp;
    panel_.scores = scratch_.get();
    panel_.sum = panel_.scores + kTile * rows;
    panel_.factor = panel_.sum + embed * rows;
  }

  void run(int64_t split) {
    const Range tiles = share(ceil_div(problem_.keys(), kTile), problem_.splits, split);
    for (int64_t begin = tiles.begin * kTile; begin < std::min(tiles.end * kTile, problem_.keys()); begin += kTile) {
      panel_.keys = std::min(kTile, problem_.keys() - begin);
      tile_.pack(problem_, direction_, begin, panel_.keys, after_tile(begin));
      accumulate(begin);
      if (problem_.ids) accumulate_positives(begin);
    }
  }

 private:
  static constexpr int64_t kTile = KeyTile<E>::kTile;

  void accumulate(int64_t begin) {
    const Rows& rows = problem_.rows;
    const Range panels = share(rows.panels(), problem_.groups, group_);
    for (int64_t i = panels.begin; i < panels.end; ++i) {
      const int64_t start = rows.start(i);
      panel_.rows = rows.width(i);
      panel_.expected = partial_.expected(start);
      panel_.maximum = partial_.maximum + start;
      panel_.total = partial_.total + start;
      panel_.carry = partial_.carry + start;
      tile_.scores(features_ + start * Packing<E>::padded(problem_.embed), panel_);
      write_logits(problem_, direction_, begin, start, panel_);
      run_best<Weights>(panel_);
      add_weighted_keys();
    }
  }

  void accumulate_positives(int64_t begin) {
    const Rows& rows = problem_.positive_rows;
    const Range panels = share(rows.panels(), problem_.groups, group_);
    for (int64_t i = panels.begin; i < panels.end; ++i) {
      const int64_t start = rows.start(i);
      panel_.rows = rows.width(i);
      panel_.expected = partial_.positive(start);
      if (mark_positives(problem_, begin, start, panel_, partial_.matches)) add_weighted_keys();
    }
  }

  void add_weighted_keys() {
    tile_.weighted_sum(panel_);
    run_best<AddSum>(panel_);
  }

  // The keys of the queue that follow the tile.
  Prefetch after_tile(int64_t begin) const {
    const int64_t next = begin + kTile - problem_.gathered, size = direction_.queue.element_size();
    if (next < 0 || next >= problem_.queued) return {};
    const char* const keys = static_cast<const char*>(direction_.queue.const_data_ptr()) + next * size;
    return {keys, problem_.queued * size, kTile * size, problem_.embed};
  }

  const Problem& problem_;
  const Direction& direction_;
  const E* const features_;
  const Partial& partial_;
  const int64_t group_;
  KeyTile<E> tile_;
  Buffer<float> scratch_;
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
  const int64_t tiles = ceil_div(problem.keys(), problem.tile);
  problem.splits = std::clamp<int64_t>(threads / std::gcd(threads, 2 * problem.groups), 1, tiles);  // as many for each
}

bool all_bf16(std::initializer_list<Tensor> tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor& tensor) { return tensor.scalar_type() == ScalarType::BFloat16; });
}

Tensor as_float(const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::Float); }

template <class E>
std::vector<Partial> sweep_all(const Problem& problem, const Direction (&directions)[2], const Tensor& memory) {
  std::vector<Partial> partials;  // of direction 0, then of direction 1
  float* const begin = static_cast<float*>(memory.mutable_data_ptr());
  for (int64_t i = 0; i < 2 * problem.splits; ++i) {
    partials.emplace_back(problem, begin + i * Partial::size(problem));
    std::fill_n(partials.back().maximum, problem.rows.padded(), kMinusInf);
  }
  const Buffer<E> features[2] = {pack_rows<E>(problem, directions[0]), pack_rows<E>(problem, directions[1])};
  parallel(2 * problem.splits * problem.groups, [&](int64_t task) {
    const int64_t i = task / problem.groups, d = i / problem.splits;
    Sweep<E>(problem, directions[d], features[d].get(), partials[i], task % problem.groups).run(i % problem.splits);
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
  const auto matrix = [](int64_t rows, int64_t columns) {
    return torch::stable::empty({rows, columns}, ScalarType::Float);
  };
  return {online, momentum, keys, queue, matrix(problem.batch, problem.gathered), matrix(problem.batch, problem.embed)};
}

// What the operation returns: loss, logits and gradients of both directions, d loss / d temp.
using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

int64_t row_count(const Problem& problem) { return problem.alpha == 0 ? problem.batch : 2 * problem.batch; }

template <class E>
Result compute(Problem problem, const Direction (&directions)[2]) {
  problem.tile = KeyTile<E>::kTile;
  problem.rows = {row_count(problem), KeyTile<E>::kRowUnit};
  problem.positive_rows = {problem.batch, KeyTile<E>::kRowUnit};
  split(problem);
  const Tensor memory =
      torch::stable::new_zeros(directions[0].online, {2 * problem.splits * Partial::size(problem)}, ScalarType::Float);
  const std::vector<Partial> partials = sweep_all<E>(problem, directions, memory);
  const auto [loss, grad_temp] = finish(problem, directions, partials);
  return {loss, directions[0].logits, directions[1].logits, directions[0].gradient, directions[1].gradient, grad_temp};
}

// By thirds only what is finite (gemm_thirds.h), and enough rows to make up for taking the keys to pieces.
Result compute_in_fp32(const Problem& problem, const Direction (&directions)[2]) {
  if (has_amx() && row_count(problem) >= kThirdsRows) {
    const Result result = compute<Thirds>(problem, directions);
    const auto& [loss, logits, logits_t, gradient, gradient_t, grad_temp] = result;
    if (all_finite(loss) && all_finite(logits) && all_finite(logits_t) && all_finite(gradient) &&
        all_finite(gradient_t))
      return result;
  }
  return compute<float>(problem, directions);
}

Result contrastive_loss(Tensor image_feat, Tensor text_feat, Tensor image_feat_m, Tensor text_feat_m,
                        Tensor image_queue, Tensor text_queue, Tensor temp, Tensor alpha, std::optional<Tensor> ids,
                        std::optional<Tensor> queue_ids, int64_t offset) {
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
  const Tensor images_m = as_float(image_feat_m), texts_m = as_float(text_feat_m);
  const Direction directions[2] = {direction(problem, as_float(image_feat), images_m, texts_m, text_queue),
                                   direction(problem, as_float(text_feat), texts_m, images_m, image_queue)};
  const bool in_bf16 =
      has_bf16_products() && all_bf16({image_feat, text_feat, image_feat_m, text_feat_m, image_queue, text_queue});
  return in_bf16 ? compute<BFloat16>(problem, directions) : compute_in_fp32(problem, directions);
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
