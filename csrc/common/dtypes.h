// Run-time dtypes to C++ types: float32, bfloat16 and float16.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

namespace blip_fast {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<float>{}), f(Type<BFloat16>{}) or f(Type<Half>{}).
template <class F>
void dispatch_float(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(Type<float>{});
    case ScalarType::BFloat16:
      return f(Type<BFloat16>{});
    case ScalarType::Half:
      return f(Type<Half>{});
    default:
      STD_TORCH_CHECK(false, "expected float32, bfloat16 or float16");
  }
}

}  // namespace blip_fast
