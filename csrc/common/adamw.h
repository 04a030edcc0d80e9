// Arithmetic of AdamW with a momentum copy, shared by csrc/cpu/adamw_momentum.cpp and csrc/cuda/adamw_momentum.cu.
#pragma once

#include <cmath>

#include "macros.h"
#include "momentum.h"

namespace blip_fast {

// What is the same for all tensors of a step, rounded once from the doubles.
struct AdamWSettings {
  float rest1, beta2, rest2;  // rest = 1 - beta
  float log_beta1, log_beta2;
  float eps, weight_decay;
  MomentumUpdate follow;  // of the momentum copies

  AdamWSettings(double beta1, double beta2, double eps, double weight_decay, double momentum)
      : rest1(static_cast<float>(1.0 - beta1)),
        beta2(static_cast<float>(beta2)),
        rest2(static_cast<float>(1.0 - beta2)),
        log_beta1(static_cast<float>(std::log(beta1))),
        log_beta2(static_cast<float>(std::log(beta2))),
        eps(static_cast<float>(eps)),
        weight_decay(static_cast<float>(weight_decay)),
        follow(momentum) {}
};

// The update of one element, for one tensor's step count.
struct AdamWUpdate {
  float rest1, beta2, rest2, eps;
  float decay;        // 1 - lr * weight_decay
  float step_size;    // lr / (1 - beta1^step)
  float root_factor;  // 1 / sqrt(1 - beta2^step)
  float grad_factor;

  BLIP_FAST_HOST_DEVICE AdamWUpdate(const AdamWSettings& s, float lr, float step, float grad_factor)
      : rest1(s.rest1),
        beta2(s.beta2),
        rest2(s.rest2),
        eps(s.eps),
        decay(1.0f - lr * s.weight_decay),
        step_size(lr / one_minus_power(s.log_beta1, step)),
        root_factor(1.0f / std::sqrt(one_minus_power(s.log_beta2, step))),
        grad_factor(grad_factor) {}

  // 1 - beta^step without cancellation, so that fp32 is enough.
  BLIP_FAST_HOST_DEVICE static float one_minus_power(float log_beta, float step) {
    return log_beta < -3.0e38f ? 1.0f : -std::expm1(log_beta * step);  // beta = 0
  }

  BLIP_FAST_HOST_DEVICE void operator()(float& param, float grad, float& exp_avg, float& exp_avg_sq) const {
    grad *= grad_factor;
    exp_avg += (grad - exp_avg) * rest1;
    exp_avg_sq = exp_avg_sq * beta2 + grad * grad * rest2;
    param = param * decay - step_size * exp_avg / (std::sqrt(exp_avg_sq) * root_factor + eps);
  }
};

}  // namespace blip_fast
