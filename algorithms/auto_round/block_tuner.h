// The tuning loop of one decoder block: fake-quantized forward pass, loss, gradient, step.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_TUNER_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_TUNER_H_

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "algorithms/affine/affine_primitives.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "algorithms/auto_round/auto_round.h"
#include "algorithms/auto_round/batch_ring.h"
#include "algorithms/auto_round/block_loss.h"
#include "algorithms/auto_round/block_pass.h"
#include "algorithms/auto_round/tunable_weight.h"
#include "algorithms/auto_round/tuning_stream.h"
#include "algorithms/block_quantizer.h"

namespace ptq {

// Holds the tunable parameters of a block's quantized linears and takes steps on them. Nothing
// inside a step waits for the device: batches, rates, losses and the best step stay there, and on
// CUDA all steps after the first two replay one captured graph. Linears that see one and the same
// input (q, k, v; gate, up) are computed as one product. Inputs and targets in host memory come to
// the device behind the steps (BatchRing). Methods throw c10::Error.
class BlockTuner {
 public:
  // All of `request` outlives it; inputs, schemes and options were validated. iterations >= 1.
  // `starts`, by linear index: the searched scales where the learned-scale recipe begins; none in
  // the paper's. `stream`: where a block on CUDA is tuned; not nullptr then.
  BlockTuner(const BlockQuantizationRequest& request, at::ScalarType stored_dtype,
             const AutoRoundOptions& options, const std::vector<std::optional<QParams>>& starts,
             TuningStream* stream);
  ~BlockTuner();
  BlockTuner(const BlockTuner&) = delete;
  BlockTuner& operator=(const BlockTuner&) = delete;

  // Steps number `iterations` at most. On CUDA they are only queued.
  void Step();
  int64_t steps() const { return steps_; }

  // Waits until the device has done the steps that had been queued at the last call: called every
  // few steps, it bounds how far the device lags without ever leaving it idle.
  void WaitForEarlierSteps();

  // Losses of the steps so far; waits for the device.
  std::vector<float> LossCurve() const;
  // Mean seconds of a step, without those that warm up; none for so few steps. Waits for the
  // device.
  std::optional<double> StepSeconds() const;
  // BlockPass::Path; on CUDA ", no graph" behind it where the step could not be captured.
  std::string Path() const;
  // The step whose parameters are kept, -1 if no loss that counts was a number; waits for the
  // device.
  int64_t KeptStep() const;
  // Records of the kept step, by linear index; none for a layer that was not tuned: the block did
  // not use it, or (learned scale) too few tokens reached it. Only if KeptStep() >= 0; the last
  // call.
  std::vector<std::optional<AffineQuantizedTensor>> Records();

 private:
  struct Graph;  // a captured CUDA graph and where it runs
  // When the steps that count for StepSeconds began, and the last one ended: on the device's clock,
  // or the host's.
  struct Clock {
    std::optional<c10::Event> device_begin;
    std::optional<c10::Event> device_end;
    std::chrono::steady_clock::time_point host_begin;
    std::chrono::steady_clock::time_point host_end;
  };

  void MakeParameters(at::ScalarType stored_dtype,
                      const std::vector<std::optional<QParams>>& starts);
  void MakeSharedLinears();
  bool HasFp8Codes(const SharedLinear& shared) const;
  void MakePass();
  void ChooseGradientScale();
  void FakeQuantizeAll();
  // Samples first, first + 1 ... of the current step, [count, T, D].
  at::Tensor MicroBatch(int64_t first, int64_t count) const;
  int64_t LengthOfMicroBatch(int64_t first) const { return std::min(micro_batch_, batch_ - first); }
  // Chains on the host or micro-batches: someone has counted.
  bool IsShortOfMemory() const { return ring_ != nullptr || micro_batch_ < batch_; }
  void RunStep();
  void CaptureStep();
  void Mark(std::optional<c10::Event>& device, std::chrono::steady_clock::time_point& host) const;

  const ObservedBlock& observed_;
  const std::vector<std::optional<QuantizationScheme>>& schemes_;
  AutoRoundOptions options_;
  int64_t batch_;
  int64_t micro_batch_;
  int64_t steps_ = 0;
  std::vector<std::unique_ptr<TunableWeight>> parameters_;  // by linear index; none: not tuned
  std::vector<at::Tensor> fixed_weights_;  // of those that are not, by linear index
  std::vector<SharedLinear> shared_;
  std::vector<bool> is_used_;     // by linear index: it is in a SharedLinear
  std::vector<StepRates> rates_;  // by linear index
  std::vector<at::Tensor> rate_tables_;
  at::Device device_;
  std::unique_ptr<BatchRing> ring_;  // where inputs and targets lie in host memory
  at::Tensor inputs_;                // [S, T, D], or the ring's, on the device
  LossInputs loss_inputs_;
  std::unique_ptr<BlockPass> pass_;
  std::unique_ptr<BlockLoss> loss_;
  SquaredErrorLoss* best_ = nullptr;  // loss_, where the best step is kept rather than the last
  std::unique_ptr<Graph> graph_;
  std::optional<c10::Event> earlier_;
  Clock clock_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_TUNER_H_
