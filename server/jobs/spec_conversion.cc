#include "server/jobs/spec_conversion.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "proto/algorithm_field.h"
#include "server/errors/status_details.h"

namespace ptq {
namespace {

constexpr std::pair<const char*, const char*> kFieldPaths[] = {
    {"model", "spec.model"},
    {"calibration", "spec.calibration_dataset"},
    {"evaluation", "spec.evaluation_dataset"},
    {"algorithm", "spec.algorithm"},
    {"preset", "spec.preset"},
    {"scheme", "spec.scheme.name"},
    {"bits", "spec.scheme.bits"},
    {"group_size", "spec.scheme.group_size"},
    {"asymmetric", "spec.scheme.asymmetric"},
    {"scale_rule", "spec.rtn.scale_rule"},
    {"recipe", "spec.auto_round.recipe"},
    {"iterations", "spec.auto_round.iterations"},
    {"batch_size", "spec.auto_round.batch_size"},
    {"fisher_tokens", "spec.auto_round.fisher_tokens"},
    {"tuning_precision", "spec.auto_round.tuning_precision"},
    {"samples", "spec.calibration.samples"},
    {"sequence_length", "spec.calibration.sequence_length"},
    {"seed", "spec.seed"},
    {"device", "spec.resources.device"},
    {"low_memory", "spec.resources.low_memory"},
    {"evaluation_window", "spec.evaluation.window"},
    {"evaluation_samples", "spec.evaluation.samples"},
    {"format", "spec.output_formats"},
    {"rule", "spec.rules"},
    {"allow_split_fused_sets", "spec.allow_split_fused_sets"},
};

// The text that --rule would have had.
std::string RuleText(const v1::ModuleRule& rule) {
  if (rule.skip()) return rule.pattern() + ":skip";
  std::vector<std::string> settings;
  if (rule.has_bits()) settings.push_back(absl::StrCat("bits=", rule.bits()));
  if (rule.has_group_size()) settings.push_back(absl::StrCat("group_size=", rule.group_size()));
  if (rule.has_symmetric()) {
    settings.push_back(std::string("symmetric=") + (rule.symmetric() ? "true" : "false"));
  }
  if (!rule.scheme().empty()) settings.push_back("scheme=" + rule.scheme());
  return rule.pattern() + ":" + absl::StrJoin(settings, ",");
}

absl::Status ConvertAlgorithm(const v1::QuantizationSpec& spec, JobSpec& result) {
  if (spec.has_convert()) {
    result.task = Task::kConvert;
    return absl::OkStatus();
  }
  if (const std::string name = AlgorithmFieldName(spec); !name.empty()) {
    auto algorithm = ParseAlgorithm(name);
    if (!algorithm.ok()) return InvalidField("spec.algorithm", Message(algorithm.status()));
    result.algorithm = *algorithm;
  }
  if (!spec.rtn().scale_rule().empty()) {
    auto rule = ParseScaleRule(spec.rtn().scale_rule());
    if (!rule.ok()) return InvalidField("spec.rtn.scale_rule", Message(rule.status()));
    result.scale_rule = *rule;
  }
  const v1::AutoRound& tuning = spec.auto_round();
  if (!tuning.recipe().empty()) {
    auto recipe = ParseRecipe(tuning.recipe());
    if (!recipe.ok()) return InvalidField("spec.auto_round.recipe", Message(recipe.status()));
    result.recipe = *recipe;
  }
  if (tuning.has_iterations()) result.iterations = tuning.iterations();
  if (tuning.has_batch_size()) result.batch_size = tuning.batch_size();
  if (tuning.has_fisher_tokens()) result.fisher_tokens = tuning.fisher_tokens();
  if (!tuning.tuning_precision().empty()) {
    auto precision = ParsePrecision(tuning.tuning_precision());
    if (!precision.ok()) {
      return InvalidField("spec.auto_round.tuning_precision", Message(precision.status()));
    }
    result.tuning_precision = *precision;
  }
  return absl::OkStatus();
}

// A preset sets all of it.
absl::Status CheckSchemeBesidePreset(const v1::QuantizationSpec& spec) {
  const char* field = spec.scheme().has_bits()         ? "spec.scheme.bits"
                      : spec.scheme().has_group_size() ? "spec.scheme.group_size"
                      : spec.scheme().asymmetric()     ? "spec.scheme.asymmetric"
                      : !spec.scheme().name().empty()  ? "spec.scheme.name"
                                                       : nullptr;
  if (field == nullptr) return absl::OkStatus();
  return InvalidField(field, "spec.preset is given, which sets it; leave one of the two out");
}

// What the server keeps to itself and the worker never sees.
absl::Status CheckServerFields(const v1::QuantizationSpec& spec) {
  const int32_t attempts = spec.failure_policy().max_attempts();
  if (attempts < 0 || attempts > 100) {
    return InvalidField("spec.failure_policy.max_attempts",
                        absl::StrFormat("%d is not in 0..100", attempts));
  }
  if (!v1::CachePolicy_IsValid(spec.cache_policy())) {
    return InvalidField("spec.cache_policy", "is none of REUSE and SKIP_LOOKUP");
  }
  if (spec.has_max_run_duration() && spec.max_run_duration().seconds() <= 0) {
    return InvalidField("spec.max_run_duration", "must be at least a second");
  }
  if (spec.has_ttl_after_finished() && spec.ttl_after_finished().seconds() < 0) {
    return InvalidField("spec.ttl_after_finished", "must not be negative");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status AtSpecField(const absl::Status& status) {
  if (status.ok()) return status;
  const std::string message = Message(status);
  // The longest key that begins the message: "rule "pattern:x": ..." or "bits: ...".
  std::string path = "spec";
  size_t longest = 0;
  for (const auto& [key, field] : kFieldPaths) {
    const std::string name = key;
    const char after = message.size() > name.size() ? message[name.size()] : ':';
    if (name.size() > longest && message.compare(0, name.size(), name) == 0 &&
        (after == ':' || after == ' ')) {
      longest = name.size();
      path = field;
    }
  }
  return WithReason(AtField(status, path), "INVALID_SPEC");
}

absl::StatusOr<JobSpec> ToJobSpec(const v1::QuantizationSpec& spec) {
  JobSpec result;
  result.model = spec.model();
  result.calibration = spec.calibration_dataset();
  result.evaluation = spec.evaluation_dataset();
  PTQ_RETURN_IF_ERROR(ConvertAlgorithm(spec, result));
  if (!spec.preset().empty()) {
    PTQ_RETURN_IF_ERROR(CheckSchemeBesidePreset(spec));
    PTQ_RETURN_IF_ERROR(AtSpecField(UsePreset(spec.preset(), &result)));
  }
  if (!spec.scheme().name().empty()) {
    PTQ_RETURN_IF_ERROR(AtSpecField(UseScheme(spec.scheme().name(), &result)));
  }
  if (spec.scheme().has_bits()) result.bits = spec.scheme().bits();
  if (spec.scheme().has_group_size()) result.group_size = spec.scheme().group_size();
  if (spec.scheme().asymmetric()) result.asymmetric = true;
  for (const v1::ModuleRule& rule : spec.rules()) result.rule.push_back(RuleText(rule));
  result.allow_split_fused_sets = spec.allow_split_fused_sets();
  if (spec.output_formats_size() > 0) {
    auto formats = ParseOutputFormats({spec.output_formats().begin(), spec.output_formats().end()});
    if (!formats.ok()) return InvalidField("spec.output_formats", Message(formats.status()));
    result.format = *std::move(formats);
  }
  if (spec.has_seed()) result.seed = spec.seed();
  if (!spec.resources().device().empty()) {
    auto device = ParseDevice(spec.resources().device());
    if (!device.ok()) return InvalidField("spec.resources.device", Message(device.status()));
    result.device = *device;
  }
  if (!spec.resources().low_memory().empty()) {
    auto low_memory = ParseLowMemory(spec.resources().low_memory());
    if (!low_memory.ok()) {
      return InvalidField("spec.resources.low_memory", Message(low_memory.status()));
    }
    result.low_memory = *low_memory;
  }
  if (spec.calibration().has_samples()) result.samples = spec.calibration().samples();
  if (spec.calibration().has_sequence_length()) {
    result.sequence_length = spec.calibration().sequence_length();
  }
  if (spec.evaluation().has_window()) result.evaluation_window = spec.evaluation().window();
  if (spec.evaluation().has_samples()) result.evaluation_samples = spec.evaluation().samples();
  PTQ_RETURN_IF_ERROR(CheckServerFields(spec));
  PTQ_RETURN_IF_ERROR(AtSpecField(ValidateJobSpec(result)));
  return result;
}

}  // namespace ptq
