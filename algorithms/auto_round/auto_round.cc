#include "algorithms/auto_round/auto_round.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "algorithms/auto_round/block_tuner.h"
#include "algorithms/layer_check.h"
#include "algorithms/rtn/rtn.h"
#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

// Steps that may be queued on a CUDA device before the host waits: cancelling takes no longer.
constexpr int64_t kQueuedSteps = 8;
constexpr const char* kUnused = "no calibration token reached the layer: rtn";
constexpr const char* kNoLoss = "the loss was not a number in any step: rtn";

absl::Status CheckOptions(const AutoRoundOptions& options) {
  if (options.iterations < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("iterations must be 0 or more, not ", options.iterations));
  }
  if (options.batch_size < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("batch_size must be 1 or more, not ", options.batch_size));
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

absl::StatusOr<QuantizedBlock> QuantizeAllByRtn(const BlockQuantizationRequest& request,
                                                at::ScalarType stored_dtype,
                                                const std::string& reason) {
  RtnBlockQuantizer rtn(stored_dtype);
  PTQ_ASSIGN_OR_RETURN(QuantizedBlock result, rtn.QuantizeBlock(request));
  for (std::optional<QuantizedLinear>& linear : result.linears) {
    if (linear.has_value()) {
      linear->fallback_reason = reason;
    }
  }
  return result;
}

absl::StatusOr<QuantizedBlock> Tune(const BlockQuantizationRequest& request,
                                    at::ScalarType stored_dtype, const AutoRoundOptions& options) {
  BlockTuner tuner(request, stored_dtype, options);
  const bool queues = request.observed.inputs->quantized.is_cuda();
  while (tuner.steps() < options.iterations) {
    PTQ_RETURN_IF_ERROR(request.cancel.Check());
    tuner.Step();
    if (!queues || tuner.steps() % kQueuedSteps == 0) {
      const float loss = tuner.LossCurve().back();
      if (request.progress) {
        request.progress(
            static_cast<double>(tuner.steps()) / static_cast<double>(options.iterations),
            std::isnan(loss) ? std::nullopt : std::optional<double>(loss));
      }
    }
  }
  std::vector<float> curve = tuner.LossCurve();
  const int64_t best = tuner.BestStep();
  QuantizedBlock result;
  if (best < 0) {
    PTQ_ASSIGN_OR_RETURN(result, QuantizeAllByRtn(request, stored_dtype, kNoLoss));
    result.loss_curve = std::move(curve);
    return result;
  }
  result.linears.resize(request.observed.block->linears().size());
  std::vector<std::optional<AffineQuantizedTensor>> records = tuner.BestRecords();
  for (size_t i = 0; i < records.size(); ++i) {
    if (records[i].has_value()) {
      result.linears[i] = QuantizedLinear{*std::move(records[i]), ""};
    } else if (request.schemes[i].has_value()) {
      const at::Tensor& weight = request.observed.block->linears()[i].weight;
      result.linears[i] =
          QuantizedLinear{QuantizeRtn(weight, stored_dtype, *request.schemes[i]), kUnused};
    }
  }
  if (!std::isnan(curve.front())) {
    result.loss_first = curve.front();
  }
  result.loss_best = curve[static_cast<size_t>(best)];
  result.loss_curve = std::move(curve);
  return result;
}

}  // namespace

absl::StatusOr<QuantizedBlock> AutoRoundBlockQuantizer::QuantizeBlock(
    const BlockQuantizationRequest& request) {
  PTQ_RETURN_IF_ERROR(CheckOptions(options_));
  const std::vector<Linear>& linears = request.observed.block->linears();
  if (options_.iterations == 0) {
    return QuantizeAllByRtn(request, stored_dtype_, "");
  }
  PTQ_RETURN_IF_ERROR(CheckInputs(request.observed));
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
    return Tune(request, stored_dtype_, options_);
  });
}

}  // namespace ptq
