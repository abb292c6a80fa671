// Losses of a tuned block's output against the full-precision block's, with their gradients.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_LOSS_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_LOSS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "algorithms/auto_round/tuning_state.h"

namespace ptq {

// What every loss looks at, on the device of the block but for `targets`. The step counter is among
// it, so that no step waits for the host.
struct LossInputs {
  at::Tensor targets;     // [S, T, D]: the full-precision block's outputs
  at::Tensor mask;        // [S, T] float32: 0 where a token does not count
  at::Tensor order;       // [iterations, batch] int64: the samples of each step
  at::Tensor step;        // [1] int64
  at::Tensor loss_curve;  // [iterations] float32
  // Where `targets` lies in host memory: the tensor on the device that has those of the step's
  // samples in time (BatchRing), and at which index each is, like `order`.
  at::Tensor staged_targets;  // [slots, T, D]
  at::Tensor slots;

  const at::Tensor& step_targets() const {
    return staged_targets.defined() ? staged_targets : targets;
  }
  const at::Tensor& step_slots() const { return slots.defined() ? slots : order; }
};

// Methods throw c10::Error and only queue work on CUDA.
class BlockLoss {
 public:
  virtual ~BlockLoss() = default;
  // Of the block's output [b, T, D] for samples first, first + 1 ... of the current step's batch:
  // returns dL / d output times gradient_scale times a constant, contiguous, of the output's dtype.
  // L is the loss of the whole batch; it is written into the curve with the batch's last sample.
  // Micro-batches come in order.
  virtual at::Tensor Gradient(const at::Tensor& output, int64_t first) = 0;
  // Forgets what Gradient has seen.
  virtual void Reset() {}

  // Descent does not depend on it; it keeps half precision and squares of gradients in range.
  float gradient_scale = 1.0F;
};

// mean((output - target)² mask²) over unmasked tokens, and which step had the least.
class SquaredErrorLoss final : public BlockLoss {
 public:
  explicit SquaredErrorLoss(const LossInputs& inputs);
  at::Tensor Gradient(const at::Tensor& output, int64_t first) override;
  void Reset() override;

  const at::Tensor& improved() const { return improved_; }    // [1] int32, see TuningState
  const at::Tensor& best_step() const { return best_step_; }  // [1] int64

 private:
  LossInputs inputs_;
  at::Tensor best_loss_;
  at::Tensor best_step_;
  at::Tensor improved_;
  at::Tensor token_sums_;
  TuningState state_;
};

// mean(w d'F'd) over unmasked tokens and channels, d = (output - target) mask. w are token weights
// 1 / mean(target²), the divisor at least 1e-6 of its mean, scaled to mean 1 over unmasked tokens;
// F' = weight F / mean(diag F) + (1 - weight) I is the Fisher metric of FisherObserver. The product
// F'd is in the output's dtype, but bfloat16 where that is float16.
class FisherLoss final : public BlockLoss {
 public:
  // `fisher` [D, D], symmetric. 0 <= weight <= 1.
  FisherLoss(const LossInputs& inputs, const at::Tensor& fisher, double weight);
  at::Tensor Gradient(const at::Tensor& output, int64_t first) override;

 private:
  at::Tensor GradientByKernels(const at::Tensor& output);
  at::Tensor GradientByTensors(const at::Tensor& output, int64_t first);

  LossInputs inputs_;
  at::Tensor metric_;         // F'
  at::Tensor token_weights_;  // [S, T] float32
  at::Tensor steps_;          // [iterations]: 0, 1, 2, ...
  at::Tensor token_sums_;     // [batch, T] float32
  TuningState state_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_LOSS_H_
