#include "models/activation.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>

namespace ptq {

at::Tensor Activate(Activation activation, const at::Tensor& input) {
  switch (activation) {
    case Activation::kSilu:
      return at::silu(input);
    case Activation::kGelu:
      return at::gelu(input);
    case Activation::kGeluTanh:
      return at::gelu(input, "tanh");
    case Activation::kRelu:
      break;
  }
  return at::relu(input);
}

}  // namespace ptq
