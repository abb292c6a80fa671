// The tuning loop of one decoder block: fake-quantized forward pass, loss, gradient, signed step.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_TUNER_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_TUNER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "algorithms/affine/affine_quantized_tensor.h"
#include "algorithms/auto_round/auto_round.h"
#include "algorithms/auto_round/rounding_parameters.h"
#include "algorithms/auto_round/tuning_state.h"
#include "algorithms/block_quantizer.h"

namespace ptq {

// Holds the tunable parameters of a block's quantized linears and takes steps on them. Nothing
// inside a step waits for the device: batches, rates, losses and the best step stay there
// (tuning_state.h), and on CUDA all steps after the first two replay one captured graph. Linears
// that see one and the same input (q, k, v; gate, up) are computed as one product. Methods throw
// c10::Error.
class BlockTuner {
 public:
  // All of `request` outlives it; inputs, schemes and options were validated. iterations >= 1.
  BlockTuner(const BlockQuantizationRequest& request, at::ScalarType stored_dtype,
             const AutoRoundOptions& options);
  ~BlockTuner();
  BlockTuner(const BlockTuner&) = delete;
  BlockTuner& operator=(const BlockTuner&) = delete;

  // Steps number `iterations` at most. On CUDA they are only queued.
  void Step();
  int64_t steps() const { return steps_; }

  // Losses of the steps so far; waits for the device.
  std::vector<float> LossCurve() const;
  // The step whose parameters are kept, -1 if no loss was a number; waits for the device.
  int64_t BestStep() const;
  // Records of the best step, by linear index; none for a layer that the block did not use. Only if
  // BestStep() >= 0.
  std::vector<std::optional<AffineQuantizedTensor>> BestRecords() const;

 private:
  struct SharedInput;  // linears that see the same input
  struct Graph;        // a captured CUDA graph with its stream

  void MakeSharedInputs();
  at::Tensor Forward(const at::Tensor& hidden);
  float ChooseGradientScale();
  void RunStep();
  void CaptureStep();

  const ObservedBlock& observed_;
  const std::vector<std::optional<QuantizationScheme>>& schemes_;
  AutoRoundOptions options_;
  int64_t batch_;
  int64_t steps_ = 0;
  std::vector<std::unique_ptr<RoundingParameters>> parameters_;  // by linear index
  std::vector<SharedInput> shared_;
  std::vector<int64_t> shared_of_;    // by linear index; -1: not quantized
  std::vector<int64_t> position_of_;  // in its SharedInput
  std::vector<StepRates> rates_;      // by linear index
  std::vector<at::Tensor> rate_tables_;
  at::Tensor inputs_;
  at::Tensor targets_;
  at::Tensor mask_;
  at::Tensor order_;  // [iterations, batch]
  at::Tensor step_;
  at::Tensor loss_curve_;
  at::Tensor best_loss_;
  at::Tensor best_step_;
  at::Tensor improved_;
  at::Tensor token_sums_;
  TuningState state_;
  std::unique_ptr<Graph> graph_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_TUNER_H_
