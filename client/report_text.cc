#include "client/report_text.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/message_json.h"
#include "client/text_format.h"
#include "common/status_util.h"
#include "proto/algorithm_field.h"
#include "worker/spec/job_spec.h"

namespace ptq {
namespace {

constexpr size_t kWorstLayers = 10;

// The value at a path of keys; nullptr if any of them is missing.
const Json* Find(const Json& json, std::initializer_list<const char*> path) {
  const Json* value = &json;
  for (const char* key : path) {
    if (!value->is_object()) return nullptr;
    const auto it = value->find(key);
    if (it == value->end()) return nullptr;
    value = &*it;
  }
  return value;
}

std::optional<double> Number(const Json& json, std::initializer_list<const char*> path) {
  const Json* value = Find(json, path);
  if (value == nullptr || !value->is_number()) return std::nullopt;
  return value->get<double>();
}

std::string Text(const Json& json, const char* key) {
  const Json* value = Find(json, {key});
  return value != nullptr && value->is_string() ? value->get<std::string>() : "";
}

std::string Change(double before, double after) {
  if (before <= 0) return "";
  return absl::StrFormat("%+.1f %%", 100 * (after / before - 1));
}

// What tuned, by which loss, and whether the result holds beyond the calibration text.
std::string TuningLines(const Json& report) {
  std::string text;
  const auto iterations = Number(report, {"tuning", "iterations"});
  if (const Json* tuning = Find(report, {"tuning"}); tuning != nullptr && iterations) {
    const std::string precision = Text(*tuning, "precision");
    text += absl::StrFormat("\nRecipe: %s, %.0f iterations, %s%s\n", Text(*tuning, "recipe"),
                            *iterations, Text(*tuning, "loss"),
                            precision.empty() ? "" : ", " + precision);
  }
  const auto tokens = Number(report, {"calibration", "tokens"});
  if (!tokens) return text;
  text += absl::StrFormat("%sCalibration: %.0f tokens", text.empty() ? "\n" : "", *tokens);
  if (const auto ratio = Number(report, {"calibration", "held_out_ratio"})) {
    const double percent = std::round(100 * (*ratio - 1));
    text += percent == 0 ? "; errors on held-out text are those on it"
                         : absl::StrFormat("; errors on held-out text are %.0f %% %s those on it",
                                           std::fabs(percent), percent > 0 ? "above" : "below");
  }
  return text + "\n";
}

std::string BlockTable(const Json& report) {
  const Json* blocks = Find(report, {"blocks"});
  if (blocks == nullptr || !blocks->is_array() || blocks->empty()) return "";
  if (Find(report, {"conversion"}) != nullptr) return "";  // whose blocks cost nothing
  std::vector<std::vector<std::string>> rows = {{"BLOCK", "SECONDS", "LOSS BEFORE", "AFTER"}};
  for (const Json& block : *blocks) {
    const auto seconds = Number(block, {"seconds"});
    const auto first = Number(block, {"loss_first"});
    const auto best = Number(block, {"loss_best"});
    rows.push_back({Text(block, "name"), seconds ? absl::StrFormat("%.1f", *seconds) : "-",
                    first ? FormatLoss(*first) : "-", best ? FormatLoss(*best) : "-"});
  }
  return "\nBlocks\n" + FormatTable(rows);
}

// The bits of a layer's codes, or the name of its K-quant.
std::string Width(const Json& module) {
  const std::string scheme = Text(module, "scheme");
  const auto bits = Number(module, {"bits"});
  if (!scheme.empty()) return scheme;
  return bits ? absl::StrFormat("%.0f", *bits) : "-";
}

// What is quantized beside the blocks, and how where not by the job's algorithm.
std::string OutsideTable(const Json& report) {
  const Json* modules = Find(report, {"outside_of_blocks"});
  if (modules == nullptr || !modules->is_array() || modules->empty()) return "";
  std::vector<std::vector<std::string>> rows = {
      {"LAYER", "BITS", "GROUP", "RELATIVE ERROR", "REMARK"}};
  for (const Json& module : *modules) {
    const auto group = Number(module, {"group_size"});
    const auto error = Number(module, {"relative_error"});
    rows.push_back(
        {Text(module, "name"), Width(module), group ? absl::StrFormat("%.0f", *group) : "-",
         error ? absl::StrFormat("%.3f %%", 100 * *error) : "-", Text(module, "fallback_reason")});
  }
  return "\nOutside of the blocks\n" + FormatTable(rows);
}

std::string WorstLayerTable(const Json& report) {
  const Json* blocks = Find(report, {"blocks"});
  if (blocks == nullptr || !blocks->is_array()) return "";
  std::vector<std::pair<double, const Json*>> layers;
  for (const Json& block : *blocks) {
    const Json* modules = Find(block, {"modules"});
    if (modules == nullptr || !modules->is_array()) continue;
    for (const Json& module : *modules) {
      const auto error = Number(module, {"relative_error"});
      if (error.has_value()) layers.emplace_back(*error, &module);
    }
  }
  if (layers.empty()) return "";
  std::stable_sort(layers.begin(), layers.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  layers.resize(std::min(layers.size(), kWorstLayers));
  std::vector<std::vector<std::string>> rows = {
      {"LAYER", "BITS", "GROUP", "RELATIVE ERROR", "AGAINST RTN", "REMARK"}};
  for (const auto& [error, module] : layers) {
    const auto group = Number(*module, {"group_size"});
    const auto mse = Number(*module, {"output_mse"});
    const auto rtn = Number(*module, {"rtn_output_mse"});
    const std::string fallback = Text(*module, "fallback_reason");
    rows.push_back({Text(*module, "name"), Width(*module),
                    group ? absl::StrFormat("%.0f", *group) : "-",
                    absl::StrFormat("%.3f %%", 100 * error), mse && rtn ? Change(*rtn, *mse) : "-",
                    fallback.empty() ? "" : "fell back: " + fallback});
  }
  return "\nLayers with the largest errors\n" + FormatTable(rows);
}

// One line a format and loader; what a refusing loader says stands below.
std::string LoaderTable(const Json& report) {
  const Json* formats = Find(report, {"loaders"});
  if (formats == nullptr || !formats->is_array()) return "";
  std::vector<std::vector<std::string>> rows = {{"FORMAT", "LOADER", "VERDICT", "NEEDS"}};
  std::string sentences;
  for (const Json& format : *formats) {
    const Json* loaders = Find(format, {"loaders"});
    if (loaders == nullptr || !loaders->is_array()) continue;
    for (const Json& loader : *loaders) {
      const std::string name = Text(loader, "loader");
      std::string verdict = Text(loader, "verdict");
      std::replace(verdict.begin(), verdict.end(), '_', ' ');
      rows.push_back({Text(format, "format"), name, verdict, Text(loader, "needs")});
      for (const char* kind : {"problems", "remarks"}) {
        const Json* list = Find(loader, {kind});
        if (list == nullptr || !list->is_array()) continue;
        for (const Json& sentence : *list) {
          if (!sentence.is_string()) continue;
          sentences += "  " + name + ": " + sentence.get<std::string>() + "\n";
        }
      }
    }
  }
  return rows.size() == 1 ? "" : "\nLoaders\n" + FormatTable(rows) + sentences;
}

std::string TimeLine(const Json& report) {
  std::vector<std::string> parts;
  for (const char* phase :
       {"load", "fisher", "observe", "quantize", "export", "evaluate", "total"}) {
    const auto seconds = Number(report, {"timing", (std::string(phase) + "_seconds").c_str()});
    // Few jobs have a Fisher pass.
    if (!seconds.has_value() || (std::string(phase) == "fisher" && *seconds == 0)) continue;
    parts.push_back(absl::StrFormat("%s %.1f s", phase, *seconds));
    const auto search = Number(report, {"timing", "search_seconds"}).value_or(0);
    if (std::string(phase) == "quantize" && search > 0) {
      parts.back() += absl::StrFormat(" (search %.1f s)", search);
    }
  }
  return parts.empty() ? "" : "\nTime: " + absl::StrJoin(parts, ", ") + "\n";
}

// What a conversion read and wrote.
std::string ConversionSummary(const Json& conversion) {
  std::vector<std::vector<std::string>> rows = {{"", "format", "files"}};
  const auto row = [&rows](const char* label, const Json& entry) {
    const auto bytes = Number(entry, {"bytes"});
    rows.push_back({label, Text(entry, "format"),
                    bytes ? FormatBytes(static_cast<int64_t>(*bytes)) : std::string("-")});
  };
  if (const Json* source = Find(conversion, {"source"})) row("  read", *source);
  if (const Json* results = Find(conversion, {"results"}); results && results->is_array()) {
    for (const Json& result : *results) row("  written", result);
  }
  return FormatTable(rows);
}

std::string Warnings(const Json& report) {
  const Json* warnings = Find(report, {"warnings"});
  if (warnings == nullptr || !warnings->is_array() || warnings->empty()) return "";
  std::string text = "\nWarnings\n";
  for (const Json& warning : *warnings) {
    text += "  " + (warning.is_string() ? warning.get<std::string>() : DumpJson(warning)) + "\n";
  }
  return text;
}

}  // namespace

std::string ReportSummary(const Json& report) {
  if (const Json* conversion = Find(report, {"conversion"})) return ConversionSummary(*conversion);
  std::vector<std::vector<std::string>> rows;
  const auto before = Number(report, {"evaluation", "baseline", "perplexity"});
  const auto after = Number(report, {"evaluation", "quantized", "perplexity"});
  if (before && after) {
    rows.push_back({"  perplexity", absl::StrFormat("%.3f", *before),
                    absl::StrFormat("%.3f", *after), Change(*before, *after)});
  }
  if (const auto kld = Number(report, {"evaluation", "quantized", "mean_kld"})) {
    rows.push_back({"  mean KL divergence", "", absl::StrFormat("%.4f", *kld), "nats"});
  }
  if (const auto top1 = Number(report, {"evaluation", "quantized", "top1_agreement"})) {
    rows.push_back({"  top-1 agreement", "", absl::StrFormat("%.1f %%", 100 * *top1), ""});
  }
  const auto bytes_before = Number(report, {"size", "before_bytes"});
  const auto bytes_after = Number(report, {"size", "after_bytes"});
  if (bytes_before && bytes_after) {
    rows.push_back({"  weights", FormatBytes(static_cast<int64_t>(*bytes_before)),
                    FormatBytes(static_cast<int64_t>(*bytes_after)),
                    Change(*bytes_before, *bytes_after)});
  }
  if (const auto bits = Number(report, {"size", "bits_per_weight"})) {
    rows.push_back({"  bits per weight", "", absl::StrFormat("%.3f", *bits), ""});
  }
  if (rows.empty()) return "";
  rows.insert(rows.begin(), {"", "before", "after"});
  return FormatTable(rows);
}

std::string ReportDetails(const Json& report) {
  return ReportSummary(report) + TuningLines(report) + BlockTable(report) + OutsideTable(report) +
         WorstLayerTable(report) + LoaderTable(report) + TimeLine(report) + Warnings(report);
}

namespace {

// "W4G128", "W8 channel asym".
std::string SchemeText(const v1::QuantizationSpec& spec) {
  if (!spec.scheme().name().empty()) return spec.scheme().name();
  const int bits = spec.scheme().has_bits() ? spec.scheme().bits() : 4;
  const int64_t group = spec.scheme().has_group_size() ? spec.scheme().group_size() : 128;
  std::string text = absl::StrFormat("W%d", bits);
  if (group > 0) text += absl::StrFormat("G%d", group);
  if (group == -1) text += " channel";
  if (group == 0) text += " tensor";
  if (spec.scheme().asymmetric()) text += " asym";
  return text;
}

}  // namespace

std::string SpecSummary(const v1::QuantizationSpec& spec) {
  // The defaults are those of the API's messages.
  if (spec.has_convert()) return "convert to " + absl::StrJoin(spec.output_formats(), ",");
  std::string algorithm = AlgorithmFieldName(spec);
  if (algorithm.empty()) algorithm = AlgorithmName(JobSpec().algorithm);
  const std::string& recipe = spec.auto_round().recipe();
  if (!recipe.empty() && recipe != RecipeName(JobSpec().recipe)) algorithm += " " + recipe;
  std::string text = algorithm + " " + (spec.preset().empty() ? SchemeText(spec) : spec.preset());
  if (spec.rules_size() > 0) {
    text +=
        absl::StrFormat(" +%d %s", spec.rules_size(), spec.rules_size() == 1 ? "rule" : "rules");
  }
  return text;
}

std::string JobDetails(const v1::QuantizationJob& job) {
  std::vector<std::vector<std::string>> rows;
  rows.push_back({"Name:", job.name()});
  rows.push_back({"State:", v1::QuantizationJob::State_Name(job.state()) +
                                (job.reused() ? " (an earlier job's result)" : "")});
  rows.push_back({"What:", SpecSummary(job.spec())});
  const v1::Progress& progress = job.progress();
  if (progress.blocks_total() > 0 && !job.spec().has_convert()) {
    std::string text =
        absl::StrFormat("%d of %d blocks", progress.blocks_done(), progress.blocks_total());
    if (!progress.phase().empty() && job.state() == v1::QuantizationJob::RUNNING) {
      text += ", " + progress.phase();
    }
    if (progress.has_eta() && job.state() == v1::QuantizationJob::RUNNING) {
      text += ", " + FormatSeconds(absl::Seconds(progress.eta().seconds())) + " left";
    }
    rows.push_back({"Progress:", text});
  }
  if (progress.host_peak_bytes() > 0) {
    std::string text = FormatBytes(progress.host_peak_bytes());
    if (progress.device_peak_bytes() > 0) {
      text += ", device " + FormatBytes(progress.device_peak_bytes());
    }
    rows.push_back({"Peak memory:", text});
  }
  if (job.has_error()) {
    rows.push_back({"Error:", StatusCodeName(static_cast<absl::StatusCode>(job.error().code())) +
                                  ": " + job.error().message()});
  }
  if (job.attempt() > 1) rows.push_back({"Attempt:", absl::StrFormat("%d", job.attempt())});
  if (!job.labels().empty()) {
    std::vector<std::string> labels;
    for (const auto& [key, value] : job.labels()) labels.push_back(key + "=" + value);
    std::sort(labels.begin(), labels.end());
    rows.push_back({"Labels:", absl::StrJoin(labels, ", ")});
  }
  if (job.has_create_time()) {
    rows.push_back({"Created:", FormatLocalTime(ToTime(job.create_time()))});
  }
  if (job.has_start_time()) {
    rows.push_back({"Started:", FormatLocalTime(ToTime(job.start_time()))});
  }
  if (job.has_end_time()) rows.push_back({"Ended:", FormatLocalTime(ToTime(job.end_time()))});
  if (job.has_expire_time()) {
    rows.push_back({"Kept until:", FormatLocalTime(ToTime(job.expire_time()))});
  }
  if (job.has_result_digest()) rows.push_back({"Result:", "sha256 " + job.result_digest().hash()});
  for (const std::string& warning : job.warnings()) rows.push_back({"Warning:", warning});
  return FormatTable(rows);
}

std::string CapabilitiesDetails(const v1::ServerCapabilities& capabilities) {
  std::vector<std::string> bits;
  for (int value : capabilities.bits()) bits.push_back(std::to_string(value));
  std::vector<std::vector<std::string>> rows;
  rows.push_back({"Engine:", capabilities.engine_version()});
  rows.push_back({"Algorithms:", absl::StrJoin(capabilities.algorithms(), ", ")});
  rows.push_back({"Recipes:", absl::StrJoin(capabilities.recipes(), ", ")});
  rows.push_back({"Model types:", absl::StrJoin(capabilities.model_types(), ", ")});
  rows.push_back({"Output formats:", absl::StrJoin(capabilities.output_formats(), ", ")});
  rows.push_back({"Bits:", absl::StrJoin(bits, ", ")});
  if (capabilities.k_quants_size() > 0) {
    rows.push_back({"K-quants:", absl::StrJoin(capabilities.k_quants(), ", ")});
  }
  rows.push_back({"Jobs at once:", std::to_string(capabilities.max_concurrent_jobs())});
  rows.push_back({"Model roots:", capabilities.model_roots().empty()
                                      ? "none (--server-path is refused)"
                                      : absl::StrJoin(capabilities.model_roots(), ", ")});
  std::vector<std::vector<std::string>> presets;
  for (const v1::Preset& preset : capabilities.presets()) {
    presets.push_back({"  " + preset.name(), preset.description()});
  }
  return FormatTable(rows) + (presets.empty() ? "" : "Presets:\n" + FormatTable(presets));
}

}  // namespace ptq
