#include "observers/observed_block.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

// Runs the block over the samples for its statistics alone.
std::vector<LinearStatistics> ObserveLinears(const DecoderBlock& block, const at::Tensor& inputs,
                                             const RotaryTable& rotary, int64_t micro_batch) {
  at::NoGradGuard no_grad;
  LinearObserver observer(block);
  const LinearFunction observe = observer.Observe();
  const size_t last = block.linears().size() - 1;
  const LinearFunction apply = [&](size_t index, const at::Tensor& input) {
    if (index < last) {
      return observe(index, input);
    }
    // No linear comes after this one, so its output would be computed for nothing.
    observer.Record(index, input);
    std::vector<int64_t> shape = input.sizes().vec();
    shape.back() = block.linears()[index].weight.size(0);
    return at::zeros({1}, input.options()).expand(shape);
  };
  for (int64_t begin = 0; begin < inputs.size(0); begin += micro_batch) {
    const int64_t count = std::min(micro_batch, inputs.size(0) - begin);
    block.Forward(inputs.narrow(0, begin, count), rotary, apply);
  }
  return observer.Finish();
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockInputObserver>> BlockInputObserver::Create(
    const DecoderModel& model, const at::Tensor& ids, int64_t micro_batch) {
  if (micro_batch < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a micro-batch of %d samples: it must be at least 1", micro_batch));
  }
  PTQ_ASSIGN_OR_RETURN(const at::Tensor hidden, model.Embed(ids));
  return CatchTorchErrors(
      "block inputs", [&]() -> absl::StatusOr<std::unique_ptr<BlockInputObserver>> {
        std::unique_ptr<BlockInputObserver> observer(new BlockInputObserver);
        observer->inputs_ = {hidden, hidden,
                             LastPositionMask(ids.size(0), ids.size(1), hidden.device())};
        observer->rotary_ = model.MakeRotaryTable(ids.size(1));
        observer->micro_batch_ = micro_batch;
        return observer;
      });
}

absl::StatusOr<ObservedBlock> BlockInputObserver::Observe(const DecoderBlock& block) {
  return CatchTorchErrors(block.name(), [&]() -> absl::StatusOr<ObservedBlock> {
    ObservedBlock observed;
    observed.block = &block;
    observed.rotary = &rotary_;
    observed.inputs = &inputs_;
    observed.micro_batch = micro_batch_;
    if (ChainsAreEqual()) {
      LinearObserver observer(block);
      observed.targets =
          RunBlock(block, inputs_.full_precision, rotary_, micro_batch_, observer.Observe());
      observed.statistics = observer.Finish();
    } else {
      observed.targets = RunBlock(block, inputs_.full_precision, rotary_, micro_batch_);
      observed.statistics = ObserveLinears(block, inputs_.quantized, rotary_, micro_batch_);
    }
    return observed;
  });
}

absl::Status BlockInputObserver::Advance(const ObservedBlock& observed,
                                         const std::vector<at::Tensor>& quantized_weights) {
  const DecoderBlock& block = *observed.block;
  if (quantized_weights.size() != block.linears().size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d quantized weights were given for %d linear layers", block.name(),
                        quantized_weights.size(), block.linears().size()));
  }
  return CatchTorchErrors(block.name(), [&]() -> absl::Status {
    const bool unchanged = std::none_of(quantized_weights.begin(), quantized_weights.end(),
                                        [](const at::Tensor& weight) { return weight.defined(); });
    if (ChainsAreEqual() && unchanged) {
      inputs_.full_precision = observed.targets;
      inputs_.quantized = observed.targets;
      return absl::OkStatus();
    }
    inputs_.full_precision = observed.targets;
    std::vector<at::Tensor> weights;
    for (size_t index = 0; index < quantized_weights.size(); ++index) {
      const at::Tensor& own = block.linears()[index].weight;
      const at::Tensor& quantized = quantized_weights[index];
      weights.push_back(quantized.defined() ? quantized.to(own.options()) : own);
    }
    const LinearFunction apply = [&](size_t index, const at::Tensor& input) {
      return ApplyLinear(block.linears()[index], weights[index], input);
    };
    RunBlockInto(block, inputs_.quantized, rotary_, micro_batch_, apply, inputs_.quantized);
    return absl::OkStatus();
  });
}

}  // namespace ptq
