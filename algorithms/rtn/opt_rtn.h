// Round to nearest with importance-weighted searched scales (auto-round's opt_rtn, GGUF's imatrix).
#ifndef PTQ_ALGORITHMS_RTN_OPT_RTN_H_
#define PTQ_ALGORITHMS_RTN_OPT_RTN_H_

#include <ATen/core/Tensor.h>

#include "absl/status/statusor.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "algorithms/block_quantizer.h"
#include "common/cancellation.h"
#include "common/quantization_scheme.h"

namespace ptq {

// One weight [N, K]: scales by SearchScales, codes by rounding to them; of a K-quant
// QuantizeKQuant. kCancelled; may throw c10::Error.
absl::StatusOr<AffineQuantizedTensor> QuantizeOptRtn(const at::Tensor& weight,
                                                     const at::Tensor& importance,
                                                     at::ScalarType stored_dtype,
                                                     const QuantizationScheme& scheme,
                                                     const CancellationToken& cancel);

// A layer that no calibration token reached, an expert say: all columns count alike. Its
// fallback_reason says so. kCancelled; may throw c10::Error.
absl::StatusOr<QuantizedLinear> QuantizeUnreached(const at::Tensor& weight,
                                                  at::ScalarType stored_dtype,
                                                  const QuantizationScheme& scheme,
                                                  const CancellationToken& cancel);

class OptRtnBlockQuantizer final : public BlockQuantizer {
 public:
  explicit OptRtnBlockQuantizer(at::ScalarType stored_dtype) : stored_dtype_(stored_dtype) {}
  absl::StatusOr<QuantizedBlock> QuantizeBlock(const BlockQuantizationRequest& request) override;

 private:
  at::ScalarType stored_dtype_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_RTN_OPT_RTN_H_
