// What Auto-Round tunes in one linear layer: rounding offsets V and range factors alpha and beta,
// with the fake-quantized weight that they give and their signed descent.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_PARAMETERS_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_PARAMETERS_H_

#include <ATen/core/Tensor.h>

#include "algorithms/auto_round/rounding_state.h"
#include "algorithms/auto_round/tunable_weight.h"
#include "common/quantization_scheme.h"

namespace ptq {

class RoundingParameters final : public TunableWeight {
 public:
  // V = 0, alpha = beta = 1: rtn. `weight` [N, K] float32, bfloat16 or float16, finite, unchanged
  // while this lives; `stored_dtype` is the checkpoint's, to which decoded values are rounded;
  // `scheme` fits the weight and has the full-range rule.
  RoundingParameters(const at::Tensor& weight, at::ScalarType stored_dtype,
                     const QuantizationScheme& scheme);

  void FakeQuantize(const DecodedWeight& output) override;
  // Signed descent. Before it, if *rates.improved, codes and scales of the last FakeQuantize become
  // the best ones.
  void Step(const at::Tensor& gradient, const StepRates& rates,
            const DecodedWeight& output) override;
  // The best codes and scales. Only after a step that improved.
  AffineQuantizedTensor Record() const override;

  const at::Tensor& value() const { return value_; }  // [N, K] float32
  const at::Tensor& alpha() const { return alpha_; }  // [groups] float32
  const at::Tensor& beta() const { return beta_; }    // [groups] float32
  const at::Tensor& scale() const { return scale_; }  // [groups] float32, of the last FakeQuantize
  const at::Tensor& zero_point() const { return zero_point_; }  // likewise, unsigned

 private:
  at::ScalarType stored_dtype_;
  QuantizationScheme scheme_;
  at::Tensor weight_;
  at::Tensor value_;
  at::Tensor alpha_;
  at::Tensor beta_;
  at::Tensor minimum_;
  at::Tensor maximum_;
  at::Tensor scale_;
  at::Tensor zero_point_;
  at::Tensor scale_gradient_;
  at::Tensor clamped_gradient_;
  at::Tensor best_codes_;
  at::Tensor best_scale_;
  at::Tensor best_zero_point_;
  RoundingState state_;  // pointers into the tensors above
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_PARAMETERS_H_
