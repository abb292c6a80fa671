#include "worker/conversion_report.h"

#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "common/time.h"
#include "formats/headers/tensor_table.h"
#include "worker/engine_version.h"
#include "worker/export_formats.h"
#include "worker/report.h"

namespace ptq {
namespace {

bool HoldsWeights(const std::string& path) {
  return absl::EndsWith(path, ".safetensors") || absl::EndsWith(path, ".gguf");
}

Json SourceToJson(const ConversionReportInputs& inputs) {
  int64_t bytes = 0;
  for (const Json& file : inputs.inputs.value("model", Json::array())) {
    if (HoldsWeights(file.value("path", ""))) bytes += file.value("size_bytes", int64_t{0});
  }
  return {{"format", inputs.source_format}, {"bytes", bytes}};
}

Json ResultsToJson(const ConversionReportInputs& inputs) {
  const std::vector<std::string>& formats = inputs.spec.format;
  Json results = Json::array();
  for (const std::string& format : formats) {
    const std::string folder = FormatFolder("", formats, format);
    int64_t bytes = 0;
    for (const FileDigest& file : inputs.outputs) {
      const bool inside = folder.empty() || absl::StartsWith(file.path, folder + "/");
      if (inside && HoldsWeights(file.path)) bytes += file.size_bytes;
    }
    results.push_back({{"format", format}, {"bytes", bytes}});
  }
  return results;
}

// By block, in the model's order: -1 before the blocks, and their number behind them.
std::map<int64_t, Json> ModulesByBlock(const ExportPlan& plan) {
  const ModelConfig& config = plan.source.config;
  std::map<std::string, int64_t> block_of;
  for (const TableTensor& tensor : BuildTensorTable(config)) {
    block_of[tensor.module] = BlockOf(tensor, config.num_hidden_layers);
  }
  std::map<int64_t, Json> modules;
  for (const PlannedModule& module : plan.modules) {
    modules.try_emplace(block_of[module.module], Json::array())
        .first->second.push_back(DescribeScheme(module.module, module.scheme));
  }
  return modules;
}

void AddModules(const ExportPlan& plan, Json& report) {
  Json& blocks = report["blocks"] = Json::array();
  Json& outside = report["outside_of_blocks"] = Json::array();
  for (auto& [block, list] : ModulesByBlock(plan)) {
    if (block < 0 || block == plan.source.config.num_hidden_layers) {
      outside.insert(outside.end(), list.begin(), list.end());
    } else {
      blocks.push_back({{"name", BlockName(plan.source.config, block)}, {"modules", list}});
    }
  }
}

Json SizeToJson(const ExportPlan& plan) {
  int64_t weights = 0;
  int64_t bits = 0;
  for (const PlannedModule& module : plan.modules) {
    weights += module.out_features * module.in_features;
    bits += RecordBits(module.scheme, module.out_features, module.in_features,
                       DTypeBits(module.scale_dtype));
  }
  Json size;
  size["quantized_weights"] = weights;
  size["bits_per_weight"] =
      weights > 0 ? static_cast<double>(bits) / static_cast<double>(weights) : 0;
  return size;
}

}  // namespace

Json BuildConversionReport(const ConversionReportInputs& inputs) {
  Json report;
  report["engine_version"] = EngineVersion();
  report["finished"] = FormatRfc3339(absl::Now());
  report["device"] = "cpu";
  report["environment"] = inputs.environment;
  report["model"] = DescribeModel(inputs.spec.model, inputs.plan.source.config);
  report["conversion"] = {{"source", SourceToJson(inputs)}, {"results", ResultsToJson(inputs)}};
  report["loaders"] = inputs.loaders;
  report["size"] = SizeToJson(inputs.plan);
  report["timing"] = {{"load_seconds", inputs.load_seconds},
                      {"export_seconds", inputs.export_seconds},
                      {"total_seconds", inputs.total_seconds}};
  report["memory"] = {{"host_peak_bytes", inputs.host_peak_bytes}};
  report["warnings"] = inputs.plan.source.warnings;
  AddModules(inputs.plan, report);
  report["skipped_modules"] = inputs.plan.skipped;
  report["spec"] = JobSpecToJson(inputs.spec);
  report["inputs"] = inputs.inputs;
  report["outputs"] = Json::array();
  for (const FileDigest& file : inputs.outputs) {
    report["outputs"].push_back(FileDigestToJson(file));
  }
  report["result_digest"] = FolderDigest(inputs.outputs);
  return report;
}

}  // namespace ptq
