// Auto-Round's fused loops on the host: fake quantization with V, alpha and beta, its hand-written
// gradient and the sign update (rounding_math.h). Pure functions over raw spans; each call
// handles a range of groups or units, so that the caller decides about threads. No torch.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_LOOPS_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_LOOPS_H_

#include <cstdint>

#include "algorithms/auto_round/rounding_state.h"

namespace ptq {

// scale and zero_point of groups [begin, end), from minimum, maximum, alpha and beta.
void ChooseScales(const RoundingState& state, int64_t begin, int64_t end);

// fake_quantized of units [begin, end); their groups' scales were chosen before.
void FakeQuantize(const RoundingState& state, int64_t begin, int64_t end);

// Copies codes of units [begin, end) to best_codes, as they were in the last forward pass: before
// StepValues changes V.
void KeepCodes(const RoundingState& state, int64_t begin, int64_t end);
// Likewise scales and zero points of groups [begin, end).
void KeepScales(const RoundingState& state, int64_t begin, int64_t end);

// V of units [begin, end) moves against its gradient's sign by `learning_rate`; the units' shares
// of their groups' gradients go to scale_gradient and clamped_gradient.
void StepValues(const RoundingState& state, int64_t begin, int64_t end, float learning_rate);

// alpha and beta of groups [begin, end), after StepValues of all their units.
void StepRanges(const RoundingState& state, int64_t begin, int64_t end, float learning_rate);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_LOOPS_H_
