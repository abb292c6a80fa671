#include "algorithms/rtn/rtn.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <optional>
#include <utility>

#include "algorithms/affine/affine_primitives.h"
#include "algorithms/layer_check.h"
#include "algorithms/rtn/full_range.h"
#include "algorithms/rtn/k_quant.h"
#include "common/cancellation.h"
#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

AffineQuantizedTensor QuantizeTorchao(const at::Tensor& weight, at::ScalarType stored_dtype,
                                      const QuantizationScheme& scheme) {
  const at::Tensor stored = weight.to(stored_dtype);
  const auto block_size = BlockSizeOf(scheme, weight.size(0), weight.size(1));
  ChooseQParamsOptions options;
  options.mapping_type = scheme.symmetric ? MappingType::kSymmetric : MappingType::kAsymmetric;
  options.quant_min = scheme.quant_min();
  options.quant_max = scheme.quant_max();
  const QParams qparams = ChooseQParamsAffine(stored, block_size, options);
  return MakeRecord(
      QuantizeAffine(stored, block_size, qparams, scheme.quant_min(), scheme.quant_max()),
      qparams.scale, qparams.zero_point, stored_dtype, scheme);
}

absl::StatusOr<QuantizedLinear> QuantizeLayer(const Linear& linear, at::ScalarType stored_dtype,
                                              const QuantizationScheme& scheme) {
  return CatchTorchErrors(linear.module, [&]() -> absl::StatusOr<QuantizedLinear> {
    PTQ_RETURN_IF_ERROR(CheckLayer(linear, scheme));
    return QuantizedLinear{QuantizeRtn(linear.weight, stored_dtype, scheme), ""};
  });
}

}  // namespace

AffineQuantizedTensor QuantizeRtn(const at::Tensor& weight, at::ScalarType stored_dtype,
                                  const QuantizationScheme& scheme) {
  const c10::NoGradGuard no_grad;
  if (scheme.k_quant != KQuant::kNone) {
    // Nobody cancels.
    return QuantizeKQuant(weight, at::Tensor(), stored_dtype, scheme.k_quant, CancellationToken())
        .value();
  }
  if (scheme.scale_rule == ScaleRule::kTorchao) {
    return QuantizeTorchao(weight, stored_dtype, scheme);
  }
  return QuantizeToScales(weight, ChooseFullRangeQParams(weight, scheme), stored_dtype, scheme);
}

AffineQuantizedTensor MakeRecord(const at::Tensor& codes, const at::Tensor& scale,
                                 const at::Tensor& zero_point, at::ScalarType stored_dtype,
                                 const QuantizationScheme& scheme) {
  const auto block_size = BlockSizeOf(scheme, codes.size(0), codes.size(1));
  TORCH_CHECK(scale.dim() == 2 && scale.size(0) == codes.size(0) / block_size[0] &&
                  scale.size(1) == codes.size(1) / block_size[1],
              "scale ", scale.sizes(), " does not fit codes ", codes.sizes(), " in blocks of [",
              block_size[0], ", ", block_size[1], "]");
  TORCH_CHECK(!zero_point.defined() || zero_point.sizes() == scale.sizes(), "zero_point ",
              zero_point.sizes(), " does not fit scale ", scale.sizes());
  AffineQuantizedTensor record;
  record.int_data = codes.to(at::kChar).contiguous();
  record.scale = scale.contiguous();
  record.zero_point = zero_point.defined()
                          ? zero_point.to(at::kInt).contiguous()
                          : at::zeros(scale.sizes(), scale.options().dtype(at::kInt));
  record.block_size = block_size;
  record.quant_min = scheme.quant_min();
  record.quant_max = scheme.quant_max();
  record.mapping_type = scheme.symmetric ? MappingType::kSymmetric : MappingType::kAsymmetric;
  record.bits = scheme.bits;
  record.original_dtype = stored_dtype;
  return record;
}

AffineQuantizedTensor QuantizeToScales(const at::Tensor& weight, const QParams& qparams,
                                       at::ScalarType stored_dtype,
                                       const QuantizationScheme& scheme) {
  return MakeRecord(RoundToCodes(weight, qparams, scheme), qparams.scale, qparams.zero_point,
                    stored_dtype, scheme);
}

absl::StatusOr<QuantizedBlock> RtnBlockQuantizer::QuantizeBlock(
    const BlockQuantizationRequest& request) {
  const auto& linears = request.observed.block->linears();
  QuantizedBlock result;
  result.linears.resize(linears.size());
  for (size_t i = 0; i < linears.size(); ++i) {
    PTQ_RETURN_IF_ERROR(request.cancel.Check());
    if (request.schemes[i].has_value()) {
      PTQ_ASSIGN_OR_RETURN(result.linears[i],
                           QuantizeLayer(linears[i], stored_dtype_, *request.schemes[i]));
    }
    if (request.progress) {
      request.progress(static_cast<double>(i + 1) / static_cast<double>(linears.size()));
    }
  }
  return result;
}

}  // namespace ptq
