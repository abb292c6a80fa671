#include "worker/report.h"

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/str_format.h"
#include "algorithms/auto_round/auto_round.h"
#include "algorithms/auto_round/learned_scale_math.h"
#include "algorithms/auto_round/schedule.h"
#include "common/time.h"
#include "formats/headers/quote.h"
#include "formats/headers/tensor_table.h"
#include "observers/output_error.h"
#include "worker/device.h"
#include "worker/engine_version.h"

namespace ptq {
namespace {

Json OrNull(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

std::string ModelName(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::path(folder).lexically_normal();
  return (path.filename().empty() ? path.parent_path() : path).filename().string();
}

Json ModelToJson(const JobPlan& plan) {
  Json json = DescribeModel(plan.spec.model, plan.inspection.config);
  json["dtype"] = DtypeLabel(plan.stored_dtype);
  return json;
}

double SumOver(const std::vector<Json>& blocks, const char* field, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count && i < blocks.size(); ++i) sum += blocks[i].value(field, 0.0);
  return sum;
}

// How many blocks were tuned in which way: {"fused fp8": 31, "autograd": 1}.
Json CountPaths(const std::vector<Json>& blocks) {
  Json counts = Json::object();
  for (const Json& block : blocks) {
    const Json path = block.value("tuning_path", Json(nullptr));
    if (path.is_string()) counts[path] = counts.value(path.get<std::string>(), 0) + 1;
  }
  return counts;
}

// Empty, or that blocks were tuned in a wider precision than the job's.
std::string PrecisionWarning(const ReportInputs& inputs) {
  if (inputs.plan.tuning_precision != TuningPrecision::kFp8) return "";
  int64_t wider = 0;
  const Json paths = CountPaths(inputs.blocks);
  for (const auto& [path, count] : paths.items()) {
    if (path.find("fp8") == std::string::npos) wider += count.get<int64_t>();
  }
  if (wider == 0) return "";
  return absl::StrFormat(
      "%d of %d blocks were tuned without FP8 products, which their shapes or rules do not allow: "
      "slower, and not less exact.",
      wider, inputs.blocks.size());
}

constexpr size_t kNamesPerWarning = 12;

Json Warnings(const ReportInputs& inputs) {
  Json warnings = Json::array();
  for (const std::string& warning : inputs.plan.warnings) warnings.push_back(warning);
  for (const std::string& warning : inputs.warnings) warnings.push_back(warning);
  if (std::string warning = PrecisionWarning(inputs); !warning.empty()) {
    warnings.push_back(std::move(warning));
  }
  for (const Json& block : inputs.blocks) {
    // Of hundreds of experts many may have fallen back for one reason, which one sentence tells.
    std::map<std::string, std::vector<std::string>> modules;
    for (const Json& module : block["modules"]) {
      if (module["fallback_reason"].is_null()) continue;
      modules[module["fallback_reason"].get<std::string>()].push_back(
          module["name"].get<std::string>());
    }
    for (const auto& [reason, names] : modules) {
      warnings.push_back(ListSome(names, kNamesPerWarning) + ": " + reason);
    }
  }
  return warnings;
}

// Errors on held-out windows above those on calibration windows by more than this mean that the
// tuning learned the calibration text.
constexpr double kOverfitRatio = 1.1;

// A constant of the kernels as it was written: 0.95 rather than 0.949999988.
double Decimal(float value) { return std::round(static_cast<double>(value) * 1e6) / 1e6; }

// How Auto-Round tuned: the recipe with every hyperparameter in effect; null for other algorithms.
Json TuningToJson(const ReportInputs& inputs) {
  const JobSpec& spec = inputs.plan.spec;
  if (spec.algorithm != Algorithm::kAutoRound) return nullptr;
  const int64_t iterations = spec.EffectiveIterations();
  Json json;
  json["recipe"] = RecipeName(spec.recipe);
  json["iterations"] = iterations;
  json["batch_size"] = std::min(spec.batch_size, spec.samples);
  json["precision"] = inputs.plan.TuningPrecisionLabel();
  json["paths"] = CountPaths(inputs.blocks);
  if (spec.recipe == TuningRecipe::kPaper) {
    json["parameters"] = "rounding offsets V, range factors alpha and beta";
    json["optimizer"] = "signed gradient descent";
    json["learning_rate"] = DefaultLearningRate(iterations, spec.bits);
    json["schedule"] = "linear";
    json["loss"] = "squared error";
    json["kept"] = "best step";
    return json;
  }
  int64_t fisher_tokens = 0;
  for (const Json& block : inputs.blocks) {
    fisher_tokens = std::max(fisher_tokens, block.value("fisher_tokens", int64_t{0}));
  }
  const double rate = LearnedScalePeak(iterations) / static_cast<double>(iterations);
  json["parameters"] = "code positions U, scale factors t from searched scales";
  json["optimizer"] = "Adam";
  json["first_decay"] = Decimal(rounding::kFirstDecay);
  json["second_decay"] = Decimal(rounding::kSecondDecay);
  json["learning_rate"] = rate;
  json["scale_learning_rate"] = kFactorRate * rate;
  json["schedule"] = "cosine";
  json["loss"] = fisher_tokens > 0 ? "Fisher metric" : "squared error";
  if (fisher_tokens > 0) {
    json["fisher_tokens"] = fisher_tokens;
    json["fisher_weight"] = FisherWeight(fisher_tokens, inputs.plan.inspection.config.hidden_size);
  }
  json["kept"] = "last step";
  return json;
}

}  // namespace

Json DescribeModel(const std::string& path, const ModelConfig& config) {
  int64_t parameters = 0;
  for (const TableTensor& tensor : BuildTensorTable(config)) {
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    parameters += elements;
  }
  Json json;
  json["name"] = ModelName(path);
  json["architecture"] = config.architecture;
  json["block_count"] = config.num_hidden_layers;
  json["parameters"] = parameters;
  return json;
}

Json SpecWithoutPaths(const JobSpec& spec) {
  Json json = JobSpecToJson(spec);
  for (const char* key : {"model", "calibration", "evaluation"}) json.erase(key);
  return json;
}

Json DescribeScheme(const std::string& module, const QuantizationScheme& scheme) {
  Json entry;
  entry["name"] = module;
  entry["scheme"] = KQuantName(scheme.k_quant);
  entry["bits"] = scheme.bits;
  entry["group_size"] = scheme.group_size;
  entry["symmetric"] = scheme.symmetric;
  return entry;
}

Json ModuleResultToJson(const ModuleResult& module) {
  Json entry = DescribeScheme(module.name, module.scheme);
  entry["output_mse"] = OrNull(module.output_mse);
  entry["relative_error"] = OrNull(module.relative_error);
  entry["rtn_output_mse"] = OrNull(module.rtn_output_mse);
  entry["tokens"] = module.tokens ? Json(*module.tokens) : Json(nullptr);
  entry["damping"] = OrNull(module.damping);
  entry["fallback_reason"] =
      module.fallback_reason.empty() ? Json(nullptr) : Json(module.fallback_reason);
  return entry;
}

Json BlockResultToJson(const BlockResult& block) {
  Json json;
  json["name"] = block.name;
  json["seconds"] = block.seconds;
  json["load_seconds"] = block.load_seconds;
  json["observe_seconds"] = block.observe_seconds;
  json["quantize_seconds"] = block.quantize_seconds;
  json["search_seconds"] = block.search_seconds;
  json["step_seconds"] = block.step_seconds ? Json(*block.step_seconds) : Json(nullptr);
  json["tuning_path"] = block.tuning_path.empty() ? Json(nullptr) : Json(block.tuning_path);
  json["export_seconds"] = block.export_seconds;
  json["write_seconds"] = block.write_seconds;
  json["micro_batches"] = MicroBatchesToJson(block.micro_batches);
  json["fisher_tokens"] = block.fisher_tokens;
  json["input_error"] = nullptr;
  if (block.input_error) {
    json["input_error"] = {{"calibration", block.input_error->calibration},
                           {"held_out", block.input_error->held_out},
                           {"held_out_samples", block.input_error->held_out_samples}};
  }
  json["loss_first"] = OrNull(block.loss_first);
  json["loss_best"] = OrNull(block.loss_best);
  json["loss_curve"] = block.loss_curve;
  json["modules"] = Json::array();
  for (const ModuleResult& module : block.modules) {
    json["modules"].push_back(ModuleResultToJson(module));
  }
  return json;
}

Json SummarizeCalibration(const JobSpec& spec, const std::vector<Json>& blocks,
                          std::vector<std::string>* warnings) {
  if (spec.calibration.empty()) return nullptr;
  const int64_t tokens = spec.samples * spec.sequence_length;
  Json summary = {{"samples", spec.samples}, {"tokens", tokens}};
  summary["error_tokens"] = ErrorSamples(spec.samples, spec.sequence_length) * spec.sequence_length;
  // The error behind a block is the one in front of the next.
  Json errors = Json::array();
  double log_ratio = 0;
  for (size_t block = 1; block < blocks.size(); ++block) {
    const Json& error = blocks[block]["input_error"];
    if (!error.is_object()) continue;
    const double calibration = error["calibration"].get<double>();
    const double held_out = error["held_out"].get<double>();
    if (!(calibration > 0) || !(held_out > 0)) continue;
    log_ratio += std::log(held_out / calibration);
    summary["held_out_samples"] = error.value("held_out_samples", int64_t{0});
    errors.push_back({{"block", block - 1}, {"calibration", calibration}, {"held_out", held_out}});
  }
  if (errors.empty()) return summary;
  log_ratio /= static_cast<double>(errors.size());
  summary["errors"] = errors;
  const double ratio = std::exp(log_ratio);
  summary["held_out_ratio"] = ratio;
  if (ratio > kOverfitRatio) {
    warnings->push_back(absl::StrFormat(
        "On text that was held out, errors behind the blocks are %.0f %% higher than on the %d "
        "tokens that tuning saw: more calibration text (--samples) would lower the loss.",
        100 * (ratio - 1), tokens));
  }
  return summary;
}

int64_t RecordBits(const QuantizationScheme& scheme, int64_t out_features, int64_t in_features,
                   int64_t scale_bits) {
  const int64_t weights = out_features * in_features;
  if (scheme.k_quant != KQuant::kNone) {
    return weights / kSuperBlock * 8 * TraitsOf(scheme.k_quant).bytes;
  }
  const int64_t groups = scheme.group_size == QuantizationScheme::kPerTensor
                             ? 1
                             : out_features * scheme.GroupsPerRow(in_features);
  return weights * scheme.bits + groups * (scale_bits + (scheme.symmetric ? 0 : scheme.bits));
}

SizeFigures ComputeSizes(const JobPlan& plan) {
  SizeFigures sizes;
  sizes.before_bytes = plan.inspection.index.total_bytes();
  const auto stored_bytes = static_cast<int64_t>(c10::elementSize(plan.stored_dtype));
  int64_t logical_bits = 0;
  for (const EffectiveScheme& module : plan.schemes) {
    if (!module.scheme) continue;
    const QuantizationScheme& scheme = *module.scheme;
    const int64_t scale_bits = scheme.scale_rule == ScaleRule::kTorchao ? 8 * stored_bytes : 16;
    sizes.quantized_weights += module.out_features * module.in_features;
    logical_bits += RecordBits(scheme, module.out_features, module.in_features, scale_bits);
  }
  sizes.after_bytes =
      sizes.before_bytes - sizes.quantized_weights * stored_bytes + (logical_bits + 7) / 8;
  if (sizes.quantized_weights > 0) {
    sizes.bits_per_weight =
        static_cast<double>(logical_bits) / static_cast<double>(sizes.quantized_weights);
  }
  return sizes;
}

Json BuildReport(const ReportInputs& inputs) {
  const JobPlan& plan = inputs.plan;
  const SizeFigures sizes = ComputeSizes(plan);
  const auto resumed = static_cast<size_t>(inputs.parts_resumed);
  std::vector<Json> timed = inputs.blocks;
  if (!inputs.head.is_null()) timed.push_back(inputs.head);
  const size_t all = timed.size();
  Json report;
  report["engine_version"] = EngineVersion();
  report["finished"] = FormatRfc3339(absl::Now());
  report["device"] = DeviceLabel(plan.compute.device);
  report["environment"] = inputs.environment;
  report["model"] = ModelToJson(plan);
  report["tuning"] = TuningToJson(inputs);
  report["calibration"] = inputs.calibration;
  report["evaluation"] = inputs.evaluation;
  report["loaders"] = inputs.loaders;
  report["size"] = {{"before_bytes", sizes.before_bytes},
                    {"after_bytes", sizes.after_bytes},
                    {"quantized_weights", sizes.quantized_weights},
                    {"bits_per_weight", sizes.bits_per_weight}};
  report["timing"] = {
      {"load_seconds", inputs.load_seconds + SumOver(timed, "load_seconds", all)},
      {"observe_seconds", SumOver(timed, "observe_seconds", all)},
      {"fisher_seconds", inputs.fisher_seconds},
      {"quantize_seconds", SumOver(timed, "quantize_seconds", all)},
      {"search_seconds", SumOver(timed, "search_seconds", all)},
      {"export_seconds", inputs.export_seconds + SumOver(timed, "export_seconds", all)},
      {"evaluate_seconds", inputs.evaluate_seconds},
      {"total_seconds", inputs.total_seconds + SumOver(timed, "seconds", resumed)}};
  report["memory"] = {{"host_peak_bytes", inputs.host_peak_bytes},
                      {"fisher_host_peak_bytes", inputs.fisher_host_peak_bytes},
                      {"device_peak_bytes", inputs.device_peak_bytes},
                      {"device_used_peak_bytes", inputs.device_used_peak_bytes},
                      {"activations", inputs.memory.chains_on_host ? "host" : "device"},
                      {"micro_batches", MicroBatchesToJson(inputs.memory.micro_batches)}};
  report["warnings"] = Warnings(inputs);
  report["blocks_resumed"] = std::min(resumed, inputs.blocks.size());
  report["blocks"] = inputs.blocks;
  report["outside_of_blocks"] = inputs.outside_of_blocks;
  report["skipped_modules"] = Json::array();
  for (const EffectiveScheme& module : plan.schemes) {
    if (!module.scheme) report["skipped_modules"].push_back(module.module);
  }
  report["spec"] = JobSpecToJson(plan.spec);
  report["inputs"] = inputs.inputs;
  report["outputs"] = Json::array();
  for (const FileDigest& file : inputs.outputs) {
    report["outputs"].push_back(FileDigestToJson(file));
  }
  report["result_digest"] = FolderDigest(inputs.outputs);
  return report;
}

}  // namespace ptq
