#include "models/mlp.h"

#include <ATen/TensorOperators.h>

#include "common/status_macros.h"
#include "models/activation.h"
#include "models/experts.h"
#include "models/routed_mlp.h"

namespace ptq {
namespace {

// Down(activation(Up x)).
class PlainMlp final : public Mlp {
 public:
  PlainMlp(size_t up, size_t down, Activation activation)
      : up_(up), down_(down), activation_(activation) {}
  at::Tensor Forward(const at::Tensor& input, const LinearFunction& apply) const override {
    return apply(down_, Activate(activation_, apply(up_, input)));
  }
  bool Describe(GatedBlockParts*) const override { return false; }

 private:
  size_t up_;
  size_t down_;
  Activation activation_;
};

// Down(activation(Gate x) * Up x).
class GatedMlp final : public Mlp {
 public:
  GatedMlp(const GatedLinears& linears, Activation activation)
      : linears_(linears), activation_(activation) {}
  at::Tensor Forward(const at::Tensor& input, const LinearFunction& apply) const override {
    return ApplyGatedLinears(linears_, activation_, input, apply);
  }
  bool Describe(GatedBlockParts* parts) const override {
    if (activation_ != Activation::kSilu) return false;
    parts->gate = linears_.gate;
    parts->up = linears_.up;
    parts->down = linears_.down;
    return true;
  }

 private:
  GatedLinears linears_;
  Activation activation_;
};

// The same with gate and up in one layer.
class FusedGatedMlp final : public Mlp {
 public:
  FusedGatedMlp(size_t gate_up, size_t down, Activation activation)
      : gate_up_(gate_up), down_(down), activation_(activation) {}
  at::Tensor Forward(const at::Tensor& input, const LinearFunction& apply) const override {
    const at::Tensor both = apply(gate_up_, input);
    const int64_t width = both.size(-1) / 2;
    return apply(down_,
                 Activate(activation_, both.narrow(-1, 0, width)) * both.narrow(-1, width, width));
  }
  bool Describe(GatedBlockParts*) const override { return false; }

 private:
  size_t gate_up_;
  size_t down_;
  Activation activation_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Mlp>> MakeMlp(const ModelConfig& config,
                                             const BlockWeights& weights) {
  if (weights.Has(TensorPart::kRouter)) return MakeRoutedMlp(config, weights);
  if (weights.Has(TensorPart::kGate)) {
    PTQ_ASSIGN_OR_RETURN(const GatedLinears linears, GatedLinearsOf(weights));
    return std::make_unique<GatedMlp>(linears, config.activation);
  }
  PTQ_ASSIGN_OR_RETURN(const size_t down, weights.LinearOf(TensorPart::kDown));
  if (weights.Has(TensorPart::kGateUp)) {
    PTQ_ASSIGN_OR_RETURN(const size_t both, weights.LinearOf(TensorPart::kGateUp));
    return std::make_unique<FusedGatedMlp>(both, down, config.activation);
  }
  PTQ_ASSIGN_OR_RETURN(const size_t up, weights.LinearOf(TensorPart::kUp));
  return std::make_unique<PlainMlp>(up, down, config.activation);
}

}  // namespace ptq
