// What the steps of one block's tuning share, as raw spans on the host or on a CUDA device: the
// step counter, the batches, the loss and which step was best. Kept beside the data, so that no
// step waits for the host and one captured CUDA graph serves all steps. C++17, no torch.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_TUNING_STATE_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_TUNING_STATE_H_

#include <cstdint>

#include "algorithms/cuda/hidden_dtype.h"

namespace ptq {

struct TuningState {
  // Loss of step k: mean((output - target)² · mask²) over unmasked tokens.
  // Of samples [first, first + count) of the current batch: a micro-batch.
  const void* output = nullptr;    // [count, length, width]: the block's
  void* gradient = nullptr;        // the same shape: (output - target) · mask² · gradient_scale
  const void* targets = nullptr;   // [slots, length, width]
  const float* mask = nullptr;     // [samples, length]
  const int64_t* order = nullptr;  // [iterations, batch] sample indices
  const int64_t* slots = nullptr;  // [iterations, batch]: where in `targets` each sample's are
  float* token_sums = nullptr;     // [batch, length]: scratch
  int64_t* step = nullptr;         // [1]: k
  float* loss_curve = nullptr;     // [iterations]; NaN if the batch has no unmasked token
  float* best_loss = nullptr;      // [1], infinity at first
  int64_t* best_step = nullptr;    // [1], -1 at first
  int32_t* improved = nullptr;     // [1]: 1 if step k's loss is below all before it
  int64_t batch = 0;
  int64_t first = 0;
  int64_t count = 0;
  int64_t length = 0;
  int64_t width = 0;
  // Of a loss w d'F'd, d = (output - target) mask, alone: w, d and F'd. The last two are bfloat16
  // whatever the dtype. Such a loss keeps no best step: best_loss, best_step and improved are none.
  const float* token_weights = nullptr;  // [samples, length]
  void* difference = nullptr;            // [count, length, width]
  const void* product = nullptr;         // [count, length, width]
  float gradient_scale = 1.0f;
  HiddenDtype dtype = HiddenDtype::kFloat32;

  int64_t tokens() const { return count * length; }         // of the micro-batch
  bool complete() const { return first + count == batch; }  // it is the batch's last one
};

// Learning rates by step and where in them a step is; see TuningState.
struct StepRates {
  const float* value = nullptr;  // [iterations]: of V or U
  const float* range = nullptr;  // [iterations]: of alpha and beta, or of t
  // Adam's: 1 / (1 - decay^(k+1)), [iterations]; none in signed descent.
  const float* first_correction = nullptr;
  const float* second_correction = nullptr;
  const int64_t* step = nullptr;
  const int32_t* improved = nullptr;  // keep codes and scales before the step if 1
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_TUNING_STATE_H_
