// AdamW step and momentum copies of a list of tensors: one threaded pass, 36 bytes per fp32 parameter with a copy.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/adamw.h"
#include "../common/dtypes.h"

namespace blip_fast {
namespace {

using torch::stable::Tensor;

constexpr int64_t kChunk = 1 << 15;  // elements per task

float* data(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

float value_or(const std::optional<Tensor>& scalar, float otherwise) {
  return scalar ? *static_cast<const float*>(scalar->const_data_ptr()) : otherwise;
}

template <class G>
BLIP_FAST_MULTIVERSION void update_range(float* param, const G* grad, float* exp_avg, float* exp_avg_sq, int64_t count,
                                         const AdamWUpdate update) {
  for (int64_t i = 0; i < count; ++i) update(param[i], static_cast<float>(grad[i]), exp_avg[i], exp_avg_sq[i]);
}

template <class G>
BLIP_FAST_MULTIVERSION void update_range_and_copy(float* param, const G* grad, float* exp_avg, float* exp_avg_sq,
                                                  float* copy, int64_t count, const AdamWUpdate update,
                                                  const MomentumUpdate follow) {
  for (int64_t i = 0; i < count; ++i) {
    update(param[i], static_cast<float>(grad[i]), exp_avg[i], exp_avg_sq[i]);
    copy[i] = follow(copy[i], param[i]);
  }
}

BLIP_FAST_MULTIVERSION void follow_range(float* copy, const float* param, int64_t count, const MomentumUpdate follow) {
  for (int64_t i = 0; i < count; ++i) copy[i] = follow(copy[i], param[i]);
}

// One tensor's part of the step; `copy` is null where there is none.
struct Job {
  float *param, *exp_avg, *exp_avg_sq, *copy;
  const Tensor* grad;
  int64_t count;
  AdamWUpdate update;
};

void run_chunk(const Job& job, int64_t begin, bool skip, const MomentumUpdate& follow) {
  const int64_t count = std::min(kChunk, job.count - begin);
  float* const param = job.param + begin;
  if (skip) {
    if (job.copy) follow_range(job.copy + begin, param, count, follow);
    return;
  }
  dispatch_float(job.grad->scalar_type(), [&](auto type) {
    using G = typename decltype(type)::type;
    const G* grad = static_cast<const G*>(job.grad->const_data_ptr()) + begin;
    if (job.copy) {
      update_range_and_copy(param, grad, job.exp_avg + begin, job.exp_avg_sq + begin, job.copy + begin, count,
                            job.update, follow);
    } else {
      update_range(param, grad, job.exp_avg + begin, job.exp_avg_sq + begin, count, job.update);
    }
  });
}

// The first params_m.size() parameters have momentum copies.
void adamw_momentum_step_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> exp_avgs,
                          std::vector<Tensor> exp_avg_sqs, std::vector<Tensor> steps, std::vector<Tensor> params_m,
                          Tensor lr, double beta1, double beta2, double eps, double weight_decay, double momentum,
                          std::optional<Tensor> grad_factor, std::optional<Tensor> found_inf) {
  const AdamWSettings settings(beta1, beta2, eps, weight_decay, momentum);
  const float rate = value_or(lr, 0.0f), factor = value_or(grad_factor, 1.0f);
  const bool skip = value_or(found_inf, 0.0f) != 0.0f;
  std::vector<Job> jobs;
  std::vector<int64_t> first_chunk{0};
  for (size_t i = 0; i < params.size(); ++i) {
    float& step = *data(steps[i]);
    if (!skip) step += 1.0f;
    jobs.push_back({data(params[i]), data(exp_avgs[i]), data(exp_avg_sqs[i]),
                    i < params_m.size() ? data(params_m[i]) : nullptr, &grads[i], params[i].numel(),
                    AdamWUpdate(settings, rate, step, factor)});
    first_chunk.push_back(first_chunk.back() + (jobs[i].count + kChunk - 1) / kChunk);
  }
  torch::stable::parallel_for(0, first_chunk.back(), 1, [&](int64_t begin, int64_t end) {
    auto next = std::upper_bound(first_chunk.begin(), first_chunk.end(), begin);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      while (chunk >= *next) ++next;
      const int64_t i = next - first_chunk.begin() - 1;
      run_chunk(jobs[i], (chunk - first_chunk[i]) * kChunk, skip, settings.follow);
    }
  });
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_FRAGMENT(blip_fast_native, m) {
  m.def(
      "adamw_momentum_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] steps, Tensor(e!)[] params_m, Tensor lr, float beta1, float beta2, float eps, float weight_decay, "
      "float momentum, Tensor? grad_factor, Tensor? found_inf) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(blip_fast_native, CPU, m) {
  m.impl("adamw_momentum_step_", TORCH_BOX(&blip_fast::adamw_momentum_step_));
}
