#include "observers/head_observer.h"

#include <ATen/core/grad_mode.h>

#include <optional>
#include <utility>
#include <vector>

#include "common/torch_status.h"
#include "observers/output_error.h"

namespace ptq {
namespace {

// The final norm and the head for observers of blocks: a block with one linear layer.
class HeadLayer final : public DecoderBlock {
 public:
  HeadLayer(const LanguageModelHead& head, std::string module)
      : head_(head), name_(std::move(module)), linears_(1) {
    linears_[0].module = name_;
    linears_[0].weight = head.head_weight;
  }
  const std::string& name() const override { return name_; }
  const std::vector<Linear>& linears() const override { return linears_; }
  std::vector<Linear>& mutable_linears() override { return linears_; }
  std::optional<GatedBlockParts> gated_parts(int64_t) const override { return std::nullopt; }

 private:
  at::Tensor ForwardByTensors(const at::Tensor& hidden, const RotaryTable&,
                              const LinearFunction& apply) const override {
    return apply(0, head_.Normalize(hidden));
  }

  const LanguageModelHead& head_;
  const std::string name_;
  std::vector<Linear> linears_;
};

}  // namespace

absl::StatusOr<LinearStatistics> ObserveHead(const LanguageModelHead& head,
                                             const std::string& module, const at::Tensor& hidden,
                                             int64_t micro_batch, InputStatistics statistics) {
  return CatchTorchErrors(module, [&]() -> absl::StatusOr<LinearStatistics> {
    return std::move(ObserveLinears(HeadLayer(head, module), hidden, RotaryTable(), micro_batch,
                                    statistics == InputStatistics::kHessian)
                         .front());
  });
}

absl::StatusOr<at::Tensor> HeadErrorInputs(const LanguageModelHead& head,
                                           const at::Tensor& hidden) {
  return CatchTorchErrors("language-model head", [&]() -> absl::StatusOr<at::Tensor> {
    const at::NoGradGuard no_grad;
    return head.Normalize(ToDevice(SpreadSamples(hidden), head.head_weight.device())).flatten(0, 1);
  });
}

}  // namespace ptq
