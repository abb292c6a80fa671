// GPTQ (Frantar et al. 2022, arXiv 2210.17323) with searched static group scales, act-order and a
// damping ladder.
#ifndef PTQ_ALGORITHMS_GPTQ_GPTQ_H_
#define PTQ_ALGORITHMS_GPTQ_GPTQ_H_

#include <ATen/core/Tensor.h>

#include <vector>

#include "absl/status/statusor.h"
#include "algorithms/block_quantizer.h"

namespace ptq {

struct GptqOptions {
  // Fractions of the Hessian's mean diagonal, tried in order until the factorisation succeeds.
  std::vector<double> damping_ladder = {0.01, 0.03, 0.1, 0.3, 1.0};
  int64_t columns_per_tile = 128;  // lazy updates: columns handled between two products
};

class GptqBlockQuantizer final : public BlockQuantizer {
 public:
  GptqBlockQuantizer(at::ScalarType stored_dtype, GptqOptions options)
      : stored_dtype_(stored_dtype), options_(options) {}
  absl::StatusOr<QuantizedBlock> QuantizeBlock(const BlockQuantizationRequest& request) override;

 private:
  at::ScalarType stored_dtype_;
  GptqOptions options_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_GPTQ_GPTQ_H_
