// Self-attention of packed texts: one task per text and head. The rows past the last text are a text that sees no keys.
#include <torch/csrc/stable/library.h>

#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/dtypes.h"
#include "attention_backward.h"
#include "attention_call.h"
#include "attention_forward.h"

namespace blip_fast {
namespace {

struct PackedCall {
  Tensor query, key, value;
  std::vector<int32_t> bounds;  // (S + 2): text s has the rows bounds[s] to bounds[s + 1]
  std::vector<int32_t> rows;    // 0, 1 .. T - 1
  std::vector<int32_t> text_of_row;
  AttentionSettings settings;
  int64_t texts;

  // Without `key` and `value`, `query` holds all three: (T, 3, H, D).
  PackedCall(const Tensor& query, const std::optional<Tensor>& key, const std::optional<Tensor>& value,
             const Tensor& cu_seqlens, bool causal, const std::optional<Tensor>& seed,
             const std::optional<Tensor>& offset, double dropout_p, double scale)
      : query(key ? query : torch::stable::select(query, 1, 0)),
        key(key ? *key : torch::stable::select(query, 1, 1)),
        value(value ? *value : torch::stable::select(query, 1, 2)),
        bounds(cu_seqlens.size(0) + 1),
        rows(query.size(0)),
        text_of_row(query.size(0)),
        settings{this->query.size(1),
                 this->query.size(2),
                 static_cast<float>(scale),
                 causal,
                 AttentionDropout(dropout_p, word(seed), word(offset)),
                 text_of_row.data(),
                 bounds.data()},
        texts(cu_seqlens.size(0) - 1) {
    const auto tokens = static_cast<int32_t>(query.size(0));
    const int32_t* const given = int32s(cu_seqlens);
    for (int64_t s = 1; s <= texts; ++s) bounds[s] = std::clamp(given[s], bounds[s - 1], tokens);
    bounds[texts + 1] = tokens;
    std::iota(rows.begin(), rows.end(), 0);
    for (int64_t s = 0; s <= texts; ++s) {
      std::fill(text_of_row.begin() + bounds[s], text_of_row.begin() + bounds[s + 1], static_cast<int32_t>(s));
    }
  }

  template <class T>
  AttentionTask<T> task(int64_t text, int64_t head) const {
    AttentionTask<T> task{};
    const int32_t begin = bounds[text];
    task.rows = rows.data() + begin;
    task.count = bounds[text + 1] - begin;
    task.head = head;
    task.query = head_of<const T>(query.const_data_ptr(), query, head);
    task.key = head_of<const T>(key.const_data_ptr(), key, head);
    task.value = head_of<const T>(value.const_data_ptr(), value, head);
    task.key.data += begin * task.key.stride;
    task.value.data += begin * task.value.stride;
    task.length = text < texts ? task.count : 0;
    return task;
  }
};

std::tuple<Tensor, Tensor> packed_self_attention(Tensor query, std::optional<Tensor> key, std::optional<Tensor> value,
                                                 Tensor cu_seqlens, std::optional<Tensor> seed,
                                                 std::optional<Tensor> offset, int64_t, bool causal, double dropout_p,
                                                 double scale) {
  const PackedCall call(query, key, value, cu_seqlens, causal, seed, offset, dropout_p, scale);
  return attend(call, call.texts + 1);
}

Tensor packed_self_attention_backward(Tensor grad_out, Tensor query, std::optional<Tensor> key,
                                      std::optional<Tensor> value, Tensor out, Tensor statistics, Tensor cu_seqlens,
                                      std::optional<Tensor> seed, std::optional<Tensor> offset, int64_t, bool causal,
                                      double dropout_p, double scale) {
  const PackedCall call(query, key, value, cu_seqlens, causal, seed, offset, dropout_p, scale);
  const int64_t tokens = query.size(0), heads = call.settings.heads, dim = call.settings.dim;
  // Each gradient is laid out as what it belongs to: three tensors one after the other, or one of (T, 3, H, D).
  Tensor gradient = key ? torch::stable::new_empty(query, {3, tokens, heads, dim})
                        : torch::stable::new_empty(query, {tokens, 3, heads, dim});
  const int64_t stride = key ? heads * dim : 3 * heads * dim, next = key ? tokens * heads * dim : heads * dim;
  dispatch_float(query.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    for_each_piece(call.texts + 1, heads, [&](int64_t text, int64_t first, int64_t count, Scratch* scratch) {
      std::vector<BackwardTask<T>> tasks;
      for (int64_t head = first; head < first + count; ++head) {
        BackwardTask<T>& task = tasks.emplace_back(BackwardTask<T>{call.task<T>(text, head)});
        task.out = head_of<const T>(out.const_data_ptr(), out, head);
        task.statistics = statistics_of<const SoftmaxStatistics>(statistics.const_data_ptr(), heads, head);
        task.grad_out = head_of<const T>(grad_out.const_data_ptr(), grad_out, head);
        T* const grad = static_cast<T*>(gradient.mutable_data_ptr()) + head * dim;
        T* const grad_of_text = grad + call.bounds[text] * stride;
        task.grad_query = {grad, stride};
        task.grad_key = {grad_of_text + next, stride};
        task.grad_value = {grad_of_text + 2 * next, stride};
        task.keys = task.count;
      }
      run_best<AttentionBackward>(static_cast<const BackwardTask<T>*>(tasks.data()), count, call.settings, scratch);
    });
  });
  return gradient;
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def(
      "packed_self_attention(Tensor query, Tensor? key, Tensor? value, Tensor cu_seqlens, Tensor? seed, Tensor? "
      "offset, int max_length, bool causal, float dropout_p, float scale) -> (Tensor, Tensor)");
  m.def(
      "packed_self_attention_backward(Tensor grad_out, Tensor query, Tensor? key, Tensor? value, Tensor out, Tensor "
      "statistics, Tensor cu_seqlens, Tensor? seed, Tensor? offset, int max_length, bool causal, float dropout_p, "
      "float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) {
  m.impl("packed_self_attention", TORCH_BOX(&blip_fast::packed_self_attention));
  m.impl("packed_self_attention_backward", TORCH_BOX(&blip_fast::packed_self_attention_backward));
}
