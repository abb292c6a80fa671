// Auto-Round (arXiv 2309.05516) with the arithmetic of auto-round 0.16.1: rounding offsets V and
// range factors alpha and beta tuned by signed gradient descent on the block's reconstruction loss.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_AUTO_ROUND_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_AUTO_ROUND_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "absl/status/statusor.h"
#include "algorithms/block_quantizer.h"

namespace ptq {

struct AutoRoundOptions {
  int64_t iterations = 200;  // 0: rtn
  int64_t batch_size = 8;    // sequences a step, drawn without replacement, reshuffled each epoch
  // 0: 1 / iterations, or 2 / iterations for layers of at most 3 bits where iterations >= 1000.
  // Both decay linearly to 0: lr_k = lr (1 - k / iterations).
  double learning_rate = 0;
  double range_learning_rate = 0;  // of alpha and beta; 0: the learning rate
};

class AutoRoundBlockQuantizer final : public BlockQuantizer {
 public:
  AutoRoundBlockQuantizer(at::ScalarType stored_dtype, AutoRoundOptions options)
      : stored_dtype_(stored_dtype), options_(options) {}
  // Keeps the parameters of the step with the least loss. Where no step's loss is a number, all
  // layers fall back to rtn and say so. The observed tensors must not be inference tensors
  // (autograd saves some of them).
  absl::StatusOr<QuantizedBlock> QuantizeBlock(const BlockQuantizationRequest& request) override;

 private:
  at::ScalarType stored_dtype_;
  AutoRoundOptions options_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_AUTO_ROUND_H_
