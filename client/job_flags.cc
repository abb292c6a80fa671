#include "client/job_flags.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/resource_names.h"
#include "client/rpc_status.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "proto/algorithm_field.h"
#include "worker/spec/presets.h"
#include "worker/spec/scheme_rules.h"

namespace ptq {
namespace {

// A flag whose values have names: parsed by one of job_spec.h's functions, which say what is
// allowed.
template <typename T>
CLI::Option* AddChoice(CLI::App& command, const std::string& name, T& value,
                       absl::StatusOr<T> (*parse)(const std::string&), const char* (*print)(T),
                       const std::string& choices, const std::string& description) {
  CLI::Option* option = command.add_option_function<std::string>(
      name,
      [&value, parse, name](const std::string& text) {
        auto parsed = parse(text);
        if (!parsed.ok()) throw CLI::ValidationError(name, Message(parsed.status()));
        value = *parsed;
      },
      description);
  return option->type_name(choices)->default_str(print(value));
}

// "paper 200, fast 20, ...".
std::string RecipeIterations() {
  std::vector<std::string> recipes;
  for (size_t i = 0; i < kRecipeNames.size(); ++i) {
    recipes.push_back(absl::StrCat(kRecipeNames[i], " ", kRecipeIterations[i]));
  }
  return absl::StrJoin(recipes, ", ");
}

bool IsUuid(const std::string& text) {
  if (text.size() != 36) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? text[i] != '-' : !isxdigit(static_cast<unsigned char>(text[i]))) return false;
  }
  return true;
}

CLI::Option* AddFormatFlag(CLI::App& command, JobSpec& spec, const std::string& description) {
  return command
      .add_option_function<std::string>(
          "--format",
          [&spec](const std::string& text) {
            auto formats = ParseOutputFormats(absl::StrSplit(text, ','));
            if (!formats.ok()) throw CLI::ValidationError("--format", Message(formats.status()));
            spec.format = *std::move(formats);
          },
          description)
      ->type_name(absl::StrJoin(kOutputFormatNames, "|"));
}

void AddServerPathFlag(CLI::App& command, JobFlags& flags) {
  command
      .add_flag("--server-path", flags.server_path,
                "The paths lie on the server, below one of its model roots: nothing is uploaded.")
      ->group("Inputs");
}

// What any job carries.
void AddSubmissionFlags(CLI::App& command, JobFlags& flags) {
  const auto job = [](CLI::Option* option) { option->group("Job"); };
  job(command
          .add_option("--label", flags.labels,
                      "KEY=VALUE that the job carries; `ptq list --filter` finds it. Repeatable.")
          ->type_name("KEY=VALUE")
          ->allow_extra_args(false));
  job(command
          .add_option("--request-id", flags.request_id,
                      "The same UUID gives the same job, however often the command runs.")
          ->type_name("UUID"));
  job(command.add_flag("--validate-only", flags.validate_only,
                       "Check everything that can be known without reading weights; no job is "
                       "made."));
  job(command.add_flag("--no-reuse", flags.no_reuse,
                       "Compute again even if the server has the result of equal work."));
}

}  // namespace

void AddJobFlags(CLI::App& command, JobFlags& flags) {
  JobSpec& spec = flags.spec;
  command
      .add_option("MODEL_DIR", spec.model,
                  "Folder of a Hugging Face checkpoint: config.json, safetensors, tokenizer. Links "
                  "are followed, so that a snapshot of the Hugging Face cache will do.")
      ->type_name("DIR")
      ->required();

  const auto inputs = [](CLI::Option* option) { option->group("Inputs"); };
  inputs(command
             .add_option("--calibration", spec.calibration,
                         "Calibration text: .jsonl with a \"text\" field, .txt (one document), or "
                         ".safetensors with integer input_ids [samples, length]. Needed by every "
                         "algorithm but rtn.")
             ->type_name("FILE"));
  inputs(command
             .add_option("--evaluation", spec.evaluation,
                         "Held-out text of the same kinds. The report then says what the "
                         "quantization cost: perplexity, KL divergence, top-1 agreement.")
             ->type_name("FILE"));
  AddServerPathFlag(command, flags);

  const auto scheme = [](CLI::Option* option) { option->group("Quantization"); };
  scheme(
      AddChoice(command, "--algorithm", spec.algorithm, ParseAlgorithm, AlgorithmName,
                absl::StrJoin(kAlgorithmNames, "|"),
                "auto-round learns the rounding block by block (best); gptq solves each layer in "
                "closed form; opt-rtn searches scales; rtn only rounds."));
  CLI::Option* preset =
      command
          .add_option_function<std::string>(
              "--preset",
              [&spec](const std::string& name) {
                const absl::Status used = UsePreset(name, &spec);
                if (!used.ok()) throw CLI::ValidationError(WithFlagNames(Message(used)));
              },
              "Bits, groups and zero points by a name; `ptq capabilities` says what each stands "
              "for. Rules go before those of the preset.")
          ->type_name(PresetNames("|"));
  scheme(preset);
  CLI::Option* k_quant =
      command
          .add_option_function<std::string>(
              "--scheme",
              [&spec](const std::string& name) {
                const absl::Status used = UseScheme(name, &spec);
                if (!used.ok()) throw CLI::ValidationError(WithFlagNames(Message(used)));
              },
              "A K-quant of GGUF for all layers, in place of bits, groups and zero points; the "
              "presets of like names are llama.cpp's mixes of them.")
          ->type_name(absl::StrJoin(kKQuantNames, "|"));
  scheme(k_quant);
  preset->excludes(k_quant);
  CLI::Option* bits = command.add_option("--bits", spec.bits, "Bits of a weight, 2 to 8.")
                          ->type_name("N")
                          ->capture_default_str();
  scheme(bits);
  preset->excludes(bits);
  k_quant->excludes(bits);
  CLI::Option* group_size =
      command
          .add_option("--group-size", spec.group_size,
                      "Weights of a row that share a scale; -1: the whole row, 0: the whole "
                      "tensor.")
          ->type_name("N")
          ->capture_default_str();
  scheme(group_size);
  preset->excludes(group_size);
  k_quant->excludes(group_size);
  CLI::Option* asymmetric = command.add_flag("--asymmetric", spec.asymmetric,
                                             "Codes with a zero point instead of symmetric ones.");
  scheme(asymmetric);
  preset->excludes(asymmetric);
  k_quant->excludes(asymmetric);
  scheme(
      command
          .add_option("--rule", spec.rule,
                      "'PATTERN:bits=8,group_size=32' or 'PATTERN:skip' for the modules whose "
                      "whole name matches the regular expression (RE2). Keys: bits, group_size, "
                      "symmetric, or scheme=Q6_K and the like. Repeatable; the first rule that "
                      "matches wins. The head and the embedding are quantized where a rule names "
                      "them ('lm_head:bits=8', 'model.embed_tokens:bits=8') and the format can "
                      "hold them; patterns that match any name, such as '.*', leave them alone.")
          ->type_name("RULE")
          ->allow_extra_args(false));
  scheme(command.add_flag("--allow-split-fused-sets", spec.allow_split_fused_sets,
                          "Let rules give q, k and v, or gate and up, different schemes. vLLM and "
                          "SGLang load each of these sets as one layer and refuse such a model."));
  scheme(AddChoice(command, "--scale-rule", spec.scale_rule, ParseScaleRule, ScaleRuleName,
                   absl::StrJoin(kScaleRuleNames, "|"),
                   "How rtn derives scales: Auto-Round's full-range rule or torchao's own."));
  scheme(AddFormatFlag(command, spec,
                       "What the result is written as; several, with commas, share one "
                       "quantization, and each gets a folder of its name. affine: transformers "
                       "with torchao; compressed-tensors, gptq, awq: vLLM, SGLang, transformers; "
                       "auto-round: AutoRound's loader; gguf: llama.cpp; dequantized: a plain "
                       "checkpoint with the rounded weights.")
             ->default_str(absl::StrJoin(spec.format, ",")));

  const auto tuning = [](CLI::Option* option) { option->group("Calibration"); };
  tuning(AddChoice(
      command, "--recipe", spec.recipe, ParseRecipe, RecipeName, absl::StrJoin(kRecipeNames, "|"),
      absl::StrFormat("How auto-round tunes. paper: Auto-Round as published, %d iterations; fast, "
                      "default and best: %d, %d and %d iterations of this project's recipe.",
                      kRecipeIterations[0], kRecipeIterations[1], kRecipeIterations[2],
                      kRecipeIterations[3])));
  tuning(command
             .add_option("--iterations", spec.iterations,
                         "Steps of auto-round for each block. Default: the recipe's (" +
                             RecipeIterations() + ").")
             ->type_name("N"));
  tuning(command.add_option("--batch-size", spec.batch_size, "Windows in a step of auto-round.")
             ->type_name("N")
             ->capture_default_str());
  tuning(command
             .add_option("--fisher-tokens", spec.fisher_tokens,
                         "Calibration tokens that auto-round's Fisher metric is estimated from. "
                         "-1: 16384, or 16 times the model's width if that is more, or all if "
                         "there are fewer; 0: plain mean squared error instead. Not with recipe "
                         "paper.")
             ->type_name("N")
             ->capture_default_str());
  tuning(AddChoice(command, "--tuning-precision", spec.tuning_precision, ParsePrecision,
                   PrecisionName, absl::StrJoin(kPrecisionNames, "|"),
                   "Of auto-round's matrix products while it tunes. fp8: faster, needs a bfloat16 "
                   "model and an H100 or H200; bf16: no FP8, but the dtype that the model computes "
                   "in; auto: fp8 where it is possible, though not with recipe paper."));
  tuning(command.add_option("--samples", spec.samples, "Calibration windows.")
             ->type_name("N")
             ->capture_default_str());
  tuning(command.add_option("--sequence-length", spec.sequence_length, "Tokens of a window.")
             ->type_name("N")
             ->capture_default_str());
  tuning(command.add_option("--seed", spec.seed, "Seed of everything random.")
             ->type_name("N")
             ->capture_default_str());

  const auto evaluation = [](CLI::Option* option) { option->group("Evaluation"); };
  evaluation(command
                 .add_option("--evaluation-window", spec.evaluation_window,
                             "Tokens of an evaluation window. Default: the sequence length.")
                 ->type_name("N"));
  evaluation(command
                 .add_option("--evaluation-samples", spec.evaluation_samples,
                             "Evaluation windows; 0: all.")
                 ->type_name("N")
                 ->capture_default_str());

  const auto job = [](CLI::Option* option) { option->group("Job"); };
  job(AddChoice(command, "--device", spec.device, ParseDevice, DeviceName,
                absl::StrJoin(kDeviceNames, "|"), "Where the worker computes."));
  job(AddChoice(command, "--low-memory", spec.low_memory, ParseLowMemory, LowMemoryName,
                absl::StrJoin(kLowMemoryNames, "|"),
                "On a GPU: on takes as little of its memory as it can (activations in host memory, "
                "smaller pieces at a time), somewhat slower; auto does so as far as the job would "
                "not fit otherwise."));
  AddSubmissionFlags(command, flags);
}

void AddConversionFlags(CLI::App& command, JobFlags& flags) {
  flags.spec.task = Task::kConvert;
  command
      .add_option("MODEL", flags.spec.model,
                  "Folder of a quantized model, of whatever program: affine (torchao), "
                  "compressed-tensors, gptq, awq, auto-round or gguf; a .gguf file; or a model on "
                  "the server by its name, tenants/.../models/...")
      ->type_name("DIR")
      ->required();
  AddServerPathFlag(command, flags);
  AddFormatFlag(command, flags.spec,
                "What it is written as; of several, with commas, each gets a folder of its name.")
      ->required()
      ->group("Output");
  AddSubmissionFlags(command, flags);
}

absl::Status ValidateJobFlags(const JobFlags& flags) {
  if (absl::Status status = ValidateJobSpec(flags.spec); !status.ok()) {
    return absl::Status(status.code(), WithFlagNames(Message(status)));
  }
  for (const std::string& label : flags.labels) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos || equals == 0) {
      return absl::InvalidArgumentError("--label: '" + label + "' is not KEY=VALUE");
    }
  }
  if (!flags.request_id.empty() && !IsUuid(flags.request_id)) {
    return absl::InvalidArgumentError("--request-id: '" + flags.request_id +
                                      "' is not a UUID; `uuidgen` makes one");
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::CreateQuantizationJobRequest> MakeJobRequest(const JobFlags& flags,
                                                                const InputNames& inputs) {
  const JobSpec& spec = flags.spec;
  v1::CreateQuantizationJobRequest request;
  request.set_parent(kDefaultTenant);
  request.set_request_id(flags.request_id.empty() ? RandomUuid() : flags.request_id);
  request.set_validate_only(flags.validate_only);
  for (const std::string& label : flags.labels) {
    const size_t equals = label.find('=');
    (*request.mutable_labels())[label.substr(0, equals)] = label.substr(equals + 1);
  }
  v1::QuantizationSpec& message = *request.mutable_spec();
  message.set_model(inputs.model);
  message.set_cache_policy(flags.no_reuse ? v1::SKIP_LOOKUP : v1::REUSE);
  for (const std::string& format : spec.format) message.add_output_formats(format);
  if (spec.task == Task::kConvert) {
    message.mutable_convert();
    return request;
  }
  message.set_calibration_dataset(inputs.calibration);
  message.set_evaluation_dataset(inputs.evaluation);
  SetAlgorithmField(AlgorithmName(spec.algorithm), message);
  if (message.has_auto_round()) {
    v1::AutoRound& tuning = *message.mutable_auto_round();
    tuning.set_recipe(RecipeName(spec.recipe));
    tuning.set_iterations(spec.EffectiveIterations());
    tuning.set_batch_size(spec.batch_size);
    tuning.set_fisher_tokens(spec.fisher_tokens);
    tuning.set_tuning_precision(PrecisionName(spec.tuning_precision));
  }
  if (message.has_rtn()) message.mutable_rtn()->set_scale_rule(ScaleRuleName(spec.scale_rule));
  message.set_preset(spec.preset);
  if (spec.preset.empty() && spec.scheme != KQuant::kNone) {
    message.mutable_scheme()->set_name(KQuantName(spec.scheme));
  } else if (spec.preset.empty()) {
    message.mutable_scheme()->set_bits(spec.bits);
    message.mutable_scheme()->set_group_size(spec.group_size);
    message.mutable_scheme()->set_asymmetric(spec.asymmetric);
  }
  for (const std::string& text : spec.rule) {
    auto rule = ParseSchemeRule(text);
    if (!rule.ok()) {
      return absl::Status(rule.status().code(), WithFlagNames(Message(rule.status())));
    }
    v1::ModuleRule& entry = *message.add_rules();
    entry.set_pattern(rule->pattern);
    entry.set_skip(rule->skip);
    if (rule->bits.has_value()) entry.set_bits(*rule->bits);
    if (rule->group_size.has_value()) entry.set_group_size(*rule->group_size);
    if (rule->symmetric.has_value()) entry.set_symmetric(*rule->symmetric);
    if (rule->k_quant != KQuant::kNone) entry.set_scheme(KQuantName(rule->k_quant));
  }
  message.set_allow_split_fused_sets(spec.allow_split_fused_sets);
  message.set_seed(spec.seed);
  message.mutable_resources()->set_device(DeviceName(spec.device));
  message.mutable_resources()->set_low_memory(LowMemoryName(spec.low_memory));
  message.mutable_calibration()->set_samples(spec.samples);
  message.mutable_calibration()->set_sequence_length(spec.sequence_length);
  if (spec.evaluation_window > 0) {
    message.mutable_evaluation()->set_window(spec.evaluation_window);
  }
  message.mutable_evaluation()->set_samples(spec.evaluation_samples);
  return request;
}

}  // namespace ptq
