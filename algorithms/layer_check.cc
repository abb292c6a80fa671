#include "algorithms/layer_check.h"

#include <ATen/ATen.h>

#include <cmath>

#include "absl/strings/str_cat.h"

namespace ptq {

absl::Status CheckLayer(const Linear& linear, const QuantizationScheme& scheme) {
  const at::Tensor& weight = linear.weight;
  if (weight.dim() != 2 || weight.numel() == 0) {
    return absl::InvalidArgumentError(absl::StrCat(linear.module, ".weight has ", weight.dim(),
                                                   " dimensions and ", weight.numel(),
                                                   " values; a matrix is needed"));
  }
  if (scheme.bits < 2 || scheme.bits > 8) {
    return absl::InvalidArgumentError(
        absl::StrCat(linear.module, ": bits must be 2 to 8, not ", scheme.bits));
  }
  if (scheme.group_size < -1 ||
      (scheme.group_size > 0 && weight.size(1) % scheme.group_size != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(linear.module, ": group_size ", scheme.group_size,
                     " does not divide in_features ", weight.size(1)));
  }
  if (scheme.k_quant != KQuant::kNone && weight.size(1) % kSuperBlock != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(linear.module, ": ", KQuantName(scheme.k_quant), " has super-blocks of ",
                     kSuperBlock, " columns, which do not divide in_features ", weight.size(1)));
  }
  // The extremes carry every NaN and Inf and need no temporary of the weight's size.
  const auto [low, high] = at::aminmax(weight.detach());
  if (!std::isfinite(low.item<double>()) || !std::isfinite(high.item<double>())) {
    return absl::InvalidArgumentError(
        absl::StrCat(linear.module, ".weight holds NaN or Inf: the checkpoint is damaged"));
  }
  return absl::OkStatus();
}

absl::Status CheckStatistics(const ObservedBlock& observed, const std::string& algorithm) {
  if (observed.statistics.size() == observed.block->linears().size()) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat(observed.block->name(), ": ", algorithm,
                   " needs calibration data; give some, or choose the algorithm rtn"));
}

}  // namespace ptq
