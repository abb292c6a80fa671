// Auto-Round's fake quantization as plain ATen with a straight-through estimator, differentiated by
// autograd: what the hand-written loops and kernels are checked against.
#ifndef PTQ_TESTS_ALGORITHMS_AUTO_ROUND_STRAIGHT_THROUGH_H_
#define PTQ_TESTS_ALGORITHMS_AUTO_ROUND_STRAIGHT_THROUGH_H_

#include <ATen/ATen.h>

#include <cmath>

#include "common/quantization_scheme.h"

namespace ptq::testing {

struct StraightThroughInput {
  at::Tensor weight;  // [groups, group]; float32
  at::Tensor value;   // [groups, group]
  at::Tensor alpha;   // [groups, 1]
  at::Tensor beta;    // [groups, 1]
};

// `x` with the value of `rounded` and the gradient of `x`.
inline at::Tensor PassGradient(const at::Tensor& x, const at::Tensor& rounded) {
  return x + (rounded - x).detach();
}

// The decoded weight in float32, [groups, group].
inline at::Tensor StraightThrough(const StraightThroughInput& input,
                                  const QuantizationScheme& scheme) {
  const double floor = at::full({}, 1e-5, at::kHalf).item<double>();
  const double half_range = std::pow(2.0, scheme.bits - 1);
  const at::Tensor low = input.weight.amin({1}, true).clamp_max(0);
  const at::Tensor high = input.weight.amax({1}, true).clamp_min(0);
  const auto to_half = [](const at::Tensor& x) { return x.detach().to(at::kHalf).to(at::kFloat); };
  if (scheme.symmetric) {
    const at::Tensor n = -(input.alpha * low);
    const at::Tensor p = input.beta * high;
    const at::Tensor sign = at::where(p < n, at::ones_like(p), -at::ones_like(p));
    const at::Tensor raw = sign * at::maximum(n, p) / half_range;
    at::Tensor scale = PassGradient(raw, to_half(raw));
    scale = at::where(scale < 0, scale.clamp_max(-floor), scale.clamp_min(floor));
    const at::Tensor ratio = input.weight / scale + input.value;
    const at::Tensor code =
        PassGradient(ratio, ratio.detach().round()).clamp(-half_range, half_range - 1);
    return scale * code;
  }
  const at::Tensor lo = input.alpha * low;
  const at::Tensor hi = input.beta * high;
  const double levels = 2 * half_range - 1;
  const at::Tensor raw = (hi - lo) / at::full({}, levels);
  const at::Tensor scale = PassGradient(raw, to_half(raw)).clamp_min(floor);
  const at::Tensor offset = -lo / scale;
  const at::Tensor zero_point = PassGradient(offset, offset.detach().round());
  const at::Tensor ratio = input.weight / scale + input.value;
  const at::Tensor code =
      (PassGradient(ratio, ratio.detach().round()) + zero_point).clamp(0, levels);
  return scale * (code - zero_point);
}

}  // namespace ptq::testing

#endif  // PTQ_TESTS_ALGORITHMS_AUTO_ROUND_STRAIGHT_THROUGH_H_
