#include "worker/job_plan.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "algorithms/auto_round/fp8.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/checkpoint_format.h"
#include "worker/device.h"

namespace ptq {
namespace {

// `field` is "calibration" or "evaluation", `length` the windows that will be cut.
absl::Status CheckDataset(const std::string& field, const std::string& path, int64_t length,
                          const CheckpointInspection& model) {
  if (path.empty()) return absl::OkStatus();
  const auto inspection = InspectDataset(path, BaseName(path));
  if (!inspection.ok()) return Annotate(inspection.status(), field);
  if (inspection->kind == DatasetKind::kTokens) {
    if (inspection->token_length < length) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: input_ids has rows of %d tokens, but windows of %d are asked for",
                          field, inspection->token_length, length));
    }
  } else if (!model.has_tokenizer) {
    return absl::InvalidArgumentError(
        field +
        ": the model has no tokenizer.json to tokenize text with: pass a .safetensors file with "
        "input_ids");
  }
  return absl::OkStatus();
}

// The records of a job carry one original dtype, and so does the arithmetic of its scales.
absl::StatusOr<at::ScalarType> LinearDtype(const CheckpointInspection& inspection,
                                           const std::vector<EffectiveScheme>& schemes) {
  const CheckpointTensor* first = nullptr;
  for (const EffectiveScheme& scheme : schemes) {
    if (!scheme.scheme) continue;
    const CheckpointTensor* tensor = inspection.index.Find(scheme.module + ".weight");
    if (tensor == nullptr) {
      return absl::InternalError("the checkpoint lost its tensor " + scheme.module + ".weight");
    }
    if (first == nullptr) first = tensor;
    if (tensor->info.dtype != first->info.dtype) {
      return absl::UnimplementedError(absl::StrFormat(
          "%s is %s but %s is %s: convert the checkpoint's linear weights to one dtype",
          first->info.name, DTypeName(first->info.dtype), tensor->info.name,
          DTypeName(tensor->info.dtype)));
    }
  }
  if (first == nullptr) {
    return absl::InternalError("no layer is left to quantize");  // ResolveSchemes refuses that
  }
  return ToScalarType(first->info.dtype);
}

}  // namespace

ExportPlan JobPlan::MakeExportPlan() const {
  ExportPlan plan;
  plan.source = inspection;
  plan.default_scheme = spec.DefaultScheme();
  const DType original = FromScalarType(stored_dtype);
  for (const EffectiveScheme& scheme : schemes) {
    if (scheme.scheme) {
      plan.modules.push_back(
          {scheme.module, scheme.out_features, scheme.in_features, *scheme.scheme, original,
           ScaleDTypeOf(scheme.scheme->scale_rule, original), scheme.transposed, scheme.place});
    } else {
      plan.skipped.push_back(scheme.module);
    }
  }
  return plan;
}

const EffectiveScheme* JobPlan::OutsideOfBlocks(bool head) const {
  for (const EffectiveScheme& scheme : schemes) {
    if (scheme.place == ModulePlace::kBlock || !scheme.scheme) continue;
    if (head == (scheme.place == ModulePlace::kHead)) return &scheme;
  }
  return nullptr;
}

std::string JobPlan::TuningPrecisionLabel() const {
  if (tuning_precision == TuningPrecision::kFp8) return PrecisionName(PrecisionChoice::kFp8);
  return compute.dtype == at::kBFloat16 ? PrecisionName(PrecisionChoice::kBf16)
                                        : DtypeLabel(compute.dtype);
}

bool LearnsScales(const JobSpec& spec) {
  return spec.algorithm == Algorithm::kAutoRound && spec.recipe != TuningRecipe::kPaper;
}

int64_t HeldOutWindows(const JobSpec& spec) {
  return LearnsScales(spec) ? (spec.samples + 9) / 10 : 0;
}

int64_t FisherWindows(const JobSpec& spec, int64_t width) {
  if (!LearnsScales(spec) || spec.fisher_tokens == 0) return 0;
  const int64_t tokens =
      spec.fisher_tokens > 0 ? spec.fisher_tokens : std::max<int64_t>(16384, 16 * width);
  return std::min(spec.samples, (tokens + spec.sequence_length - 1) / spec.sequence_length);
}

absl::StatusOr<TuningPrecision> ResolveTuningPrecision(const JobSpec& spec,
                                                       const ComputeOptions& compute,
                                                       bool fp8_products) {
  const bool bfloat16 = compute.dtype == at::kBFloat16;
  switch (spec.tuning_precision) {
    case PrecisionChoice::kAuto:
      return spec.algorithm == Algorithm::kAutoRound && spec.recipe != TuningRecipe::kPaper &&
                     bfloat16 && fp8_products
                 ? TuningPrecision::kFp8
                 : TuningPrecision::kComputeDtype;
    case PrecisionChoice::kBf16:
      return TuningPrecision::kComputeDtype;
    case PrecisionChoice::kFp8:
      break;
  }
  if (!fp8_products) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "tuning_precision: fp8 needs a GPU of compute capability 9.0 (H100, H200), and %s is none; "
        "choose auto or bf16, or run the job on such a GPU",
        DeviceLabel(compute.device)));
  }
  if (!bfloat16) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "tuning_precision: fp8 needs a bfloat16 model, and this one is %s; choose auto, or convert "
        "the checkpoint to bfloat16",
        DtypeLabel(compute.dtype)));
  }
  return TuningPrecision::kFp8;
}

absl::StatusOr<JobPlan> PlanJob(const JobSpec& spec) {
  PTQ_RETURN_IF_ERROR(ValidateJobSpec(spec));
  JobPlan plan;
  plan.spec = spec;
  // What a recipe implies and what says the same in numbers is one job.
  if (spec.algorithm == Algorithm::kAutoRound) plan.spec.iterations = spec.EffectiveIterations();
  auto inspection = InspectCheckpoint(spec.model);
  if (!inspection.ok()) return Annotate(inspection.status(), "model");
  plan.inspection = *std::move(inspection);
  plan.warnings = plan.inspection.warnings;
  PTQ_RETURN_IF_ERROR(
      CheckDataset("calibration", spec.calibration, spec.sequence_length, plan.inspection));
  PTQ_RETURN_IF_ERROR(CheckDataset("evaluation", spec.evaluation, spec.EffectiveEvaluationWindow(),
                                   plan.inspection));
  const ModelConfig& config = plan.inspection.config;
  PTQ_ASSIGN_OR_RETURN(plan.schemes, ResolveSchemes(spec, BuildTensorTable(config)));
  PTQ_RETURN_IF_ERROR(CheckLoadersTake(spec, plan.schemes, &plan.warnings));
  PTQ_ASSIGN_OR_RETURN(plan.stored_dtype, LinearDtype(plan.inspection, plan.schemes));
  for (const std::string& name : spec.format) {
    const CheckpointFormat* format = FindCheckpointFormat(name);
    if (format == nullptr) return absl::InternalError("there is no format " + name);
    PTQ_RETURN_IF_ERROR(format->CheckPlan(plan.MakeExportPlan()));
  }
  PTQ_ASSIGN_OR_RETURN(plan.compute.device, SelectDevice(spec.device));
  plan.compute.dtype = ChooseComputeDtype(plan.compute.device, plan.stored_dtype);
  PTQ_ASSIGN_OR_RETURN(plan.tuning_precision,
                       ResolveTuningPrecision(spec, plan.compute,
                                              plan.compute.device.is_cuda() && HasFp8Products()));
  const int64_t longest = std::max(spec.calibration.empty() ? 0 : spec.sequence_length,
                                   spec.evaluation.empty() ? 0 : spec.EffectiveEvaluationWindow());
  const bool too_long = longest > config.max_position_embeddings;
  if (too_long && config.position_offset) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "sequence_length: windows of %d tokens are longer than the %d positions that the model has "
        "learned; choose sequence_length and evaluation_window up to that",
        longest, config.max_position_embeddings));
  }
  if (config.max_position_embeddings > 0 && too_long) {
    plan.warnings.push_back(
        absl::StrFormat("Windows of %d tokens are longer than the model's max_position_embeddings "
                        "of %d.",
                        longest, config.max_position_embeddings));
  }
  return plan;
}

}  // namespace ptq
