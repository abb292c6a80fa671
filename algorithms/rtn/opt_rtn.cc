#include "algorithms/rtn/opt_rtn.h"

#include <ATen/ops/ones.h>

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "algorithms/layer_check.h"
#include "algorithms/rtn/k_quant.h"
#include "algorithms/rtn/rtn.h"
#include "algorithms/rtn/scale_search.h"
#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

absl::StatusOr<QuantizedLinear> QuantizeLayer(const Linear& linear,
                                              const LinearStatistics& statistics,
                                              at::ScalarType stored_dtype,
                                              const QuantizationScheme& scheme,
                                              const CancellationToken& cancel) {
  return CatchTorchErrors(linear.module, [&]() -> absl::StatusOr<QuantizedLinear> {
    PTQ_RETURN_IF_ERROR(CheckLayer(linear, scheme));
    if (statistics.tokens == 0) {
      return QuantizeUnreached(linear.weight, stored_dtype, scheme, cancel);
    }
    PTQ_ASSIGN_OR_RETURN(auto weight, QuantizeOptRtn(linear.weight, statistics.importance,
                                                     stored_dtype, scheme, cancel));
    return QuantizedLinear{std::move(weight), ""};
  });
}

}  // namespace

absl::StatusOr<AffineQuantizedTensor> QuantizeOptRtn(const at::Tensor& weight,
                                                     const at::Tensor& importance,
                                                     at::ScalarType stored_dtype,
                                                     const QuantizationScheme& scheme,
                                                     const CancellationToken& cancel) {
  if (scheme.k_quant != KQuant::kNone) {
    return QuantizeKQuant(weight, importance, stored_dtype, scheme.k_quant, cancel);
  }
  PTQ_ASSIGN_OR_RETURN(const QParams qparams, SearchScales(weight, importance, scheme, cancel));
  return QuantizeToScales(weight, qparams, stored_dtype, scheme);
}

absl::StatusOr<QuantizedLinear> QuantizeUnreached(const at::Tensor& weight,
                                                  at::ScalarType stored_dtype,
                                                  const QuantizationScheme& scheme,
                                                  const CancellationToken& cancel) {
  const at::Tensor alike =
      at::ones({weight.size(1)}, at::TensorOptions(weight.device()).dtype(at::kFloat));
  PTQ_ASSIGN_OR_RETURN(auto record, QuantizeOptRtn(weight, alike, stored_dtype, scheme, cancel));
  return QuantizedLinear{std::move(record),
                         "no calibration token reached this layer: opt-rtn, all columns alike"};
}

absl::StatusOr<QuantizedBlock> OptRtnBlockQuantizer::QuantizeBlock(
    const BlockQuantizationRequest& request) {
  const auto& linears = request.observed.block->linears();
  const auto& statistics = request.observed.statistics;
  PTQ_RETURN_IF_ERROR(CheckStatistics(request.observed, "opt-rtn"));
  QuantizedBlock result;
  result.linears.resize(linears.size());
  for (size_t i = 0; i < linears.size(); ++i) {
    PTQ_RETURN_IF_ERROR(request.cancel.Check());
    if (request.schemes[i].has_value()) {
      PTQ_ASSIGN_OR_RETURN(result.linears[i],
                           QuantizeLayer(linears[i], statistics[i], stored_dtype_,
                                         *request.schemes[i], request.cancel));
    }
    if (request.progress) {
      request.progress(static_cast<double>(i + 1) / static_cast<double>(linears.size()));
    }
  }
  return result;
}

}  // namespace ptq
