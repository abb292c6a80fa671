#include "algorithms/auto_round/auto_round.h"

#include <ATen/ops/ones.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "algorithms/auto_round/block_tuner.h"
#include "algorithms/cuda/cuda_runtime.h"
#include "algorithms/layer_check.h"
#include "algorithms/rtn/opt_rtn.h"
#include "algorithms/rtn/rtn.h"
#include "algorithms/rtn/scale_search.h"
#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

// On CUDA the host waits for earlier steps after so many: cancelling takes no longer than twice
// that.
constexpr int64_t kQueuedSteps = 8;
constexpr const char* kNoLossRtn = "the loss was not a number in any step: rtn";
constexpr const char* kNoLossOptRtn = "the loss was not a number in the last step: opt-rtn";

absl::Status CheckOptions(const AutoRoundOptions& options) {
  if (options.iterations < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("iterations must be 0 or more, not ", options.iterations));
  }
  if (options.batch_size < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("batch_size must be 1 or more, not ", options.batch_size));
  }
  if (options.micro_batch < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("micro_batch must be 0 (the batch) or more, not ", options.micro_batch));
  }
  if (!(options.learning_rate >= 0) || !(options.range_learning_rate >= 0)) {
    return absl::InvalidArgumentError("learning rates must be 0 (automatic) or more");
  }
  return absl::OkStatus();
}

absl::Status CheckInputs(const ObservedBlock& observed) {
  const std::string& block = observed.block->name();
  if (observed.inputs == nullptr || !observed.inputs->quantized.defined() ||
      observed.inputs->quantized.numel() == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(block, ": Auto-Round needs calibration data; only rtn works without"));
  }
  const at::Tensor& inputs = observed.inputs->quantized;
  if (inputs.dim() != 3 || !observed.targets.defined() ||
      observed.targets.sizes() != inputs.sizes() ||
      observed.targets.scalar_type() != inputs.scalar_type() ||
      !observed.inputs->token_mask.defined() ||
      observed.inputs->token_mask.sizes() != inputs.sizes().slice(0, 2)) {
    return absl::InternalError(
        absl::StrCat(block, ": inputs, targets and mask of the calibration do not match"));
  }
  return absl::OkStatus();
}

// What a recipe begins with, and what a layer gets that it cannot tune.
class Start {
 public:
  static absl::StatusOr<Start> Make(const BlockQuantizationRequest& request,
                                    at::ScalarType stored_dtype, AutoRoundMethod method) {
    Start start(request, stored_dtype);
    if (method == AutoRoundMethod::kPaper) return start;
    const std::vector<Linear>& linears = request.observed.block->linears();
    const auto began = std::chrono::steady_clock::now();
    for (size_t i = 0; i < linears.size(); ++i) {
      if (!request.schemes[i].has_value()) continue;
      PTQ_ASSIGN_OR_RETURN(
          start.scales_[i],
          SearchScales(linears[i].weight, Importance(request.observed.statistics[i], linears[i]),
                       *request.schemes[i], request.cancel));
    }
    start.seconds_ =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    return start;
  }

  // By linear index; none in the paper's recipe.
  const std::vector<std::optional<QParams>>& scales() const { return scales_; }
  double seconds() const { return seconds_; }

  QuantizedLinear Quantize(size_t index, const std::string& reason) const {
    const at::Tensor& weight = request_.observed.block->linears()[index].weight;
    const QuantizationScheme& scheme = *request_.schemes[index];
    if (!scales_[index].has_value()) {
      return {QuantizeRtn(weight, stored_dtype_, scheme), reason};
    }
    return {QuantizeToScales(weight, *scales_[index], stored_dtype_, scheme), reason};
  }

  QuantizedBlock QuantizeAll(const std::string& reason) const {
    QuantizedBlock result;
    result.linears.resize(scales_.size());
    for (size_t i = 0; i < scales_.size(); ++i) {
      if (request_.schemes[i].has_value()) result.linears[i] = Quantize(i, reason);
    }
    result.search_seconds = seconds_;
    return result;
  }

 private:
  Start(const BlockQuantizationRequest& request, at::ScalarType stored_dtype)
      : request_(request),
        stored_dtype_(stored_dtype),
        scales_(request.observed.block->linears().size()) {}

  // Without a token all columns count alike.
  static at::Tensor Importance(const LinearStatistics& statistics, const Linear& linear) {
    return statistics.tokens > 0 ? statistics.importance
                                 : at::ones({linear.weight.size(1)}, linear.weight.options());
  }

  const BlockQuantizationRequest& request_;
  at::ScalarType stored_dtype_;
  std::vector<std::optional<QParams>> scales_;
  double seconds_ = 0;
};

// A layer of a tuned block that was not tuned: no token reached it, or (learned scale) few.
absl::StatusOr<QuantizedLinear> QuantizeUntuned(const BlockQuantizationRequest& request,
                                                size_t index, at::ScalarType stored_dtype,
                                                const Start& start) {
  const auto& statistics = request.observed.statistics;
  if (start.scales()[index].has_value() && statistics[index].tokens > 0) {
    return start.Quantize(index, absl::StrCat("fewer than ", kLeastTokens,
                                              " calibration tokens reached this layer: opt-rtn"));
  }
  return QuantizeUnreached(request.observed.block->linears()[index].weight, stored_dtype,
                           *request.schemes[index], request.cancel);
}

absl::StatusOr<QuantizedBlock> Tune(const BlockQuantizationRequest& request,
                                    at::ScalarType stored_dtype, const AutoRoundOptions& options,
                                    TuningStream* stream) {
  PTQ_ASSIGN_OR_RETURN(const Start start, Start::Make(request, stored_dtype, options.method));
  const bool paper = options.method == AutoRoundMethod::kPaper;
  if (options.iterations == 0) return start.QuantizeAll("");
  bool any = paper;
  for (size_t i = 0; !any && i < request.schemes.size(); ++i) {
    any = request.schemes[i].has_value() && !HasFewTokens(request.observed, i);
  }
  QuantizedBlock result;
  result.linears.resize(request.observed.block->linears().size());
  std::vector<std::optional<AffineQuantizedTensor>> records(result.linears.size());
  if (any) {
    BlockTuner tuner(request, stored_dtype, options, start.scales(), stream);
    while (tuner.steps() < options.iterations) {
      PTQ_RETURN_IF_ERROR(request.cancel.Check());
      tuner.Step();
      if (tuner.steps() % kQueuedSteps == 0) tuner.WaitForEarlierSteps();
      if (request.progress) {
        request.progress(static_cast<double>(tuner.steps()) /
                         static_cast<double>(options.iterations));
      }
    }
    std::vector<float> curve = tuner.LossCurve();
    result.step_seconds = tuner.StepSeconds();
    result.tuning_path = tuner.Path();
    if (tuner.KeptStep() < 0) {
      result = start.QuantizeAll(paper ? kNoLossRtn : kNoLossOptRtn);
      result.loss_curve = std::move(curve);
      return result;
    }
    records = tuner.Records();
    if (!std::isnan(curve.front())) {
      result.loss_first = curve.front();
    }
    for (const float loss : curve) {
      if (!std::isnan(loss)) {
        result.loss_best = std::min<double>(result.loss_best.value_or(loss), loss);
      }
    }
    result.loss_curve = std::move(curve);
  }
  result.search_seconds = start.seconds();
  for (size_t i = 0; i < records.size(); ++i) {
    if (records[i].has_value()) {
      result.linears[i] = QuantizedLinear{*std::move(records[i]), ""};
    } else if (request.schemes[i].has_value()) {
      PTQ_ASSIGN_OR_RETURN(result.linears[i], QuantizeUntuned(request, i, stored_dtype, start));
    }
  }
  return result;
}

}  // namespace

bool HasFewTokens(const ObservedBlock& observed, size_t index) {
  const at::IntArrayRef shape = observed.inputs->token_mask.sizes();
  return observed.statistics[index].tokens < std::min(kLeastTokens, shape[0] * shape[1]);
}

double FisherWeight(int64_t tokens, int64_t width) {
  return tokens < kFisherTokensPerChannel * width ? kSparseFisherWeight : kFisherWeight;
}

absl::StatusOr<QuantizedBlock> AutoRoundBlockQuantizer::QuantizeBlock(
    const BlockQuantizationRequest& request) {
  PTQ_RETURN_IF_ERROR(CheckOptions(options_));
  const std::vector<Linear>& linears = request.observed.block->linears();
  if (options_.iterations > 0) PTQ_RETURN_IF_ERROR(CheckInputs(request.observed));
  if (options_.method == AutoRoundMethod::kLearnedScale) {
    PTQ_RETURN_IF_ERROR(CheckStatistics(request.observed, "auto-round"));
  }
  return CatchTorchErrors(request.observed.block->name(), [&]() -> absl::StatusOr<QuantizedBlock> {
    bool any = false;
    for (size_t i = 0; i < linears.size(); ++i) {
      if (!request.schemes[i].has_value()) {
        continue;
      }
      any = true;
      PTQ_RETURN_IF_ERROR(CheckLayer(linears[i], *request.schemes[i]));
      if (request.schemes[i]->scale_rule != ScaleRule::kFullRange) {
        return absl::InvalidArgumentError(absl::StrCat(
            linears[i].module, ": torchao's scale rule is for rtn, not for Auto-Round"));
      }
    }
    if (!any) {
      QuantizedBlock nothing;
      nothing.linears.resize(linears.size());
      return nothing;
    }
    const at::Device device = linears.front().weight.device();
    if (device.is_cuda() && stream_ == nullptr && options_.iterations > 0) {
      stream_ = std::make_unique<TuningStream>(device);
    }
    absl::StatusOr<QuantizedBlock> result = Tune(request, stored_dtype_, options_, stream_.get());
    // What it caches would be missed by the chains on a device that is not twice as large.
    if (stream_ != nullptr && CudaPeakMemoryBytes() > CudaDeviceMemoryBytes() / 2) {
      stream_->ReleaseMemory();
    }
    return result;
  });
}

}  // namespace ptq
