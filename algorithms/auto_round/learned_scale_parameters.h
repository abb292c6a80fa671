// What the learned-scale recipe tunes in one linear layer: positions U = W / s0 + V in units of a
// code, and a factor t on each group's scale, by Adam (docs/tuning.md).
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_PARAMETERS_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_PARAMETERS_H_

#include <ATen/core/Tensor.h>

#include "algorithms/affine/affine_primitives.h"
#include "algorithms/auto_round/learned_scale_state.h"
#include "algorithms/auto_round/tunable_weight.h"
#include "common/quantization_scheme.h"

namespace ptq {

// The codes come from U alone and the scale from s0 t, so that learning the scale never moves a
// code, and the weight itself is not needed after the start.
class LearnedScaleParameters final : public TunableWeight {
 public:
  // V = 0, t = 1: rounding to `start`, the searched scales (float16 [N/b0, K/b1]) and zero points
  // (int32, signed storage), which stay as they are. `weight` [N, K] float32, bfloat16 or float16,
  // finite; `stored_dtype` is the checkpoint's, to which decoded values are rounded; `scheme` fits
  // the weight.
  LearnedScaleParameters(const at::Tensor& weight, at::ScalarType stored_dtype,
                         const QuantizationScheme& scheme, const QParams& start);

  void FakeQuantize(const DecodedWeight& output) override;
  // rates: value of U, range of t, both corrections; `improved` does not matter.
  void Step(const at::Tensor& gradient, const StepRates& rates,
            const DecodedWeight& output) override;
  // Of the current U and t.
  AffineQuantizedTensor Record() const override;

  const at::Tensor& position() const { return position_; }          // U [N, K] float32
  const at::Tensor& factor() const { return factor_; }              // t [groups] float32
  const at::Tensor& first_moment() const { return first_moment_; }  // of U, [N, K] bfloat16
  const at::Tensor& factor_first_moment() const { return factor_first_moment_; }  // of t, float32

 private:
  at::ScalarType stored_dtype_;
  QuantizationScheme scheme_;
  at::Tensor position_;
  at::Tensor first_moment_;  // [N, K] bfloat16, as is the second: measured to lose nothing
  at::Tensor second_moment_;
  at::Tensor start_scale_;
  at::Tensor zero_point_;
  at::Tensor factor_;
  at::Tensor factor_first_moment_;
  at::Tensor factor_second_moment_;
  at::Tensor factor_gradient_;
  at::TensorOptions weight_options_;
  LearnedScaleState state_;  // pointers into the tensors above
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_PARAMETERS_H_
