#include "models/routed_mlp.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/sigmoid.h>

#include <optional>
#include <vector>

#include "common/status_macros.h"
#include "models/expert_router.h"
#include "models/experts.h"

namespace ptq {
namespace {

class RoutedMlp final : public Mlp {
 public:
  static absl::StatusOr<std::unique_ptr<Mlp>> Create(const ModelConfig& config,
                                                     const BlockWeights& weights);

  at::Tensor Forward(const at::Tensor& input, const LinearFunction& apply) const override;
  bool Describe(GatedBlockParts*) const override { return false; }

 private:
  RouterConfig config_;
  Activation activation_ = Activation::kSilu;
  at::Tensor router_;      // [experts, D]
  at::Tensor correction_;  // [experts] float32, or undefined
  std::vector<GatedLinears> experts_;
  std::optional<GatedLinears> shared_;
  at::Tensor shared_gate_;  // [1, D], or undefined: the shared expert counts in full
};

absl::StatusOr<std::unique_ptr<Mlp>> RoutedMlp::Create(const ModelConfig& config,
                                                       const BlockWeights& weights) {
  auto mlp = std::make_unique<RoutedMlp>();
  mlp->config_ = config.experts.router;
  mlp->activation_ = config.activation;
  PTQ_ASSIGN_OR_RETURN(mlp->router_, weights.RouterOf(TensorPart::kRouter));
  if (weights.Has(TensorPart::kRouterCorrection)) {
    PTQ_ASSIGN_OR_RETURN(mlp->correction_, weights.RouterOf(TensorPart::kRouterCorrection));
  }
  for (int64_t expert = 0; expert < mlp->config_.experts; ++expert) {
    PTQ_ASSIGN_OR_RETURN(mlp->experts_.emplace_back(), GatedLinearsOf(weights, expert));
  }
  if (config.experts.shared_intermediate_size > 0) {
    PTQ_ASSIGN_OR_RETURN(mlp->shared_, GatedLinearsOf(weights));
  }
  if (weights.Has(TensorPart::kSharedExpertGate)) {
    PTQ_ASSIGN_OR_RETURN(mlp->shared_gate_, weights.RouterOf(TensorPart::kSharedExpertGate));
  }
  return mlp;
}

at::Tensor RoutedMlp::Forward(const at::Tensor& input, const LinearFunction& apply) const {
  const at::Tensor rows = input.flatten(0, -2);
  const Routing routing = RouteTokens(config_, rows, router_, correction_);
  const at::Tensor routed =
      ApplyExperts(experts_, activation_, rows, routing, apply).view(input.sizes());
  if (!shared_) return routed;
  const at::Tensor shared = ApplyGatedLinears(*shared_, activation_, input, apply);
  if (!shared_gate_.defined()) return routed + shared;
  return routed + at::sigmoid(at::linear(input, shared_gate_)) * shared;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Mlp>> MakeRoutedMlp(const ModelConfig& config,
                                                   const BlockWeights& weights) {
  return RoutedMlp::Create(config, weights);
}

}  // namespace ptq
