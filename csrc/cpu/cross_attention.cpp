// Cross-attention of packed texts to images: one task per image and head; an image's keys are read once for all its
// texts.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/dtypes.h"
#include "attention_backward.h"
#include "attention_call.h"
#include "attention_forward.h"
#include "operations.h"

namespace blip_fast {
namespace {

// RowGroups of blip_fast/reference/row_groups.py.
struct Groups {
  const int32_t *cu_seqlens, *rows, *bounds, *text_of_row;

  explicit Groups(const std::vector<Tensor>& groups)
      : cu_seqlens(int32s(groups[0])),
        rows(int32s(groups[2])),
        bounds(int32s(groups[3])),
        text_of_row(int32s(groups[4])) {}
};

struct Call {
  Tensor query, key, value;
  Groups groups;
  const int32_t* image_lengths;  // or null
  AttentionSettings settings;
  int64_t images, length;

  // Without `value`, `key` holds both: (B, L, 2, H, D).
  Call(const Tensor& query, const Tensor& key, const std::optional<Tensor>& value, const std::vector<Tensor>& tensors,
       const std::optional<Tensor>& image_lengths, const std::optional<Tensor>& seed,
       const std::optional<Tensor>& offset, double dropout_p, double scale)
      : query(query),
        key(value ? key : torch::stable::select(key, 2, 0)),
        value(value ? *value : torch::stable::select(key, 2, 1)),
        groups(tensors),
        image_lengths(image_lengths ? int32s(*image_lengths) : nullptr),
        settings{query.size(1),
                 query.size(2),
                 static_cast<float>(scale),
                 false,
                 AttentionDropout(dropout_p, word(seed), word(offset)),
                 groups.text_of_row,
                 groups.cu_seqlens},
        images(key.size(0)),
        length(key.size(1)) {}

  // Texts of `image` and their keys; image == images: the rows without an image, which see no keys.
  template <class T>
  AttentionTask<T> task(int64_t image, int64_t head) const {
    AttentionTask<T> task{};
    const int32_t begin = groups.bounds[image];
    task.rows = groups.rows + begin;
    task.count = groups.bounds[image + 1] - begin;
    task.head = head;
    task.query = head_of<const T>(query.const_data_ptr(), query, head);
    if (image == images) return task;
    task.key = head_of<const T>(key.const_data_ptr(), key, image, head);
    task.value = head_of<const T>(value.const_data_ptr(), value, image, head);
    task.length = image_lengths ? std::clamp<int64_t>(image_lengths[image], 0, length) : length;
    return task;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> cross_attention(Tensor query, Tensor key, std::optional<Tensor> value,
                                           std::vector<Tensor> groups, std::optional<Tensor> image_lengths,
                                           std::optional<Tensor> seed, std::optional<Tensor> offset, double dropout_p,
                                           double scale, int64_t) {
  const Call call(query, key, value, groups, image_lengths, seed, offset, dropout_p, scale);
  return attend(call, call.images + 1);
}

namespace {

std::tuple<Tensor, Tensor> cross_attention_backward(Tensor grad_out, Tensor query, Tensor key,
                                                    std::optional<Tensor> value, Tensor out, Tensor statistics,
                                                    std::vector<Tensor> groups, std::optional<Tensor> image_lengths,
                                                    std::optional<Tensor> seed, std::optional<Tensor> offset,
                                                    double dropout_p, double scale, int64_t) {
  const Call call(query, key, value, groups, image_lengths, seed, offset, dropout_p, scale);
  const int64_t heads = call.settings.heads, dim = call.settings.dim, length = call.length;
  Tensor grad_query = torch::stable::new_empty(query, {query.size(0), heads, dim});
  Tensor grad_key_value = torch::stable::new_empty(key, {call.images, length, 2, heads, dim});
  dispatch_float(query.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    T* const grad_key = static_cast<T*>(grad_key_value.mutable_data_ptr());
    for_each_piece(call.images + 1, heads, [&](int64_t image, int64_t first, int64_t count, Scratch* scratch) {
      std::vector<BackwardTask<T>> tasks;
      for (int64_t head = first; head < first + count; ++head) {
        BackwardTask<T>& task = tasks.emplace_back(BackwardTask<T>{call.task<T>(image, head)});
        task.out = head_of<const T>(out.const_data_ptr(), out, head);
        task.statistics = statistics_of<const SoftmaxStatistics>(statistics.const_data_ptr(), heads, head);
        task.grad_out = head_of<const T>(grad_out.const_data_ptr(), grad_out, head);
        task.grad_query = head_of<T>(grad_query.mutable_data_ptr(), grad_query, head);
        if (image == call.images) continue;
        task.keys = length;
        task.grad_key = {grad_key + ((image * length * 2) * heads + head) * dim, 2 * heads * dim};
        task.grad_value = {task.grad_key.data + heads * dim, 2 * heads * dim};
      }
      run_best<AttentionBackward>(static_cast<const BackwardTask<T>*>(tasks.data()), count, call.settings, scratch);
    });
  });
  return {grad_query, grad_key_value};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def(
      "cross_attention(Tensor query, Tensor key, Tensor? value, Tensor[] groups, Tensor? image_lengths, Tensor? seed, "
      "Tensor? offset, float dropout_p, float scale, int tile_rows) -> (Tensor, Tensor)");
  m.def(
      "cross_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor? value, Tensor out, Tensor "
      "statistics, "
      "Tensor[] groups, Tensor? image_lengths, Tensor? seed, Tensor? offset, float dropout_p, float scale, int "
      "tile_rows) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) {
  m.impl("cross_attention", TORCH_BOX(&blip_fast::cross_attention));
  m.impl("cross_attention_backward", TORCH_BOX(&blip_fast::cross_attention_backward));
}
