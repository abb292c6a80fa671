// The routed experts of a block: gated MLPs, each for the tokens that were sent to it.
#ifndef PTQ_MODELS_EXPERTS_H_
#define PTQ_MODELS_EXPERTS_H_

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/headers/model_config.h"
#include "models/block_weights.h"
#include "models/expert_router.h"
#include "models/linear.h"

namespace ptq {

// Indices into DecoderBlock::linears() of Down(activation(Gate x) * Up x).
struct GatedLinears {
  size_t gate = 0;
  size_t up = 0;
  size_t down = 0;
};

// Of expert `expert`, or of the MLP that all tokens go through. kInvalidArgument for a missing one.
absl::StatusOr<GatedLinears> GatedLinearsOf(const BlockWeights& weights, int64_t expert = -1);

// One gated MLP of rows [..., D].
at::Tensor ApplyGatedLinears(const GatedLinears& linears, Activation activation,
                             const at::Tensor& rows, const LinearFunction& apply);

// hidden [n, D] -> [n, D]: the sum over a token's experts of weight · expert(token). Rows are
// sorted by expert and gathered once; `apply` sees an expert's rows [m, K] together, gate and up
// the very same tensor, and never those of an expert without tokens. `routing.experts` are below
// experts.size().
//
// Differentiable with respect to `hidden`, the weights and what `apply` uses; no sum, forward or
// backward, depends on the order in which a device works. Waits for the device once, for the
// experts' counts. Throws c10::Error.
at::Tensor ApplyExperts(const std::vector<GatedLinears>& experts, Activation activation,
                        const at::Tensor& hidden, const Routing& routing,
                        const LinearFunction& apply);

}  // namespace ptq

#endif  // PTQ_MODELS_EXPERTS_H_
