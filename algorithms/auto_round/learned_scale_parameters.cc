#include "algorithms/auto_round/learned_scale_parameters.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include "algorithms/auto_round/learned_scale_loops.h"
#include "algorithms/auto_round/weight_tensor.h"
#include "algorithms/cuda/device_kernels.h"
#include "algorithms/rtn/full_range.h"
#include "algorithms/rtn/rtn.h"

namespace ptq {
namespace {

uint16_t* Words(const at::Tensor& tensor) {
  return static_cast<uint16_t*>(tensor.mutable_data_ptr());
}

}  // namespace

LearnedScaleParameters::LearnedScaleParameters(const at::Tensor& weight,
                                               at::ScalarType stored_dtype,
                                               const QuantizationScheme& scheme,
                                               const QParams& start)
    : stored_dtype_(stored_dtype), scheme_(scheme), weight_options_(weight.options()) {
  const at::NoGradGuard no_grad;
  static_cast<WeightLayout&>(state_) = LayoutOf(weight, stored_dtype, scheme);
  const auto floats = weight.options().dtype(at::kFloat);
  start_scale_ = start.scale.to(floats).flatten().contiguous();
  zero_point_ = scheme.symmetric ? at::zeros({state_.groups}, floats)
                                 : (start.zero_point.to(weight.device()) - scheme.quant_min())
                                       .to(at::kFloat)
                                       .flatten()
                                       .contiguous();
  const auto [b0, b1] = BlockSizeOf(scheme, weight.size(0), weight.size(1));
  const at::Tensor blocked =
      weight.detach().to(at::kFloat).reshape({weight.size(0) / b0, b0, weight.size(1) / b1, b1});
  position_ =
      blocked.div(start_scale_.view({blocked.size(0), 1, blocked.size(2), 1})).view(weight.sizes());
  first_moment_ = at::zeros(weight.sizes(), floats.dtype(at::kBFloat16));
  second_moment_ = at::zeros(weight.sizes(), floats.dtype(at::kBFloat16));
  factor_ = at::ones({state_.groups}, floats);
  factor_first_moment_ = at::zeros({state_.groups}, floats);
  factor_second_moment_ = at::zeros({state_.groups}, floats);
  factor_gradient_ = at::zeros({state_.units()}, floats);

  state_.position = position_.mutable_data_ptr<float>();
  state_.first_moment = Words(first_moment_);
  state_.second_moment = Words(second_moment_);
  state_.start_scale = start_scale_.const_data_ptr<float>();
  state_.zero_point = zero_point_.const_data_ptr<float>();
  state_.factor = factor_.mutable_data_ptr<float>();
  state_.factor_first_moment = factor_first_moment_.mutable_data_ptr<float>();
  state_.factor_second_moment = factor_second_moment_.mutable_data_ptr<float>();
  state_.factor_gradient = factor_gradient_.mutable_data_ptr<float>();
}

void LearnedScaleParameters::FakeQuantize(const DecodedWeight& output) {
  PointTo(output, position_.sizes(), weight_options_, state_.fake_quantized, state_.fp8);
  if (position_.is_cuda()) {
    CheckCuda(CudaKernels().fake_quantize_positions(state_, CudaKernels().current_stream()));
    return;
  }
  ForUnits(state_,
           [this](int64_t begin, int64_t end) { FakeQuantizePositions(state_, begin, end); });
}

void LearnedScaleParameters::Step(const at::Tensor& gradient, const StepRates& rates,
                                  const DecodedWeight& output) {
  CheckLikeWeight(gradient, position_.sizes(), weight_options_);
  state_.gradient = gradient.const_data_ptr();
  if (position_.is_cuda()) {
    PointTo(output, position_.sizes(), weight_options_, state_.fake_quantized, state_.fp8);
    CheckCuda(CudaKernels().step_positions(state_, rates, CudaKernels().current_stream()));
    return;
  }
  ForUnits(state_, [&](int64_t begin, int64_t end) { StepPositions(state_, begin, end, rates); });
  ForGroups(state_, [&](int64_t begin, int64_t end) { StepFactors(state_, begin, end, rates); });
  FakeQuantize(output);
}

AffineQuantizedTensor LearnedScaleParameters::Record() const {
  const at::NoGradGuard no_grad;
  const auto [b0, b1] = BlockSizeOf(scheme_, position_.size(0), position_.size(1));
  const int64_t rows = position_.size(0) / b0;
  const int64_t columns = position_.size(1) / b1;
  const at::Tensor scale = ToStoredScale(start_scale_ * factor_).view({rows, columns});
  const at::Tensor codes = position_.round().view({rows, b0, columns, b1});
  at::Tensor zero_point;
  if (!scheme_.symmetric) {
    zero_point = zero_point_.view({rows, columns}).to(at::kInt).add_(scheme_.quant_min());
    codes.add_(zero_point.to(at::kFloat).view({rows, 1, columns, 1}));
  }
  codes.clamp_(scheme_.quant_min(), scheme_.quant_max());
  return MakeRecord(codes.view(position_.sizes()).to(at::kChar), scale, zero_point, stored_dtype_,
                    scheme_);
}

}  // namespace ptq
