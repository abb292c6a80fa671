#include "models/linear.h"

#include <ATen/ops/linear.h>

#include <optional>

namespace ptq {

at::Tensor ApplyLinear(const Linear& linear, const at::Tensor& weight, const at::Tensor& input) {
  return at::linear(input, weight,
                    linear.bias.defined() ? std::optional<at::Tensor>(linear.bias) : std::nullopt);
}

}  // namespace ptq
