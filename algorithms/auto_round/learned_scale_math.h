// The arithmetic of the learned-scale recipe on single values, shared by the CPU loops and the CUDA
// kernels. C++17, no torch. Exact to the last bit on every target under the rules of
// rounding_math.h.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_MATH_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_MATH_H_

#include "algorithms/auto_round/rounding_math.h"

namespace ptq::rounding {

// Decay of Adam's moments.
constexpr float kFirstDecay = 0.5f;
constexpr float kSecondDecay = 0.95f;
// Squared gradients below are noise around zero (dead neurons, columns without activations), which
// a division by their root would blow up to full steps. The tuner scales the loss so that ordinary
// gradients are about 1e-3.
constexpr float kLeastSquare = 1e-30f;
// With these decays |direction| stays below 2.6: nothing real is cut.
constexpr float kLargestDirection = 3.0f;

// The stored scale of a group: float16(start * factor) with start's sign, at least the floor.
PTQ_HOST_DEVICE float LearnedScale(float start, float factor) {
  const float scale = RoundToHalf(start * factor);
  return start < 0.0f ? Smaller(scale, -kSmallestScale) : Larger(scale, kSmallestScale);
}

struct AdamUpdate {
  float first;  // moments after the step
  float second;
  float direction;  // what the parameter moves against, times the learning rate
};
// `first_correction` = 1 / (1 - kFirstDecay^(k+1)) in step k, likewise the second.
PTQ_HOST_DEVICE AdamUpdate AdamStep(float gradient, float first, float second,
                                    float first_correction, float second_correction) {
  AdamUpdate update;
  gradient = gradient - gradient == 0.0f ? gradient : 0.0f;  // what overflowed says nothing
  update.first = kFirstDecay * first + (1.0f - kFirstDecay) * gradient;
  update.second = kSecondDecay * second + (1.0f - kSecondDecay) * (gradient * gradient);
  const float square = update.second * second_correction;
  const float ratio =
      (update.first * first_correction) / __builtin_sqrtf(Larger(square, kLeastSquare));
  update.direction =
      square < kLeastSquare ? 0.0f : Clamp(ratio, -kLargestDirection, kLargestDirection);
  return update;
}

}  // namespace ptq::rounding

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_MATH_H_
