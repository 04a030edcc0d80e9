// Operations that others are made of, as C++ functions. Arguments are those of their schemas.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace blip_fast {

using torch::stable::Tensor;

// The product of `linear` in rows of `output`, for fewer than 64 rows, fp32, contiguous.
void linear_into(const Tensor& input, const Tensor& weight, const Tensor& bias, bool gelu, Tensor& output);

std::tuple<Tensor, Tensor> cross_attention(Tensor query, Tensor key, std::optional<Tensor> value,
                                           std::vector<Tensor> groups, std::optional<Tensor> image_lengths,
                                           std::optional<Tensor> seed, std::optional<Tensor> offset, double dropout_p,
                                           double scale, int64_t tile_rows);

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias,
                                                                  double eps, double dropout_p,
                                                                  std::optional<Tensor> seed,
                                                                  std::optional<Tensor> offset, bool prenorm,
                                                                  bool keep_sum);

}  // namespace blip_fast
