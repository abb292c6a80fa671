#include "observers/head_observer.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "common/torch_status.h"
#include "observers/output_error.h"

namespace ptq {
namespace {

// The head for observers of blocks: one linear layer.
class HeadLayer final : public DecoderBlock {
 public:
  explicit HeadLayer(std::string module) : name_(std::move(module)), linears_(1) {
    linears_[0].module = name_;
  }
  const std::string& name() const override { return name_; }
  const std::vector<Linear>& linears() const override { return linears_; }
  std::vector<Linear>& mutable_linears() override { return linears_; }
  std::optional<GatedBlockParts> gated_parts(int64_t) const override { return std::nullopt; }

 private:
  at::Tensor ForwardByTensors(const at::Tensor& hidden, const RotaryTable&,
                              const LinearFunction& apply) const override {
    return apply(0, hidden);
  }

  const std::string name_;
  std::vector<Linear> linears_;
};

}  // namespace

absl::StatusOr<LinearStatistics> ObserveHead(const LanguageModelHead& head,
                                             const std::string& module, const at::Tensor& hidden,
                                             int64_t micro_batch, InputStatistics statistics) {
  return CatchTorchErrors(module, [&]() -> absl::StatusOr<LinearStatistics> {
    const at::NoGradGuard no_grad;
    const HeadLayer layer(module);
    const bool hessian = statistics == InputStatistics::kHessian;
    LinearObserver observer(layer, hessian);
    const int64_t tokens = hidden.size(0) * hidden.size(1);
    const int64_t every = hessian ? 1 : std::max<int64_t>(1, tokens / kImportanceTokens);
    for (int64_t begin = 0; begin < hidden.size(0); begin += every * micro_batch) {
      const int64_t count = std::min(micro_batch, hidden.size(0) - begin);
      observer.Record(
          0, head.Normalize(ToDevice(hidden.narrow(0, begin, count), head.head_weight.device())));
    }
    return std::move(observer.Finish().front());
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
