// The interface of every algorithm: one observed decoder block in, one record a linear layer out.
#ifndef PTQ_ALGORITHMS_BLOCK_QUANTIZER_H_
#define PTQ_ALGORITHMS_BLOCK_QUANTIZER_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "common/cancellation.h"
#include "common/quantization_scheme.h"
#include "observers/observed_block.h"

namespace ptq {

struct BlockQuantizationRequest {
  const ObservedBlock& observed;
  // By linear index; none: the layer is left alone.
  const std::vector<std::optional<QuantizationScheme>>& schemes;
  uint64_t seed = 42;  // of this block: the job's seed and the block's index mixed by the caller
  const CancellationToken& cancel;
  // Called from time to time with the finished fraction 0..1.
  std::function<void(double fraction)> progress;
};

struct QuantizedLinear {
  AffineQuantizedTensor weight;
  // Why another method than the asked one made this record ("" if none did), e.g. "Hessian not
  // positive definite after damping 0.1: rtn". Class, bits and group are never changed by a
  // fallback.
  std::string fallback_reason;
  // Where codes come of a factorized Hessian: what was added to its diagonal before that worked, as
  // a fraction of the diagonal's mean.
  std::optional<double> damping = std::nullopt;
};

struct QuantizedBlock {
  std::vector<std::optional<QuantizedLinear>> linears;  // by linear index
  // Block reconstruction losses by the algorithm's measure over unmasked tokens; empty where it has
  // none. `loss_curve` has one value a step, of that step's batch.
  std::optional<double> loss_first;
  std::optional<double> loss_best;
  std::vector<float> loss_curve;
  std::optional<double> step_seconds;  // of an iteration, once warmed up; where there are any
  std::string tuning_path;             // which way its iterations went (BlockTuner::Path)
  double search_seconds = 0;           // of the search for scales, where tuning begins with one
};

// Implementations keep no state between calls but their options, and are not thread-safe: one job,
// one instance. The block's weights stay unchanged.
class BlockQuantizer {
 public:
  virtual ~BlockQuantizer() = default;

  // Deterministic for a given seed on one machine. A layer that fails numerically is quantized by
  // rtn and says so. kCancelled if `request.cancel` fires (checked at least every second);
  // kFailedPrecondition if the algorithm needs calibration data and there is none;
  // kResourceExhausted if memory runs out. Messages name the layer.
  virtual absl::StatusOr<QuantizedBlock> QuantizeBlock(const BlockQuantizationRequest& request) = 0;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_BLOCK_QUANTIZER_H_
