// Which experts a token goes to.
#ifndef PTQ_MODELS_EXPERT_ROUTER_H_
#define PTQ_MODELS_EXPERT_ROUTER_H_

#include <ATen/core/Tensor.h>

#include "formats/headers/expert_config.h"

namespace ptq {

struct Routing {
  at::Tensor experts;  // [n, experts_per_token] int64, no expert twice in a row
  at::Tensor weights;  // [n, experts_per_token] float32, or the states' dtype if config says so
};

// Of tokens hidden [n, D], by transformers' order of operations and dtypes (mixtral, qwen2_moe,
// qwen3_moe, deepseek_v2, deepseek_v3): scores are float32. `weight` [experts, D] in the states'
// dtype; `correction` [experts] float32 is added to the scores for the choice alone
// (e_score_correction_bias), or undefined. Routers are never quantized.
//
// The weights are differentiable with respect to `hidden`; the choice is not. Equal calls give
// equal bits. Throws c10::Error.
Routing RouteTokens(const RouterConfig& config, const at::Tensor& hidden, const at::Tensor& weight,
                    const at::Tensor& correction);

}  // namespace ptq

#endif  // PTQ_MODELS_EXPERT_ROUTER_H_
