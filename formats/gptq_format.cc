// The gptq format, version 1: what GPTQModel, transformers, vLLM, SGLang and llama.cpp's converter
// read.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "formats/gptq_packing.h"
#include "formats/headers/loader_rules/fused_sets.h"
#include "formats/headers/quote.h"
#include "formats/module_pattern.h"
#include "formats/safetensors_format.h"

namespace ptq {
namespace {

constexpr char kName[] = "gptq";

Json SchemeJson(const QuantizationScheme& scheme) {
  return {{"bits", scheme.bits},
          {"group_size", scheme.group_size > 0 ? scheme.group_size : -1},
          {"sym", scheme.symmetric}};
}

absl::StatusOr<QuantizationScheme> ParseScheme(const Json& json, QuantizationScheme scheme) {
  PTQ_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(json, "bits", scheme.bits));
  PTQ_ASSIGN_OR_RETURN(scheme.group_size, JsonInt(json, "group_size", scheme.group_size));
  PTQ_ASSIGN_OR_RETURN(scheme.symmetric, JsonBool(json, "sym", scheme.symmetric));
  scheme.bits = static_cast<int>(bits);
  if (scheme.group_size <= 0) scheme.group_size = QuantizationScheme::kPerChannel;
  return scheme;
}

// For the module, and for the layer that vLLM and SGLang make of it and its like: they look for
// that one's name alone.
void Override(const std::string& sign, const std::string& module, const Json& settings,
              Json* dynamic) {
  (*dynamic)[sign + ExactPattern(module)] = settings;
  const auto set = FusedSetOf(module);
  if (set) (*dynamic)[sign + ExactPattern(set->module)] = settings;
}

class GptqFormat final : public SafetensorsFormat {
 public:
  std::string name() const override { return kName; }

 protected:
  std::unique_ptr<WeightPacking> PackingFor(const ExportPlan&) const override {
    return MakeGptqPacking(kName, {});
  }

  FolderConfig ConfigFor(const ExportPlan& plan) const override {
    const QuantizationScheme common = CommonScheme(plan.modules);
    Json config = SchemeJson(common);
    config["desc_act"] = false;
    config["quant_method"] = "gptq";
    config["checkpoint_format"] = "gptq";
    config["pack_dtype"] = "int32";
    config["lm_head"] = PlainHead(plan).empty();
    config["true_sequential"] = true;
    config["static_groups"] = false;
    config["damp_percent"] = 0.01;  // loaders check its range, whatever made the weights
    Json dynamic = Json::object();
    const std::vector<std::string> plain = PlainLinears(plan);
    for (const std::string& module : plain) Override("-:", module, Json::object(), &dynamic);
    if (!plain.empty()) {
      // Optimum, by which transformers reads the format, knows no `dynamic`.
      Json names = Json::array();
      for (const PlannedModule& module : plan.modules) {
        if (module.place == ModulePlace::kBlock) names.push_back(module.module);
      }
      config["modules_in_block_to_quantize"] = Json::array({std::move(names)});
    }
    for (const PlannedModule& module : plan.modules) {
      const Json own = SchemeJson(module.scheme);
      if (own != SchemeJson(common)) Override("+:", module.module, own, &dynamic);
    }
    if (!dynamic.empty()) config["dynamic"] = std::move(dynamic);
    // In another dtype loaders would round the scales again.
    return {
        .quantization = config, .dtype = DType::kF16, .files = {{"quantize_config.json", config}}};
  }

  class GptqReading final : public Reading {
   public:
    static absl::StatusOr<std::unique_ptr<Reading>> Create(const Json& config,
                                                           const CheckpointIndex& index) {
      auto reading = std::make_unique<GptqReading>();
      PTQ_RETURN_IF_ERROR(JsonInt(config, "bits").status());
      PTQ_ASSIGN_OR_RETURN(reading->default_, ParseScheme(config, {.symmetric = true}));
      PTQ_ASSIGN_OR_RETURN(const std::string older, JsonString(config, "format", "gptq"));
      PTQ_ASSIGN_OR_RETURN(const std::string layout,
                           JsonString(config, "checkpoint_format", older));
      if (layout != "gptq" && layout != "gptq_v2") {
        return absl::FailedPreconditionError("quantization_config: checkpoint_format " +
                                             Quote(layout) + " is neither gptq nor gptq_v2");
      }
      PTQ_ASSIGN_OR_RETURN(const std::string words, JsonString(config, "pack_dtype", "int32"));
      if (words != "int32") {
        return absl::FailedPreconditionError("quantization_config: pack_dtype " + Quote(words) +
                                             " is not int32");
      }
      reading->dynamic_ = config.value("dynamic", Json::object());
      if (reading->dynamic_.is_null()) reading->dynamic_ = Json::object();
      if (!reading->dynamic_.is_object()) {
        return absl::InvalidArgumentError("quantization_config: dynamic must be an object");
      }
      GptqLayout tensors{.zero_bias = layout == "gptq" ? 1 : 0, .with_index = false};
      for (const auto& [name, tensor] : index.tensors()) {
        if (absl::EndsWith(name, ".g_idx")) tensors.with_index = true;
      }
      reading->packing_ = MakeGptqPacking(kName, tensors);
      return reading;
    }

    const WeightPacking& packing() const override { return *packing_; }
    absl::StatusOr<std::optional<QuantizationScheme>> SchemeOf(
        const std::string& module) const override {
      for (const auto& [key, overrides] : dynamic_.items()) {
        const bool leave = absl::StartsWith(key, "-:");
        const std::string pattern = leave || absl::StartsWith(key, "+:") ? key.substr(2) : key;
        PTQ_ASSIGN_OR_RETURN(const bool matches, MatchesBeginning(pattern, module));
        if (!matches) continue;
        if (leave) return std::nullopt;
        return ParseScheme(overrides, default_);
      }
      return default_;
    }

   private:
    QuantizationScheme default_;
    Json dynamic_;
    std::unique_ptr<WeightPacking> packing_;
  };

  absl::StatusOr<std::unique_ptr<Reading>> Read(const Json& quantization_config,
                                                const CheckpointIndex& index) const override {
    return GptqReading::Create(quantization_config, index);
  }
};

}  // namespace

std::unique_ptr<CheckpointFormat> MakeGptqFormat() { return std::make_unique<GptqFormat>(); }

}  // namespace ptq
