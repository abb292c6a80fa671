// Importance-weighted search of static scales: opt-RTN's result, and GPTQ's scales.
#ifndef PTQ_ALGORITHMS_RTN_SCALE_SEARCH_H_
#define PTQ_ALGORITHMS_RTN_SCALE_SEARCH_H_

#include <ATen/core/Tensor.h>

#include "absl/status/statusor.h"
#include "algorithms/affine/affine_primitives.h"
#include "common/cancellation.h"
#include "common/quantization_scheme.h"

namespace ptq {

// For every group of `weight` [N, K] the candidate with the least sum i (s q - w)^2, i =
// `importance` [K] normalised to mean 1 plus 1e-4 (all 1 where its sum is 0 or not finite),
// candidates tried outward from the plain rule, first wins ties:
//   symmetric: s = fp16(-e / c), e the signed extreme (ties: positive), c = 2 + .01 k, |k| <= 90 at
//   2 bits, else M (1 + .0075 k), |k| <= 100, M = 2^(bits-1); k = 0, 1, -1, 2, -2, ...; asymmetric:
//   lo = a min(W, 0), hi = c max(W, 0), a and c in {.30, .35, ..., 1.15}, by growing |a - 1| + |c -
//   1|; s = fp16((hi - lo) / (2^bits - 1)), z = clamp(rint(-lo / s), 0, 2^bits - 1).
// Returns scale float16 [N/b0, K/b1], |s| >= 1e-5, and zero point int32 of the same shape in signed
// storage. Runs on the weight's device as one pass over W with all candidates inside, parallel over
// groups; errors are added in an order (scale_search_math.h) that gives the same bits for any
// number of threads, any vector width, and on CUDA. `importance` may be on any device.
QParams SearchScales(const at::Tensor& weight, const at::Tensor& importance,
                     const QuantizationScheme& scheme);

// The same in pieces of rows, polling `cancel` between them: kCancelled. On CUDA one piece.
absl::StatusOr<QParams> SearchScales(const at::Tensor& weight, const at::Tensor& importance,
                                     const QuantizationScheme& scheme,
                                     const CancellationToken& cancel);

// `importance` [K] / mean + 1e-4 as float32 on the CPU, where the sum is the same for weights on
// any device; all 1 where its mean is not positive.
at::Tensor NormalizeImportance(const at::Tensor& importance, const at::Tensor& weight);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_RTN_SCALE_SEARCH_H_
