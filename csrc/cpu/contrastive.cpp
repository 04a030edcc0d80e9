// Contrastive loss of a batch against momentum keys, with its gradients, in one sweep over the keys.
//
// Online and momentum features are rows of one matrix X. For each row the sweep accumulates, tile by tile of keys, the
// log-sum-exp of the logits x . k / temp and the expected key under their softmax; loss and gradients follow from these:
//   loss_i = lse_i - online_i . target_key_i / temp,   d loss_i / d online_i = (expected_key_i - target_key_i) / temp,
// where target_key_i = alpha * expected_key(momentum_i) + (1 - alpha) * mean of the positive keys. Per direction that is
// 8 B E (N + Q) FLOPs and one read of the queue. Vectors run over rows, so that neither of the two products of a tile
// needs its keys transposed: scores^T = K X^T and expected^T = K^T weights^T.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/dtypes.h"
#include "simd.h"

namespace blip_fast {
namespace {

using torch::stable::Tensor;

constexpr int64_t kTile = 128;  // keys per tile: at E = 256 a tile takes 128 KB of the second-level cache
constexpr int64_t kVectors = 3;  // of rows in a panel, at most
constexpr int64_t kGroup = 128;  // rows per task, at least, so that reading the keys does not bound it
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// Some rows against one tile of keys. Matrices of a panel are stored with its rows innermost.
struct Panel {
  int64_t rows;  // one to kVectors vectors
  int64_t embed;  // E
  const float* tile;  // (E rounded up to 8, kTile)
  int64_t keys;  // in the tile
  const float* features;  // (E, rows)
  float scale;  // log2(e) / temp
  float* scores;  // (kTile, rows): logits to base 2, then weights
  float* expected;  // (E rounded up to 8, rows): sum of weight * key
  float* maximum;  // (rows)
  float* total;  // (rows): sum of weights
  float* factor;  // (rows): what brings earlier sums to the new maximum
};

template <int W, int M, int V>
BLIP_FAST_INLINE void compute_scores(const Panel& p) {
  using Float = typename Simd<W>::Float;
  for (int64_t j = 0; j < p.keys; j += M) {
    Float c[M][V] = {};
    multiply_tile<W, M, V>(p.tile + j, kTile, 1, p.features, p.embed, c);
    Float* const scores = reinterpret_cast<Float*>(p.scores) + j * V;
    BLIP_FAST_UNROLL
    for (int m = 0; m < M; ++m) {
      BLIP_FAST_UNROLL
      for (int v = 0; v < V; ++v) scores[m * V + v] = c[m][v] * p.scale;
    }
  }
}

template <int W, int M, int V>
BLIP_FAST_INLINE void compute_weights(const Panel& p) {
  using Float = typename Simd<W>::Float;
  for (int v = 0; v < V; ++v) {
    Float* const scores = reinterpret_cast<Float*>(p.scores) + v;
    Float& maximum = reinterpret_cast<Float*>(p.maximum)[v];
    Float& total = reinterpret_cast<Float*>(p.total)[v];
    Float top = maximum;
    for (int64_t j = 0; j < p.keys; ++j) top = scores[j * V] > top ? scores[j * V] : top;
    const Float shift = top == kMinusInf ? Float{} : top;  // -inf - -inf would be NaN
    Float factor = maximum - shift;
    exp2_nonpositive<W>(factor);
    Float sum{};
    for (int64_t j = 0; j < p.keys; ++j) {
      Float weight = scores[j * V] - shift;
      exp2_nonpositive<W>(weight);
      scores[j * V] = weight;
      sum += weight;
    }
    total = total * factor + sum;
    maximum = top;
    reinterpret_cast<Float*>(p.factor)[v] = factor;
  }
}

template <int W, int M, int V>
BLIP_FAST_INLINE void add_weighted_keys(const Panel& p) {
  using Float = typename Simd<W>::Float;
  const Float* const factor = reinterpret_cast<const Float*>(p.factor);
  for (int64_t e = 0; e < p.embed; e += M) {
    Float* const expected = reinterpret_cast<Float*>(p.expected) + e * V;
    Float c[M][V];
    BLIP_FAST_UNROLL
    for (int m = 0; m < M; ++m) {
      BLIP_FAST_UNROLL
      for (int v = 0; v < V; ++v) c[m][v] = expected[m * V + v] * factor[v];
    }
    multiply_tile<W, M, V>(p.tile + e * kTile, 1, kTile, p.scores, p.keys, c);
    BLIP_FAST_UNROLL
    for (int m = 0; m < M; ++m) {
      BLIP_FAST_UNROLL
      for (int v = 0; v < V; ++v) expected[m * V + v] = c[m][v];
    }
  }
}

enum class Step { kScores, kWeights, kSum };

template <int W, int M, int V>
BLIP_FAST_INLINE void run_step(Step step, const Panel& p) {
  switch (step) {
    case Step::kScores:
      return compute_scores<W, M, V>(p);
    case Step::kWeights:
      return compute_weights<W, M, V>(p);
    case Step::kSum:
      return add_weighted_keys<W, M, V>(p);
  }
}

template <int W, int M>
BLIP_FAST_INLINE void run_width(Step step, const Panel& p) {
  switch (p.rows / W) {
    case 1:
      return run_step<W, M, 1>(step, p);
    case 2:
      return run_step<W, M, 2>(step, p);
    default:
      return run_step<W, M, 3>(step, p);
  }
}

// M x V accumulators, V vectors of b and a scalar fit the 32 registers of AVX-512 and the 16 of the others.
BLIP_FAST_AVX512 void run_avx512(Step step, const Panel& p) {
  run_width<16, 8>(step, p);
}

BLIP_FAST_AVX2 void run_avx2(Step step, const Panel& p) {
  run_width<8, 4>(step, p);
}

void run_portable(Step step, const Panel& p) {
  run_width<4, 4>(step, p);
}

struct Machine {
  int64_t lanes;
  void (*run)(Step, const Panel&);
};

Machine machine() {
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return {16, run_avx512};
    case InstructionSet::kAvx2:
      return {8, run_avx2};
    default:
      return {4, run_portable};
  }
}

// Rows in panels of kVectors vectors; the last panel is as narrow as it can be.
struct Rows {
  int64_t count, lanes;

  int64_t padded() const {
    return round_up(count, lanes);
  }
  int64_t panels() const {
    return (count + kVectors * lanes - 1) / (kVectors * lanes);
  }
  int64_t start(int64_t panel) const {
    return panel * kVectors * lanes;
  }
  int64_t width(int64_t panel) const {
    return std::min(kVectors * lanes, padded() - start(panel));
  }
};

// Similarities of one direction: rows are online features and, unless alpha is 0, momentum features of one modality; keys
// are momentum features of the other one, those of the batch (N) and then those in the queue (Q).
struct Direction {
  Tensor online, momentum;  // (B, E), (N, E)
  Tensor batch_keys, queue;  // (N, E), (E, Q)
  Tensor logits, gradient;  // out: (B, N) online logits of the batch's keys, (B, E)
  Tensor features;  // rows packed panel by panel
};

struct Problem {
  int64_t batch, gathered, queued, embed, offset;
  float temp, alpha;
  const int64_t *ids, *queue_ids;  // (N), (Q), or null: row i's one positive is key offset + i
  Rows rows, positive_rows;
  int64_t splits;  // of the keys

  int64_t keys() const {
    return gathered + queued;
  }
  int64_t embed_padded() const {
    return round_up(embed, 8);
  }
  int64_t id(int64_t key) const {
    return key < gathered ? ids[key] : queue_ids[key - gathered];
  }
};

// What one split of the keys contributes to one direction.
class Partial {
 public:
  Partial(const Problem& problem, float* memory) : embed_(problem.embed_padded()) {
    const int64_t rows = problem.rows.padded(), positives = problem.ids ? problem.positive_rows.padded() : 0;
    maximum = memory;
    total = maximum + rows;
    matches = total + rows;
    expected_ = matches + positives;
    positive_ = expected_ + embed_ * rows;
  }
  static int64_t size(const Problem& problem) {
    const int64_t positives = problem.ids ? problem.positive_rows.padded() : 0;
    return (problem.embed_padded() + 2) * problem.rows.padded() + (problem.embed_padded() + 1) * positives;
  }
  float* expected(int64_t start) const {
    return expected_ + embed_ * start;
  }
  float* positive(int64_t start) const {
    return positive_ + embed_ * start;
  }

  float *maximum, *total;  // (rows) each, see Panel
  float* matches;  // (online rows): number of positives seen

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
      const float* const row = r < problem.batch ? online + r * problem.embed : momentum + (r - problem.batch) * problem.embed;
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
BLIP_FAST_MULTIVERSION bool mark_positives(const Problem& problem, int64_t begin, int64_t start, const Panel& p, float* matches) {
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
      logits[r * problem.gathered + begin + j] = p.scores[j * p.rows + r - start] * kLn2;
    }
  }
}

struct Range {
  int64_t begin, end;
};

Range share(int64_t total, int64_t parts, int64_t part) {
  return {total * part / parts, total * (part + 1) / parts};
}

// The keys of one split against the rows of one group.
void sweep(const Problem& problem, const Direction& d, int64_t split, int64_t groups, int64_t group, const Partial& partial) {
  const Machine cpu = machine();
  const int64_t embed = problem.embed, widest = kVectors * cpu.lanes;
  const Tensor scratch =
      torch::stable::new_zeros(d.features, {kTile * (problem.embed_padded() + widest) + widest}, ScalarType::Float);
  float* const tile = static_cast<float*>(scratch.mutable_data_ptr());
  Panel p{};
  p.embed = embed;
  p.tile = tile;
  p.scale = kLog2E / problem.temp;
  p.scores = tile + kTile * problem.embed_padded();
  p.factor = p.scores + kTile * widest;
  const Range tiles = share((problem.keys() + kTile - 1) / kTile, problem.splits, split);
  for (int64_t begin = tiles.begin * kTile; begin < std::min(tiles.end * kTile, problem.keys()); begin += kTile) {
    p.keys = std::min(kTile, problem.keys() - begin);
    pack_keys(problem, d, begin, p.keys, tile);
    const Range panels = share(problem.rows.panels(), groups, group);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const int64_t start = problem.rows.start(panel);
      p.rows = problem.rows.width(panel);
      p.features = static_cast<const float*>(d.features.const_data_ptr()) + start * embed;
      p.expected = partial.expected(start);
      p.maximum = partial.maximum + start;
      p.total = partial.total + start;
      cpu.run(Step::kScores, p);
      write_logits(problem, d, begin, start, p);
      cpu.run(Step::kWeights, p);
      cpu.run(Step::kSum, p);
    }
    if (!problem.ids) continue;
    const Range positive_panels = share(problem.positive_rows.panels(), groups, group);
    for (int64_t panel = positive_panels.begin; panel < positive_panels.end; ++panel) {
      const int64_t start = problem.positive_rows.start(panel);
      p.rows = problem.positive_rows.width(panel);
      p.expected = partial.positive(start);
      if (mark_positives(problem, begin, start, p, partial.matches)) cpu.run(Step::kSum, p);
    }
  }
}

// Expected key of a row over all splits into `expected` (E); returns the log-sum-exp of its logits.
double merge(const Problem& problem, const std::vector<Partial>& partials, int64_t row, float* expected) {
  const int64_t panel = row / (kVectors * problem.rows.lanes), start = problem.rows.start(panel);
  const int64_t width = problem.rows.width(panel);
  float top = kMinusInf;
  for (const Partial& partial : partials) top = std::max(top, partial.maximum[row]);
  double total = 0;
  std::fill(expected, expected + problem.embed, 0.0f);
  for (const Partial& partial : partials) {
    const float factor = std::exp2(partial.maximum[row] - top);
    const float* const sum = partial.expected(start) + row - start;
    total += partial.total[row] * factor;
    for (int64_t e = 0; e < problem.embed; ++e) expected[e] += sum[e * width] * factor;
  }
  for (int64_t e = 0; e < problem.embed; ++e) expected[e] = static_cast<float>(expected[e] / total);
  return (top + std::log2(total)) / static_cast<double>(kLog2E);
}

// Mean of a row's positive keys.
void merge_positives(
    const Problem& problem, const Direction& d, const std::vector<Partial>& partials, int64_t row, float* mean) {
  const int64_t embed = problem.embed;
  if (!problem.ids) {
    const float* const key = static_cast<const float*>(d.batch_keys.const_data_ptr()) + (problem.offset + row) * embed;
    std::copy(key, key + embed, mean);
    return;
  }
  const int64_t panel = row / (kVectors * problem.rows.lanes), start = problem.positive_rows.start(panel);
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

// How the work is split for the number of threads: groups of rows first, since they share nothing, then the keys.
int64_t split(Problem& problem) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t groups = std::clamp<int64_t>(problem.rows.padded() / kGroup, 1, (threads + 1) / 2);
  const int64_t tiles = (problem.keys() + kTile - 1) / kTile;
  problem.splits = std::clamp<int64_t>((threads + 2 * groups - 1) / (2 * groups), 1, tiles);
  return groups;
}

Tensor as_float(const Tensor& tensor) {
  return torch::stable::to(tensor, ScalarType::Float);
}

std::vector<Partial> sweep_all(const Problem& problem, const Direction (&directions)[2], int64_t groups, const Tensor& memory) {
  std::vector<Partial> partials;  // of direction 0, then of direction 1
  float* const begin = static_cast<float*>(memory.mutable_data_ptr());
  for (int64_t i = 0; i < 2 * problem.splits; ++i) {
    partials.emplace_back(problem, begin + i * Partial::size(problem));
    std::fill_n(partials.back().maximum, problem.rows.padded(), kMinusInf);
  }
  torch::stable::parallel_for(0, 2 * problem.splits * groups, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t i = task / groups;
      sweep(problem, directions[i / problem.splits], i % problem.splits, groups, task % groups, partials[i]);
    }
  });
  return partials;
}

// Loss and d loss / d temp, (1) each; the gradients of the features go to the directions.
std::tuple<Tensor, Tensor> finish(
    const Problem& problem, const Direction (&directions)[2], const std::vector<Partial>& partials) {
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

Direction direction(const Problem& problem, const Tensor& online, const Tensor& momentum, const Tensor& keys, const Tensor& queue) {
  const auto buffer = [](std::initializer_list<int64_t> size) {
    return torch::stable::empty(std::vector<int64_t>(size), ScalarType::Float);
  };
  Direction d{online, momentum, keys, queue, buffer({problem.batch, problem.gathered}), buffer({problem.batch, problem.embed}),
              torch::stable::new_zeros(online, {problem.rows.padded() * problem.embed}, ScalarType::Float)};
  pack_rows(problem, d);
  return d;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> contrastive_loss(
    Tensor image_feat,
    Tensor text_feat,
    Tensor image_feat_m,
    Tensor text_feat_m,
    Tensor image_queue,
    Tensor text_queue,
    Tensor temp,
    Tensor alpha,
    std::optional<Tensor> ids,
    std::optional<Tensor> queue_ids,
    int64_t offset) {
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
  const int64_t lanes = machine().lanes;
  problem.rows = {problem.alpha == 0 ? problem.batch : 2 * problem.batch, lanes};
  problem.positive_rows = {problem.batch, lanes};
  const int64_t groups = split(problem);

  const Tensor images_m = as_float(image_feat_m), texts_m = as_float(text_feat_m);
  const Direction directions[2] = {
      direction(problem, as_float(image_feat), images_m, texts_m, text_queue),
      direction(problem, as_float(text_feat), texts_m, images_m, image_queue)};
  const Tensor memory =
      torch::stable::new_zeros(images_m, {2 * problem.splits * Partial::size(problem)}, ScalarType::Float);
  const std::vector<Partial> partials = sweep_all(problem, directions, groups, memory);
  const auto [loss, grad_temp] = finish(problem, directions, partials);
  return {loss, directions[0].logits, directions[1].logits, directions[0].gradient, directions[1].gradient, grad_temp};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def(
      "contrastive_loss(Tensor image_feat, Tensor text_feat, Tensor image_feat_m, Tensor text_feat_m, Tensor image_queue, "
      "Tensor text_queue, Tensor temp, Tensor alpha, Tensor? ids, Tensor? queue_ids, int offset) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) {
  m.impl("contrastive_loss", TORCH_BOX(&blip_fast::contrastive_loss));
}
