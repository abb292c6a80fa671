#include "models/rms_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/rsqrt.h>

namespace ptq {

at::Tensor RmsNorm(const at::Tensor& hidden, const at::Tensor& weight, double epsilon) {
  const at::Tensor wide = hidden.to(at::kFloat);
  const at::Tensor mean_square = wide.pow(2).mean({-1}, /*keepdim=*/true);
  const at::Tensor normalized = wide * at::rsqrt(mean_square + epsilon);
  return weight * normalized.to(hidden.scalar_type());
}

}  // namespace ptq
