// Round to nearest with importance-weighted searched scales (auto-round's opt_rtn, GGUF's imatrix).
#ifndef PTQ_ALGORITHMS_RTN_OPT_RTN_H_
#define PTQ_ALGORITHMS_RTN_OPT_RTN_H_

#include <ATen/core/Tensor.h>

#include "algorithms/block_quantizer.h"

namespace ptq {

class OptRtnBlockQuantizer final : public BlockQuantizer {
 public:
  explicit OptRtnBlockQuantizer(at::ScalarType stored_dtype) : stored_dtype_(stored_dtype) {}
  absl::StatusOr<QuantizedBlock> QuantizeBlock(const BlockQuantizationRequest& request) override;

 private:
  at::ScalarType stored_dtype_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_RTN_OPT_RTN_H_
