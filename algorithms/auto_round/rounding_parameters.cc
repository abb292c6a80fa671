#include "algorithms/auto_round/rounding_parameters.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "algorithms/affine/affine_primitives.h"
#include "algorithms/auto_round/device_kernels.h"
#include "algorithms/auto_round/rounding_loops.h"
#include "algorithms/rtn/rtn.h"

namespace ptq {
namespace {

constexpr int64_t kElementsPerTask = 32768;

WeightStorage StorageOf(at::ScalarType compute_dtype, at::ScalarType stored_dtype) {
  switch (compute_dtype) {
    case at::kBFloat16:
      return WeightStorage::kBFloat16;
    case at::kHalf:
      return WeightStorage::kHalf;
    case at::kFloat:
      return stored_dtype == at::kBFloat16 ? WeightStorage::kFloat32RoundedToBFloat16
             : stored_dtype == at::kHalf   ? WeightStorage::kFloat32RoundedToHalf
                                           : WeightStorage::kFloat32;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, "Auto-Round tunes float32, bfloat16 and float16 weights, not ", compute_dtype);
  }
}

// In parallel over groups and over units, in tasks of about kElementsPerTask elements.
template <typename Body>
void ForGroups(const RoundingState& state, const Body& body) {
  at::parallel_for(0, state.groups, std::max<int64_t>(1, kElementsPerTask / state.group_size),
                   body);
}
template <typename Body>
void ForUnits(const RoundingState& state, const Body& body) {
  const int64_t elements = std::min(RoundingState::kUnitElements, state.group_size);
  at::parallel_for(0, state.units(), std::max<int64_t>(1, kElementsPerTask / elements), body);
}

}  // namespace

RoundingParameters::RoundingParameters(const at::Tensor& weight, at::ScalarType stored_dtype,
                                       const QuantizationScheme& scheme)
    : stored_dtype_(stored_dtype), scheme_(scheme), weight_(weight.detach().contiguous()) {
  const at::NoGradGuard no_grad;
  const auto [b0, b1] = BlockSizeOf(scheme, weight_.size(0), weight_.size(1));
  state_.group_size = b0 * b1;
  state_.groups = weight_.numel() / state_.group_size;
  state_.bits = scheme.bits;
  state_.symmetric = scheme.symmetric;
  state_.storage = StorageOf(weight_.scalar_type(), stored_dtype);

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

void RoundingParameters::FakeQuantize(const at::Tensor& output) {
  TORCH_CHECK(output.is_contiguous() && output.sizes() == weight_.sizes() &&
                  output.scalar_type() == weight_.scalar_type(),
              "the fake-quantized weight must be like the weight and contiguous");
  state_.fake_quantized = output.data_ptr();
  if (weight_.is_cuda()) {
    CheckCuda(CudaKernels().fake_quantize(state_, CudaKernels().current_stream()));
    return;
  }
  ForGroups(state_, [this](int64_t begin, int64_t end) { ChooseScales(state_, begin, end); });
  ForUnits(state_, [this](int64_t begin, int64_t end) { ptq::FakeQuantize(state_, begin, end); });
}

void RoundingParameters::Step(const at::Tensor& gradient, const StepRates& rates) {
  TORCH_CHECK(gradient.is_contiguous() && gradient.sizes() == weight_.sizes() &&
                  gradient.scalar_type() == weight_.scalar_type(),
              "the gradient must be like the weight and contiguous");
  state_.gradient = gradient.const_data_ptr();
  if (weight_.is_cuda()) {
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
}

AffineQuantizedTensor RoundingParameters::BestRecord() const {
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
