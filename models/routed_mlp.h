// The MLP of a block with experts: a router, routed experts, and perhaps one that all tokens share.
#ifndef PTQ_MODELS_ROUTED_MLP_H_
#define PTQ_MODELS_ROUTED_MLP_H_

#include <memory>

#include "absl/status/statusor.h"
#include "formats/headers/model_config.h"
#include "models/block_weights.h"
#include "models/mlp.h"

namespace ptq {

// kInvalidArgument for a missing tensor.
absl::StatusOr<std::unique_ptr<Mlp>> MakeRoutedMlp(const ModelConfig& config,
                                                   const BlockWeights& weights);

}  // namespace ptq

#endif  // PTQ_MODELS_ROUTED_MLP_H_
