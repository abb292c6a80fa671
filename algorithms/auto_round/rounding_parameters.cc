#include "algorithms/auto_round/rounding_parameters.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "algorithms/affine/affine_primitives.h"
#include "algorithms/auto_round/rounding_loops.h"
#include "algorithms/auto_round/weight_tensor.h"
#include "algorithms/cuda/device_kernels.h"
#include "algorithms/rtn/rtn.h"

namespace ptq {
RoundingParameters::RoundingParameters(const at::Tensor& weight, at::ScalarType stored_dtype,
                                       const QuantizationScheme& scheme)
    : stored_dtype_(stored_dtype), scheme_(scheme), weight_(weight.detach().contiguous()) {
  const at::NoGradGuard no_grad;
  static_cast<WeightLayout&>(state_) = LayoutOf(weight_, stored_dtype, scheme);

  const auto floats = weight_.options().dtype(at::kFloat);
  const at::Tensor grouped = weight_.view({state_.groups, state_.group_size});
  minimum_ = grouped.amin({1}).to(at::kFloat).clamp_max_(0);
  maximum_ = grouped.amax({1}).to(at::kFloat).clamp_min_(0);
  value_ = at::zeros(weight_.sizes(), floats);
  alpha_ = at::ones({state_.groups}, floats);
  beta_ = at::ones({state_.groups}, floats);
  scale_ = at::ones({state_.groups}, floats);
  zero_point_ = at::zeros({state_.groups}, floats);
  scale_gradient_ = at::zeros({state_.units()}, floats);
  clamped_gradient_ = at::zeros({state_.units()}, floats);
  best_codes_ = at::zeros(weight_.sizes(), floats.dtype(at::kChar));
  best_scale_ = at::ones({state_.groups}, floats);
  best_zero_point_ = at::zeros({state_.groups}, floats);

  state_.weight = weight_.const_data_ptr();
  state_.value = value_.mutable_data_ptr<float>();
  state_.alpha = alpha_.mutable_data_ptr<float>();
  state_.beta = beta_.mutable_data_ptr<float>();
  state_.minimum = minimum_.const_data_ptr<float>();
  state_.maximum = maximum_.const_data_ptr<float>();
  state_.scale = scale_.mutable_data_ptr<float>();
  state_.zero_point = zero_point_.mutable_data_ptr<float>();
  state_.scale_gradient = scale_gradient_.mutable_data_ptr<float>();
  state_.clamped_gradient = clamped_gradient_.mutable_data_ptr<float>();
  state_.best_codes = best_codes_.mutable_data_ptr<int8_t>();
  state_.best_scale = best_scale_.mutable_data_ptr<float>();
  state_.best_zero_point = best_zero_point_.mutable_data_ptr<float>();
}

void RoundingParameters::FakeQuantize(const DecodedWeight& output) {
  PointTo(output, weight_.sizes(), weight_.options(), state_.fake_quantized, state_.fp8);
  if (weight_.is_cuda()) {
    CheckCuda(CudaKernels().fake_quantize(state_, CudaKernels().current_stream()));
    return;
  }
  ForGroups(state_, [this](int64_t begin, int64_t end) { ChooseScales(state_, begin, end); });
  ForUnits(state_, [this](int64_t begin, int64_t end) { ptq::FakeQuantize(state_, begin, end); });
}

void RoundingParameters::Step(const at::Tensor& gradient, const StepRates& rates,
                              const DecodedWeight& output) {
  CheckLikeWeight(gradient, weight_.sizes(), weight_.options());
  state_.gradient = gradient.const_data_ptr();
  if (weight_.is_cuda()) {
    PointTo(output, weight_.sizes(), weight_.options(), state_.fake_quantized, state_.fp8);
    CheckCuda(CudaKernels().step_rounding(state_, rates, CudaKernels().current_stream()));
    return;
  }
  if (*rates.improved != 0) {
    ForGroups(state_, [this](int64_t begin, int64_t end) { KeepScales(state_, begin, end); });
    ForUnits(state_, [this](int64_t begin, int64_t end) { KeepCodes(state_, begin, end); });
  }
  const float value_rate = rates.value[*rates.step];
  const float range_rate = rates.range[*rates.step];
  ForUnits(state_, [this, value_rate](int64_t begin, int64_t end) {
    StepValues(state_, begin, end, value_rate);
  });
  ForGroups(state_, [this, range_rate](int64_t begin, int64_t end) {
    StepRanges(state_, begin, end, range_rate);
  });
  FakeQuantize(output);
}

AffineQuantizedTensor RoundingParameters::Record() const {
  const at::NoGradGuard no_grad;
  const auto [b0, b1] = BlockSizeOf(scheme_, weight_.size(0), weight_.size(1));
  const int64_t rows = weight_.size(0) / b0;
  const int64_t columns = weight_.size(1) / b1;
  const at::Tensor scale = best_scale_.view({rows, columns}).to(at::kHalf);  // exact
  at::Tensor zero_point;
  if (!scheme_.symmetric) {
    zero_point = best_zero_point_.view({rows, columns}).to(at::kInt).add_(scheme_.quant_min());
  }
  return MakeRecord(best_codes_, scale, zero_point, stored_dtype_, scheme_);
}

}  // namespace ptq
