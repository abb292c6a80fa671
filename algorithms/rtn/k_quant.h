// Records of GGUF's K-quants by an importance-weighted search: what rtn and opt-rtn make of them,
// and the grid that GPTQ rounds to.
#ifndef PTQ_ALGORITHMS_RTN_K_QUANT_H_
#define PTQ_ALGORITHMS_RTN_K_QUANT_H_

#include <ATen/core/Tensor.h>

#include "absl/status/statusor.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "common/cancellation.h"
#include "common/k_quant.h"

namespace ptq {

// `weight` [N, K], K a multiple of 256, by SearchKQuant (k_quant_kernel.h) with `importance` [K]
// normalised as SearchScales does it, or 1 everywhere if it is undefined. Runs on the CPU whatever
// the weight's device, parallel over rows, with the same bits for any number of threads; the record
// is on the weight's device. kCancelled; may throw c10::Error.
absl::StatusOr<AffineQuantizedTensor> QuantizeKQuant(const at::Tensor& weight,
                                                     const at::Tensor& importance,
                                                     at::ScalarType stored_dtype, KQuant type,
                                                     const CancellationToken& cancel);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_RTN_K_QUANT_H_
