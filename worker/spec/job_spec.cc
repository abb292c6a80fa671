#include "worker/spec/job_spec.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/quote.h"
#include "worker/spec/presets.h"
#include "worker/spec/scheme_rules.h"

namespace ptq {
namespace {

// Far above what any job needs: they keep sizes and products within 64 bits.
constexpr int64_t kMaxGroupSize = 1 << 20;
constexpr int64_t kMaxIterations = 1'000'000;
constexpr int64_t kMaxBatchSize = 1 << 16;
constexpr int64_t kMaxWindows = 1 << 24;
constexpr int64_t kMaxWindowLength = 1 << 20;
constexpr int64_t kMaxCalibrationTokens = int64_t{1} << 36;
constexpr size_t kMaxRules = 10'000;

template <typename Enum, size_t N>
absl::StatusOr<Enum> ParseName(const std::array<const char*, N>& names, const std::string& name) {
  for (size_t i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<Enum>(i);
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is none of %s", Quote(name), absl::StrJoin(names, ", ")));
}

absl::Status CheckRange(const char* field, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: %d is not in %d..%d", field, value, least, most));
}

absl::Status WrongType(const std::string& key, const char* expected) {
  return absl::InvalidArgumentError(key + ": must be " + expected);
}

// Each overload moves a JSON value into a field of the spec.
absl::Status Assign(const std::string& key, const Json& value, std::string* field) {
  if (!value.is_string()) return WrongType(key, "a string");
  *field = value.get<std::string>();
  return absl::OkStatus();
}

absl::Status Assign(const std::string& key, const Json& value, bool* field) {
  if (!value.is_boolean()) return WrongType(key, "true or false");
  *field = value.get<bool>();
  return absl::OkStatus();
}

absl::Status Assign(const std::string& key, const Json& value, int64_t* field) {
  if (!value.is_number_integer() ||
      (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))) {
    return WrongType(key, "an integer");
  }
  *field = value.get<int64_t>();
  return absl::OkStatus();
}

absl::Status Assign(const std::string& key, const Json& value, int* field) {
  int64_t wide = 0;
  PTQ_RETURN_IF_ERROR(Assign(key, value, &wide));
  PTQ_RETURN_IF_ERROR(CheckRange(key.c_str(), wide, INT32_MIN, INT32_MAX));
  *field = static_cast<int>(wide);
  return absl::OkStatus();
}

absl::Status Assign(const std::string& key, const Json& value, uint64_t* field) {
  // A Json made in code holds small positive integers as signed ones.
  if (!value.is_number_integer() || (!value.is_number_unsigned() && value.get<int64_t>() < 0)) {
    return WrongType(key, "an integer in 0..2^64-1");
  }
  *field = value.get<uint64_t>();
  return absl::OkStatus();
}

absl::Status Assign(const std::string& key, const Json& value, std::vector<std::string>* field) {
  if (!value.is_array()) return WrongType(key, "an array of strings");
  field->clear();
  for (const Json& item : value) {
    if (!item.is_string()) return WrongType(key, "an array of strings");
    field->push_back(item.get<std::string>());
  }
  return absl::OkStatus();
}

template <typename Enum>
absl::Status AssignName(const std::string& key, const Json& value,
                        absl::StatusOr<Enum> (*parse)(const std::string&), Enum* field) {
  std::string name;
  PTQ_RETURN_IF_ERROR(Assign(key, value, &name));
  const auto parsed = parse(name);
  if (!parsed.ok()) return Annotate(parsed.status(), key);
  *field = *parsed;
  return absl::OkStatus();
}

absl::Status AssignScheme(const std::string& key, const Json& value, KQuant* field) {
  std::string name;
  PTQ_RETURN_IF_ERROR(Assign(key, value, &name));
  *field = KQuant::kNone;
  return name.empty() ? absl::OkStatus() : AssignName(key, value, ParseKQuant, field);
}

absl::Status AssignFormats(const std::string& key, const Json& value,
                           std::vector<std::string>* field) {
  std::vector<std::string> names;
  if (value.is_string()) {
    names = absl::StrSplit(value.get<std::string>(), ',');
  } else {
    PTQ_RETURN_IF_ERROR(Assign(key, value, &names));
  }
  auto formats = ParseOutputFormats(names);
  if (!formats.ok()) return Annotate(formats.status(), key);
  *field = *std::move(formats);
  return absl::OkStatus();
}

absl::Status AssignKey(const std::string& key, const Json& value, JobSpec* spec) {
  if (key == "task") return AssignName(key, value, ParseTask, &spec->task);
  if (key == "model") return Assign(key, value, &spec->model);
  if (key == "calibration") return Assign(key, value, &spec->calibration);
  if (key == "evaluation") return Assign(key, value, &spec->evaluation);
  if (key == "algorithm") return AssignName(key, value, ParseAlgorithm, &spec->algorithm);
  if (key == "preset") return Assign(key, value, &spec->preset);
  if (key == "scheme") return AssignScheme(key, value, &spec->scheme);
  if (key == "bits") return Assign(key, value, &spec->bits);
  if (key == "group_size") return Assign(key, value, &spec->group_size);
  if (key == "asymmetric") return Assign(key, value, &spec->asymmetric);
  if (key == "scale_rule") return AssignName(key, value, ParseScaleRule, &spec->scale_rule);
  if (key == "recipe") return AssignName(key, value, ParseRecipe, &spec->recipe);
  if (key == "iterations") return Assign(key, value, &spec->iterations);
  if (key == "batch_size") return Assign(key, value, &spec->batch_size);
  if (key == "fisher_tokens") return Assign(key, value, &spec->fisher_tokens);
  if (key == "tuning_precision") {
    return AssignName(key, value, ParsePrecision, &spec->tuning_precision);
  }
  if (key == "samples") return Assign(key, value, &spec->samples);
  if (key == "sequence_length") return Assign(key, value, &spec->sequence_length);
  if (key == "seed") return Assign(key, value, &spec->seed);
  if (key == "device") return AssignName(key, value, ParseDevice, &spec->device);
  if (key == "low_memory") return AssignName(key, value, ParseLowMemory, &spec->low_memory);
  if (key == "evaluation_window") return Assign(key, value, &spec->evaluation_window);
  if (key == "evaluation_samples") return Assign(key, value, &spec->evaluation_samples);
  if (key == "format") return AssignFormats(key, value, &spec->format);
  if (key == "rule") return Assign(key, value, &spec->rule);
  if (key == "allow_split_fused_sets") return Assign(key, value, &spec->allow_split_fused_sets);
  return absl::InvalidArgumentError("unknown key " + Quote(key));
}

// Whether a name sets bits, group_size and asymmetric.
bool IsNamed(const JobSpec& spec) { return !spec.preset.empty() || spec.scheme != KQuant::kNone; }

// A spec with what the preset of `spec`, or else its scheme, sets.
absl::StatusOr<JobSpec> NamedSpec(const JobSpec& spec) {
  JobSpec named;
  PTQ_RETURN_IF_ERROR(spec.preset.empty() ? UseScheme(KQuantName(spec.scheme), &named)
                                          : UsePreset(spec.preset, &named));
  return named;
}

// What a preset or a scheme sets is not set otherwise.
absl::Status CheckNamed(const JobSpec& spec) {
  if (!IsNamed(spec)) return absl::OkStatus();
  PTQ_ASSIGN_OR_RETURN(const JobSpec preset, NamedSpec(spec));
  const std::string name = spec.preset.empty() ? absl::StrCat("scheme ", KQuantName(spec.scheme))
                                               : absl::StrCat("preset ", spec.preset);
  const auto refuse = [&name](const char* field, const auto& value, const auto& own) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", value, " stands against ", name, ", which sets ", own,
                     "; leave one of the two out, or choose layers by rules"));
  };
  if (spec.scheme != preset.scheme) {
    const auto shown = [](KQuant scheme) {
      return scheme == KQuant::kNone ? "none" : KQuantName(scheme);
    };
    return refuse("scheme", shown(spec.scheme), shown(preset.scheme));
  }
  if (spec.bits != preset.bits) return refuse("bits", spec.bits, preset.bits);
  if (spec.group_size != preset.group_size) {
    return refuse("group_size", spec.group_size, preset.group_size);
  }
  if (spec.asymmetric != preset.asymmetric) {
    return refuse("asymmetric", spec.asymmetric ? "true" : "false",
                  preset.asymmetric ? "true" : "false");
  }
  return absl::OkStatus();
}

// All that a quantization is told.
Json QuantizationToJson(const JobSpec& spec) {
  Json json = Json::object();
  json["model"] = spec.model;
  json["calibration"] = spec.calibration;
  json["evaluation"] = spec.evaluation;
  json["algorithm"] = AlgorithmName(spec.algorithm);
  json["preset"] = spec.preset;
  json["scheme"] = KQuantName(spec.scheme);
  json["bits"] = spec.bits;
  json["group_size"] = spec.group_size;
  json["asymmetric"] = spec.asymmetric;
  json["scale_rule"] = ScaleRuleName(spec.scale_rule);
  json["recipe"] = RecipeName(spec.recipe);
  json["iterations"] = spec.iterations;
  json["batch_size"] = spec.batch_size;
  json["fisher_tokens"] = spec.fisher_tokens;
  json["tuning_precision"] = PrecisionName(spec.tuning_precision);
  json["samples"] = spec.samples;
  json["sequence_length"] = spec.sequence_length;
  json["seed"] = spec.seed;
  json["device"] = DeviceName(spec.device);
  json["low_memory"] = LowMemoryName(spec.low_memory);
  json["evaluation_window"] = spec.evaluation_window;
  json["evaluation_samples"] = spec.evaluation_samples;
  json["format"] = spec.format;
  json["rule"] = spec.rule;
  json["allow_split_fused_sets"] = spec.allow_split_fused_sets;
  return json;
}

// A conversion computes nothing: whatever is said about how to, is a mistake.
absl::Status CheckConversion(const JobSpec& spec) {
  const Json defaults = QuantizationToJson(JobSpec());
  const Json given = QuantizationToJson(spec);
  for (const auto& [key, value] : given.items()) {
    if (key == "model" || key == "format" || value == defaults[key]) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(key, ": ", DumpJson(value),
                     " goes with a quantization; a conversion takes a quantized model and formats, "
                     "so leave it out"));
  }
  return absl::OkStatus();
}

// The options of auto-round.
absl::Status CheckTuning(const JobSpec& spec) {
  PTQ_RETURN_IF_ERROR(CheckRange("iterations", spec.iterations, 0, kMaxIterations));
  PTQ_RETURN_IF_ERROR(CheckRange("batch_size", spec.batch_size, 1, kMaxBatchSize));
  const JobSpec defaults;
  if (spec.fisher_tokens != defaults.fisher_tokens &&
      (spec.fisher_tokens < 0 || spec.fisher_tokens > kMaxCalibrationTokens)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "fisher_tokens: %d is neither -1 (chosen by the model's width) nor in 0..%d",
        spec.fisher_tokens, kMaxCalibrationTokens));
  }
  if (spec.algorithm == Algorithm::kAutoRound) {
    if (spec.recipe == TuningRecipe::kPaper && spec.fisher_tokens != defaults.fisher_tokens) {
      return absl::InvalidArgumentError(
          "fisher_tokens: the paper's recipe has no Fisher metric; leave it out or choose recipe "
          "fast, default or best");
    }
    return absl::OkStatus();
  }
  const auto refuse = [&spec](const char* field, const auto& value) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ": ", value, " goes with algorithm auto-round alone, not with ",
        AlgorithmName(spec.algorithm), "; leave it out or choose algorithm auto-round"));
  };
  if (spec.recipe != defaults.recipe) return refuse("recipe", RecipeName(spec.recipe));
  if (spec.iterations != defaults.iterations) return refuse("iterations", spec.iterations);
  if (spec.batch_size != defaults.batch_size) return refuse("batch_size", spec.batch_size);
  if (spec.fisher_tokens != defaults.fisher_tokens) {
    return refuse("fisher_tokens", spec.fisher_tokens);
  }
  if (spec.tuning_precision != defaults.tuning_precision) {
    return refuse("tuning_precision", PrecisionName(spec.tuning_precision));
  }
  return absl::OkStatus();
}

// What K-quants do not go with.
absl::Status CheckKQuants(const JobSpec& spec, bool has_k_quants) {
  if (!has_k_quants) return absl::OkStatus();
  if (spec.algorithm == Algorithm::kAutoRound) {
    return absl::InvalidArgumentError(
        "scheme: auto-round tunes no K-quants; choose algorithm gptq, opt-rtn or rtn");
  }
  if (spec.scale_rule == ScaleRule::kTorchao) {
    return absl::InvalidArgumentError(
        "scheme: K-quants have scales of their own, not by torchao's rule; leave scale_rule out");
  }
  return absl::OkStatus();
}

// The rules by themselves, and beside the spec's scheme.
absl::Status CheckRules(const JobSpec& spec) {
  if (spec.rule.size() > kMaxRules) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rule: %d rules; at most %d are accepted", spec.rule.size(), kMaxRules));
  }
  bool has_k_quants = spec.scheme != KQuant::kNone;
  for (const std::string& text : spec.rule) {
    PTQ_ASSIGN_OR_RETURN(const SchemeRule rule, ParseSchemeRule(text));
    has_k_quants = has_k_quants || rule.k_quant != KQuant::kNone;
    const bool partial = rule.bits || rule.group_size || rule.symmetric;
    if (spec.scheme != KQuant::kNone && partial && !(rule.bits && rule.group_size)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "rule ", Quote(text), ": beside ", KQuantName(spec.scheme),
          ", whose bits and groups go together, a rule names both bits= and group_size=, or "
          "scheme="));
    }
  }
  return CheckKQuants(spec, has_k_quants);
}

}  // namespace

const char* AlgorithmName(Algorithm algorithm) {
  return kAlgorithmNames[static_cast<size_t>(algorithm)];
}
const char* DeviceName(DeviceChoice device) { return kDeviceNames[static_cast<size_t>(device)]; }
const char* LowMemoryName(LowMemory choice) { return kLowMemoryNames[static_cast<size_t>(choice)]; }
const char* PrecisionName(PrecisionChoice precision) {
  return kPrecisionNames[static_cast<size_t>(precision)];
}
const char* RecipeName(TuningRecipe recipe) { return kRecipeNames[static_cast<size_t>(recipe)]; }
const char* ScaleRuleName(ScaleRule rule) { return kScaleRuleNames[static_cast<size_t>(rule)]; }
const char* TaskName(Task task) { return kTaskNames[static_cast<size_t>(task)]; }

absl::StatusOr<Algorithm> ParseAlgorithm(const std::string& name) {
  return ParseName<Algorithm>(kAlgorithmNames, name);
}
absl::StatusOr<DeviceChoice> ParseDevice(const std::string& name) {
  return ParseName<DeviceChoice>(kDeviceNames, name);
}
absl::StatusOr<LowMemory> ParseLowMemory(const std::string& name) {
  return ParseName<LowMemory>(kLowMemoryNames, name);
}
absl::StatusOr<KQuant> ParseKQuant(const std::string& name) {
  const auto found =
      std::find_if(kKQuantNames.begin(), kKQuantNames.end(),
                   [&name](const char* one) { return absl::EqualsIgnoreCase(name, one); });
  if (found != kKQuantNames.end()) return static_cast<KQuant>(found - kKQuantNames.begin() + 1);
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is none of %s; other schemes are bits, group_size and symmetry",
                      Quote(name), absl::StrJoin(kKQuantNames, ", ")));
}
absl::StatusOr<std::vector<std::string>> ParseOutputFormats(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (std::count(kOutputFormatNames.begin(), kOutputFormatNames.end(), name) == 0) {
      return absl::InvalidArgumentError(absl::StrFormat("%s is none of %s", Quote(name),
                                                        absl::StrJoin(kOutputFormatNames, ", ")));
    }
    if (std::count(names.begin(), names.end(), name) > 1) {
      return absl::InvalidArgumentError(name + " is named twice");
    }
  }
  if (names.empty()) return absl::InvalidArgumentError("name at least one format");
  std::vector<std::string> formats;
  for (const char* known : kOutputFormatNames) {
    if (std::count(names.begin(), names.end(), known) > 0) formats.push_back(known);
  }
  return formats;
}
absl::StatusOr<PrecisionChoice> ParsePrecision(const std::string& name) {
  return ParseName<PrecisionChoice>(kPrecisionNames, name);
}
absl::StatusOr<TuningRecipe> ParseRecipe(const std::string& name) {
  return ParseName<TuningRecipe>(kRecipeNames, name);
}
absl::StatusOr<ScaleRule> ParseScaleRule(const std::string& name) {
  return ParseName<ScaleRule>(kScaleRuleNames, name);
}
absl::StatusOr<Task> ParseTask(const std::string& name) {
  return ParseName<Task>(kTaskNames, name);
}

absl::Status UsePreset(const std::string& name, JobSpec* spec) {
  const auto preset = FindPreset(name);
  if (!preset.ok()) return Annotate(preset.status(), "preset");
  spec->preset = preset->name;
  spec->scheme = preset->scheme.k_quant;
  spec->bits = preset->scheme.bits;
  spec->group_size = preset->scheme.group_size;
  spec->asymmetric = !preset->scheme.symmetric;
  return absl::OkStatus();
}

absl::Status UseScheme(const std::string& name, JobSpec* spec) {
  const auto type = ParseKQuant(name);
  if (!type.ok()) return Annotate(type.status(), "scheme");
  const QuantizationScheme scheme = KQuantScheme(*type);
  spec->scheme = *type;
  spec->bits = scheme.bits;
  spec->group_size = scheme.group_size;
  spec->asymmetric = !scheme.symmetric;
  return absl::OkStatus();
}

Json JobSpecToJson(const JobSpec& spec) {
  if (spec.task == Task::kQuantize) return QuantizationToJson(spec);
  Json json = Json::object();
  json["task"] = TaskName(spec.task);
  json["model"] = spec.model;
  json["format"] = spec.format;
  return json;
}

absl::StatusOr<JobSpec> JobSpecFromJson(const Json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("the job spec is not a JSON object");
  JobSpec spec;
  for (const auto& [key, value] : json.items()) {
    PTQ_RETURN_IF_ERROR(AssignKey(key, value, &spec));
  }
  if (IsNamed(spec)) {
    PTQ_ASSIGN_OR_RETURN(const JobSpec preset, NamedSpec(spec));
    spec.preset = preset.preset;
    if (!json.contains("scheme")) spec.scheme = preset.scheme;
    if (!json.contains("bits")) spec.bits = preset.bits;
    if (!json.contains("group_size")) spec.group_size = preset.group_size;
    if (!json.contains("asymmetric")) spec.asymmetric = preset.asymmetric;
    PTQ_RETURN_IF_ERROR(CheckNamed(spec));
  }
  if (!json.contains("model")) {
    return absl::InvalidArgumentError("model: missing; name the checkpoint's folder");
  }
  return spec;
}

absl::StatusOr<JobSpec> ParseJobSpec(std::string_view text) {
  PTQ_ASSIGN_OR_RETURN(const Json json, ParseJson(text));
  return JobSpecFromJson(json);
}

absl::Status ValidateJobSpec(const JobSpec& spec) {
  if (spec.task == Task::kConvert) return CheckConversion(spec);
  PTQ_RETURN_IF_ERROR(CheckNamed(spec));
  PTQ_RETURN_IF_ERROR(CheckRange("bits", spec.bits, 2, 8));
  if (spec.group_size < QuantizationScheme::kPerChannel || spec.group_size > kMaxGroupSize) {
    return absl::InvalidArgumentError(
        absl::StrFormat("group_size: %d is neither -1 (channel), 0 (tensor) nor in 1..%d",
                        spec.group_size, kMaxGroupSize));
  }
  if (spec.scale_rule == ScaleRule::kTorchao && spec.algorithm != Algorithm::kRtn) {
    return absl::InvalidArgumentError(
        absl::StrFormat("scale_rule: torchao goes with algorithm rtn alone, not with %s",
                        AlgorithmName(spec.algorithm)));
  }
  PTQ_RETURN_IF_ERROR(CheckTuning(spec));
  PTQ_RETURN_IF_ERROR(CheckRange("samples", spec.samples, 1, kMaxWindows));
  PTQ_RETURN_IF_ERROR(CheckRange("sequence_length", spec.sequence_length, 1, kMaxWindowLength));
  if (spec.samples * spec.sequence_length > kMaxCalibrationTokens) {
    return absl::InvalidArgumentError(
        absl::StrFormat("samples: %d windows of %d tokens are more than %d tokens", spec.samples,
                        spec.sequence_length, kMaxCalibrationTokens));
  }
  PTQ_RETURN_IF_ERROR(CheckRange("evaluation_window", spec.evaluation_window, 0, kMaxWindowLength));
  if (!spec.evaluation.empty() && spec.EffectiveEvaluationWindow() == 1) {
    return absl::InvalidArgumentError(
        "evaluation_window: a window of 1 token has no position to score; use at least 2");
  }
  if (spec.evaluation_window == 1) {
    return absl::InvalidArgumentError(
        "evaluation_window: 1 leaves no position to score; use 0 (= sequence_length) or at least "
        "2");
  }
  PTQ_RETURN_IF_ERROR(CheckRange("evaluation_samples", spec.evaluation_samples, 0, kMaxWindows));
  if (spec.calibration.empty() && spec.algorithm != Algorithm::kRtn) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "calibration: missing; algorithm %s needs data, pass --calibration FILE (or "
        "choose --algorithm rtn)",
        AlgorithmName(spec.algorithm)));
  }
  return CheckRules(spec);
}

}  // namespace ptq
