#include "models/expert_router.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/topk.h>

#include <limits>
#include <tuple>

namespace ptq {
namespace {

// [n, experts] float32.
at::Tensor Scores(const RouterConfig& config, const at::Tensor& hidden, const at::Tensor& weight) {
  const at::Tensor logits = config.float32_logits
                                ? at::linear(hidden.to(at::kFloat), weight.to(at::kFloat))
                                : at::linear(hidden, weight).to(at::kFloat);
  return config.scores == RouterConfig::Scores::kSoftmax ? at::softmax(logits, -1)
                                                         : at::sigmoid(logits);
}

// `scores` [n, experts] with -inf outside of each token's best groups.
at::Tensor WithinBestGroups(const RouterConfig& config, const at::Tensor& scores) {
  const at::Tensor grouped = scores.unflatten(-1, {config.groups, -1});
  const at::Tensor worth =
      std::get<0>(at::topk(grouped, config.scores_per_group)).sum(-1);  // [n, groups]
  const at::Tensor best = std::get<1>(at::topk(worth, config.groups_per_token));
  const at::Tensor outside =
      at::ones(worth.sizes(), worth.options().dtype(at::kBool)).scatter_(1, best, 0);
  return grouped.masked_fill(outside.unsqueeze(-1), -std::numeric_limits<double>::infinity())
      .flatten(1);
}

}  // namespace

Routing RouteTokens(const RouterConfig& config, const at::Tensor& hidden, const at::Tensor& weight,
                    const at::Tensor& correction) {
  const at::Tensor scores = Scores(config, hidden, weight);
  at::Tensor choice = scores.detach();
  if (correction.defined()) choice = choice + correction;
  if (config.groups_per_token < config.groups) choice = WithinBestGroups(config, choice);
  Routing routing;
  routing.experts = std::get<1>(at::topk(choice, config.experts_per_token));
  routing.weights = scores.gather(1, routing.experts);
  if (config.normalize) {
    routing.weights =
        routing.weights / (routing.weights.sum(-1, /*keepdim=*/true) + config.epsilon);
  }
  if (config.scaling != 1) routing.weights = routing.weights * config.scaling;
  if (config.weights_like_hidden) routing.weights = routing.weights.to(hidden.scalar_type());
  return routing;
}

}  // namespace ptq
