// The numeric core of GPTQ: codes for one weight, given its inputs' Hessian and static scales.
// Knows matrices only, no blocks, jobs or fallbacks.
#ifndef PTQ_ALGORITHMS_GPTQ_GPTQ_SOLVER_H_
#define PTQ_ALGORITHMS_GPTQ_GPTQ_SOLVER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "algorithms/affine/affine_primitives.h"
#include "common/cancellation.h"
#include "common/quantization_scheme.h"

namespace ptq {

// What layers with the same inputs share: the order in which columns are rounded, and how the error
// of one is passed on to those after it.
struct GptqFactor {
  at::Tensor order;     // [K] int64: column at each position, by falling Hessian diagonal
  at::Tensor feedback;  // [K, K] float32 by position, unit upper triangular: U[i, :] / U[i, i] with
                        // inverse(H + damping) = Uᵀ U; contiguous
  double damping = 0;   // the ladder's step that worked, as a fraction of the mean diagonal
};

// Factorises `hessian` (XᵀX times any factor, [K, K]) in float64 with the first damping of `ladder`
// that makes it positive definite. Columns that saw only zeros become independent of all others.
// nullopt if none does, or if the Hessian is zero or not finite; kCancelled. May throw c10::Error.
absl::StatusOr<std::optional<GptqFactor>> FactorizeHessian(const at::Tensor& hessian,
                                                           const std::vector<double>& ladder,
                                                           const CancellationToken& cancel);

// Codes int8 [N, K] in signed storage for `weight` [N, K] under the fixed `qparams` of `scheme`:
// columns are rounded one by one in `factor.order`, each error is carried over to the columns left.
// Updates beyond the current tile of `columns_per_tile` columns (on CUDA at most 128) are done as
// one product at its end. The parameters are [N, G], or with 1 in place of N or G. Rows do not
// depend on each other: weights with one factor and scheme may be solved as one. On CUDA a kernel
// solves a tile (gptq_tile_state.h), and the device is waited for once. nullopt if anything becomes
// non-finite; kCancelled. May throw c10::Error.
absl::StatusOr<std::optional<at::Tensor>> SolveGptq(
    const at::Tensor& weight, const QParams& qparams, const QuantizationScheme& scheme,
    const GptqFactor& factor, int64_t columns_per_tile, const CancellationToken& cancel);

// The same on the fixed grid of a K-quant's `scheme`, by ATen's operations on every device.
absl::StatusOr<std::optional<at::Tensor>> SolveGptqOnGrid(
    const at::Tensor& weight, const GroupValues& grid, const QuantizationScheme& scheme,
    const GptqFactor& factor, int64_t columns_per_tile, const CancellationToken& cancel);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_GPTQ_GPTQ_SOLVER_H_
