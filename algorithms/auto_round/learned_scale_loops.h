// The learned-scale recipe's fused loops on the host: fake quantization from U and t, and one step
// of Adam on them (learned_scale_math.h). Pure functions over raw spans; each call handles a range
// of groups or units, so that the caller decides about threads. No torch.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_LOOPS_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_LOOPS_H_

#include <cstdint>

#include "algorithms/auto_round/learned_scale_state.h"
#include "algorithms/auto_round/tuning_state.h"

namespace ptq {

// fake_quantized of units [begin, end): s (clamp(rint(U) + z) - z), rounded as it is stored.
void FakeQuantizePositions(const LearnedScaleState& state, int64_t begin, int64_t end);

// U and its moments of units [begin, end), by the gradient of the last FakeQuantizePositions; the
// units' shares of t's gradient go to factor_gradient.
void StepPositions(const LearnedScaleState& state, int64_t begin, int64_t end,
                   const StepRates& rates);

// t and its moments of groups [begin, end), after StepPositions of all their units.
void StepFactors(const LearnedScaleState& state, int64_t begin, int64_t end,
                 const StepRates& rates);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_LOOPS_H_
