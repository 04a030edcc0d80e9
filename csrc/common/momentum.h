// Arithmetic of the momentum update, shared by csrc/cpu/momentum.cpp and csrc/cuda/momentum.cu.
#pragma once

#include "macros.h"

namespace blip_fast {

struct MomentumUpdate {
  float momentum;
  float rest;  // 1 - momentum, rounded once from the double

  explicit MomentumUpdate(double m) : momentum(static_cast<float>(m)), rest(static_cast<float>(1.0 - m)) {}

  BLIP_FAST_HOST_DEVICE float operator()(float param_m, float param) const { return param_m * momentum + param * rest; }
};

}  // namespace blip_fast
