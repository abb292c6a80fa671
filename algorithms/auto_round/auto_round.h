// Block-wise tuning of rounding, in two recipes. Paper: Auto-Round (arXiv 2309.05516) with the
// arithmetic of auto-round 0.16.1: rounding offsets V and range factors alpha and beta by signed
// gradient descent on the block's squared error. Learned scale: this project's own
// (docs/tuning.md): searched scales, positions U and a scale factor t by Adam, on a Fisher-weighted
// error.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_AUTO_ROUND_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_AUTO_ROUND_H_

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "algorithms/auto_round/tuning_stream.h"
#include "algorithms/block_quantizer.h"
#include "observers/observed_block.h"

namespace ptq {

enum class AutoRoundMethod { kPaper, kLearnedScale };

// Of a block's matrix products while it is tuned. FP8 where they can be (fused_linear.h), in blocks
// of bfloat16 on a GPU with HasFp8Products().
enum class TuningPrecision { kComputeDtype, kFp8 };

struct AutoRoundOptions {
  AutoRoundMethod method = AutoRoundMethod::kPaper;
  int64_t iterations = 200;  // 0: the start of the recipe, rtn or opt-rtn
  int64_t batch_size = 8;    // sequences a step, drawn without replacement, reshuffled each epoch
  // Sequences that go through the block at once; a step sums the gradients of its micro-batches.
  // 0: the whole batch.
  int64_t micro_batch = 0;
  // 0: the recipe's. Paper: of V, 1 / iterations, or 2 / iterations for layers of at most 3 bits
  // where iterations >= 1000, decaying linearly to 0. Learned scale: LearnedScalePeak / iterations,
  // decaying as a cosine.
  double learning_rate = 0;
  // Of alpha and beta (0: the learning rate), or of t (0: kFactorRate of the learning rate).
  double range_learning_rate = 0;
  TuningPrecision precision = TuningPrecision::kComputeDtype;
};

// The learned-scale recipe's constants beside the decays in learned_scale_math.h.
inline constexpr double kFactorRate = 0.2;    // t's learning rate over U's
inline constexpr double kFisherWeight = 0.9;  // of F in the metric, the rest is the identity
// Below 4 tokens a channel F is too noisy for that.
inline constexpr double kSparseFisherWeight = 0.5;
inline constexpr int64_t kFisherTokensPerChannel = 4;
// A layer that saw fewer tokens, an expert say, keeps its searched start.
inline constexpr int64_t kLeastTokens = 256;

// Whether layer `index` of the block keeps its searched start: fewer than kLeastTokens tokens
// reached it, though the calibration has more.
bool HasFewTokens(const ObservedBlock& observed, size_t index);

// Weight of F in the metric of blocks `width` wide, F being the mean over `tokens`.
double FisherWeight(int64_t tokens, int64_t width);

// On a GPU it holds memory from block to block.
class AutoRoundBlockQuantizer final : public BlockQuantizer {
 public:
  AutoRoundBlockQuantizer(at::ScalarType stored_dtype, AutoRoundOptions options)
      : stored_dtype_(stored_dtype), options_(options) {}
  // Paper: keeps the parameters of the step with the least loss. Learned scale: those of the last
  // step; the loss is FisherLoss where `observed.fisher` is defined, else the squared error. Where
  // no such step's loss is a number, all layers fall back to the recipe's start and say so. The
  // observed tensors must not be inference tensors (autograd saves some of them).
  absl::StatusOr<QuantizedBlock> QuantizeBlock(const BlockQuantizationRequest& request) override;

 private:
  at::ScalarType stored_dtype_;
  AutoRoundOptions options_;
  std::unique_ptr<TuningStream> stream_;  // of the blocks on CUDA; made when it is needed
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_AUTO_ROUND_H_
