// The block reconstruction loss with its gradient, on the host. Pure functions
// over raw spans. No torch.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_LOSS_LOOPS_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_LOSS_LOOPS_H_

#include <cstdint>

#include "algorithms/auto_round/tuning_state.h"

namespace ptq {

// token_sums and gradient of tokens [begin, end) of the micro-batch.
void LossOfTokens(const TuningState& state, int64_t begin, int64_t end);

// After LossOfTokens of all tokens of the batch: loss_curve of the current step, best_loss,
// best_step, improved.
void FinishLoss(const TuningState& state);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_LOSS_LOOPS_H_
