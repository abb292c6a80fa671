#include "server/rpc/report_conversion.h"

#include "common/json.h"
#include "common/status_util.h"

namespace ptq {
namespace {

const Json& Field(const Json& object, const char* name) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto entry = object.find(name);
  return entry == object.end() ? kNull : *entry;
}

double Number(const Json& object, const char* name) {
  const Json& value = Field(object, name);
  return value.is_number() ? value.get<double>() : 0;
}

std::string Text(const Json& object, const char* name) {
  const Json& value = Field(object, name);
  return value.is_string() ? value.get<std::string>() : "";
}

void FillModules(const Json& modules, v1::QuantizationReport& report) {
  for (const Json& module : modules) {
    v1::ModuleResult& result = *report.add_modules();
    result.set_module(Text(module, "name"));
    result.set_output_mse(Number(module, "output_mse"));
    result.set_relative_error(Number(module, "relative_error"));
    result.set_rtn_output_mse(Number(module, "rtn_output_mse"));
    result.set_damping_used(Number(module, "damping"));
    result.set_tokens_seen(static_cast<int64_t>(Number(module, "tokens")));
    result.set_fallback_reason(Text(module, "fallback_reason"));
  }
}

}  // namespace

absl::Status FillReport(const std::string& json, v1::QuantizationReport& report) {
  const auto parsed = ParseJson(json);
  if (!parsed.ok() || !parsed->is_object()) {
    return absl::DataLossError("the stored report.json is no report: " + Message(parsed.status()));
  }
  report.set_report_json(json);
  const Json& evaluation = Field(*parsed, "evaluation");
  const Json& quantized = Field(evaluation, "quantized");
  if (quantized.is_object()) {
    report.set_baseline_perplexity(Number(Field(evaluation, "baseline"), "perplexity"));
    report.set_quantized_perplexity(Number(quantized, "perplexity"));
    v1::Divergence& divergence = *report.mutable_divergence();
    divergence.set_mean_kld(Number(quantized, "mean_kld"));
    divergence.set_median_kld(Number(quantized, "median_kld"));
    divergence.set_p99_kld(Number(quantized, "p99_kld"));
    divergence.set_p999_kld(Number(quantized, "p999_kld"));
    divergence.set_max_kld(Number(quantized, "max_kld"));
    divergence.set_top1_agreement(Number(quantized, "top1_agreement"));
    divergence.set_rms_delta_p(Number(quantized, "rms_delta_p"));
  }
  report.set_bits_per_weight(Number(Field(*parsed, "size"), "bits_per_weight"));
  for (const Json& block : Field(*parsed, "blocks")) FillModules(Field(block, "modules"), report);
  FillModules(Field(*parsed, "outside_of_blocks"), report);
  return absl::OkStatus();
}

}  // namespace ptq
