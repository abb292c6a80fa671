#include "models/norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/rsqrt.h>

#include <optional>

namespace ptq {
namespace {

// In float32.
at::Tensor DividedByRms(const at::Tensor& hidden, double epsilon) {
  const at::Tensor wide = hidden.to(at::kFloat);
  const at::Tensor mean_square = wide.pow(2).mean({-1}, /*keepdim=*/true);
  return wide * at::rsqrt(mean_square + epsilon);
}

}  // namespace

at::Tensor ApplyNorm(const Norm& norm, const at::Tensor& hidden) {
  const at::ScalarType dtype = hidden.scalar_type();
  switch (norm.kind) {
    case NormKind::kRms:
      return norm.weight * DividedByRms(hidden, norm.epsilon).to(dtype);
    case NormKind::kRmsWide:
      return (norm.weight.to(at::kFloat) * DividedByRms(hidden, norm.epsilon)).to(dtype);
    case NormKind::kRmsPlusOne:
      return (DividedByRms(hidden, norm.epsilon) * (norm.weight.to(at::kFloat) + 1.0)).to(dtype);
    case NormKind::kLayer:
      break;
  }
  return at::layer_norm(hidden, norm.weight.sizes(), norm.weight,
                        norm.bias.defined() ? std::optional<at::Tensor>(norm.bias) : std::nullopt,
                        norm.epsilon);
}

}  // namespace ptq
