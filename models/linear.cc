#include "models/linear.h"

#include <ATen/ops/linear.h>

#include <optional>

namespace ptq {

at::Tensor ApplyLinear(const Linear& linear, const at::Tensor& weight, const at::Tensor& input) {
  return ApplyLinear(weight, linear.bias, input);
}

at::Tensor ApplyLinear(const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& input) {
  return at::linear(input, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
}

}  // namespace ptq
