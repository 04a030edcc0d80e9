// What the operations on attention share around their tasks: tensors as rows of heads, and threads that take pieces.
#pragma once

#include "attention.h"  // first, as it silences a warning about vectors
#include "attention_forward.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/dtypes.h"
#include "parallel.h"

namespace blip_fast {

using torch::stable::Tensor;

inline const int32_t* int32s(const Tensor& tensor) { return static_cast<const int32_t*>(tensor.const_data_ptr()); }

// Scalars that live in tensors, so that they can stay on a device elsewhere.
inline uint64_t word(const std::optional<Tensor>& scalar) {
  return scalar ? static_cast<uint64_t>(*static_cast<const int64_t*>(scalar->const_data_ptr())) : 0;
}

// Head `head` of image `image` of a (B, L, H, D) tensor.
template <class T, class Pointer>
Rows<T> head_of(Pointer data, const Tensor& tensor, int64_t image, int64_t head) {
  return {static_cast<T*>(data) + image * tensor.stride(0) + head * tensor.stride(2), tensor.stride(1)};
}

// The same of a (T, H, D) tensor.
template <class T, class Pointer>
Rows<T> head_of(Pointer data, const Tensor& tensor, int64_t head) {
  return {static_cast<T*>(data) + head * tensor.stride(1), tensor.stride(0)};
}

template <class S, class Pointer>
Rows<S> statistics_of(Pointer data, int64_t heads, int64_t head) {
  return {static_cast<S*>(data) + head, heads};
}

// Groups (an image and its texts, or a text) differ in size; a piece is one group and as many of its heads as leave two
// pieces a thread, since those lie side by side in memory. run(group, first head, heads, scratch).
template <class F>
void for_each_piece(int64_t groups, int64_t heads, const F& run) {
  const int64_t tasks = groups * heads, threads = torch::stable::get_num_threads();
  const int64_t size = std::clamp<int64_t>(tasks / (2 * threads), 1, std::max<int64_t>(heads, 1));
  const int64_t per_group = (heads + size - 1) / size, pieces = groups * per_group;
  parallel_with(
      pieces, [] { return Scratch(); },
      [&](int64_t piece, Scratch& scratch) {
        const int64_t first = piece % per_group * size;
        run(piece / per_group, first, std::min(size, heads - first), &scratch);
      });
}

// Output and statistics of a call, which gives the task of each group and head: call.template task<T>(group, head).
template <class Call>
std::tuple<Tensor, Tensor> attend(const Call& call, int64_t groups) {
  const int64_t heads = call.settings.heads;
  Tensor out = torch::stable::new_empty(call.query, {call.query.size(0), heads, call.settings.dim});
  Tensor statistics = torch::stable::new_empty(call.query, {call.query.size(0), heads, 2}, ScalarType::Float);
  dispatch_float(call.query.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    for_each_piece(groups, heads, [&](int64_t group, int64_t first, int64_t count, Scratch* scratch) {
      std::vector<ForwardTask<T>> tasks;
      for (int64_t head = first; head < first + count; ++head) {
        ForwardTask<T>& task = tasks.emplace_back(ForwardTask<T>{call.template task<T>(group, head)});
        task.out = head_of<T>(out.mutable_data_ptr(), out, head);
        task.statistics = statistics_of<SoftmaxStatistics>(statistics.mutable_data_ptr(), heads, head);
      }
      run_best<AttentionForward>(static_cast<const ForwardTask<T>*>(tasks.data()), count, call.settings, scratch);
    });
  });
  return {out, statistics};
}

}  // namespace blip_fast
