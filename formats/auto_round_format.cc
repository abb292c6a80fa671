// The auto-round format: AutoRound's quantization_config over the tensors of GPTQ or AWQ.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "formats/awq_packing.h"
#include "formats/gptq_packing.h"
#include "formats/headers/format_rules.h"
#include "formats/headers/quote.h"
#include "formats/module_pattern.h"
#include "formats/safetensors_format.h"

namespace ptq {
namespace {

constexpr char kName[] = "auto-round";
// From so many bits on, AutoRound leaves a layer as it is.
constexpr int64_t kPlainBits = 16;

struct Packing {
  const char* name;  // config's packing_format
  AutoRoundLayout layout;
};
// The first name of a layout is what we write; the others are of older releases.
constexpr Packing kPackings[] = {{"auto_round:auto_gptq", AutoRoundLayout::kGptq},
                                 {"auto_round:auto_awq", AutoRoundLayout::kAwq},
                                 {"auto_round", AutoRoundLayout::kTrueZeros},
                                 {"auto_round:gptq", AutoRoundLayout::kGptq},
                                 {"auto_round:awq", AutoRoundLayout::kAwq},
                                 {"auto_round:gptqmodel", AutoRoundLayout::kTrueZeros}};

std::unique_ptr<WeightPacking> MakePacking(AutoRoundLayout layout, bool with_index) {
  if (layout == AutoRoundLayout::kAwq) return MakeAwqPacking(kName);
  return MakeGptqPacking(
      kName, {.zero_bias = layout == AutoRoundLayout::kGptq ? 1 : 0, .with_index = with_index});
}

Json SchemeJson(const QuantizationScheme& scheme) {
  return {{"bits", scheme.bits},
          {"group_size", scheme.group_size > 0 ? scheme.group_size : -1},
          {"sym", scheme.symmetric}};
}

class AutoRoundFormat final : public SafetensorsFormat {
 public:
  std::string name() const override { return kName; }

 protected:
  std::unique_ptr<WeightPacking> PackingFor(const ExportPlan& plan) const override {
    return MakePacking(AutoRoundLayoutOf(plan.modules), /*with_index=*/false);
  }

  FolderConfig ConfigFor(const ExportPlan& plan) const override {
    const AutoRoundLayout layout = AutoRoundLayoutOf(plan.modules);
    const QuantizationScheme common = CommonScheme(plan.modules);
    Json config = SchemeJson(common);
    config["data_type"] = "int";
    config["quant_method"] = "auto-round";
    for (const Packing& packing : kPackings) {
      if (packing.layout != layout) continue;
      config["packing_format"] = packing.name;
      break;
    }
    config["block_name_to_quantize"] = BlocksOf(plan);
    Json extra = Json::object();
    for (const std::string& module : PlainLinears(plan)) {
      extra[module] = {{"bits", kPlainBits}, {"data_type", "float"}};
    }
    for (const PlannedModule& module : plan.modules) {
      const Json own = SchemeJson(module.scheme);
      // What is outside of block_name_to_quantize must be named.
      if (own != SchemeJson(common) || module.place != ModulePlace::kBlock) {
        extra[module.module] = own;
      }
    }
    if (!extra.empty()) config["extra_config"] = std::move(extra);
    // In another dtype loaders would round the scales again.
    return {.quantization = std::move(config), .dtype = DType::kF16, .files = {}};
  }

  class AutoRoundReading final : public Reading {
   public:
    static absl::StatusOr<std::unique_ptr<Reading>> Create(const Json& config,
                                                           const CheckpointIndex& index) {
      auto reading = std::make_unique<AutoRoundReading>();
      PTQ_RETURN_IF_ERROR(JsonInt(config, "bits").status());
      PTQ_ASSIGN_OR_RETURN(const auto scheme, ParseScheme(config, {.symmetric = true}));
      if (!scheme) {
        return absl::InvalidArgumentError(
            "quantization_config: bits says that nothing is quantized");
      }
      reading->default_ = *scheme;
      PTQ_ASSIGN_OR_RETURN(const std::string name, JsonString(config, "packing_format"));
      const Packing* found = nullptr;
      for (const Packing& packing : kPackings) {
        if (name == packing.name) found = &packing;
      }
      if (found == nullptr) {
        return absl::FailedPreconditionError(
            "quantization_config: packing_format " + Quote(name) +
            " holds no integer weights that records can; known are auto_round:auto_gptq, "
            "auto_round:auto_awq and auto_round");
      }
      bool with_index = false;
      for (const auto& [tensor, entry] : index.tensors()) {
        with_index |= absl::EndsWith(tensor, ".g_idx");
      }
      reading->packing_ = MakePacking(found->layout, with_index);
      reading->extra_ = config.value("extra_config", Json::object());
      if (!reading->extra_.is_object()) reading->extra_ = Json::object();
      return reading;
    }

    const WeightPacking& packing() const override { return *packing_; }
    absl::StatusOr<std::optional<QuantizationScheme>> SchemeOf(
        const std::string& module) const override {
      if (const auto own = extra_.find(module); own != extra_.end()) {
        return ParseScheme(*own, default_);
      }
      for (const auto& [pattern, overrides] : extra_.items()) {
        PTQ_ASSIGN_OR_RETURN(const bool matches, MatchesAnywhere(pattern, module));
        if (matches) return ParseScheme(overrides, default_);
      }
      return default_;
    }

   private:
    static absl::StatusOr<std::optional<QuantizationScheme>> ParseScheme(
        const Json& json, QuantizationScheme scheme) {
      PTQ_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(json, "bits", scheme.bits));
      if (bits >= kPlainBits) return std::nullopt;
      for (const char* key : {"act_bits", "super_bits", "super_group_size", "rotation_config"}) {
        const Json value = json.value(key, Json());
        const bool wide = std::string(key) == "act_bits" && value.is_number_integer() &&
                          value.get<int64_t>() >= kPlainBits;
        if (value.is_null() || wide) continue;
        return absl::FailedPreconditionError(absl::StrCat(
            "quantization_config: ", key, " is ", DumpJson(value), ", which no record holds"));
      }
      PTQ_ASSIGN_OR_RETURN(const std::string type, JsonString(json, "data_type", "int"));
      if (!absl::StartsWith(type, "int")) {
        return absl::FailedPreconditionError("quantization_config: data_type " + Quote(type) +
                                             " is not int");
      }
      scheme.bits = static_cast<int>(bits);
      PTQ_ASSIGN_OR_RETURN(scheme.group_size, JsonInt(json, "group_size", scheme.group_size));
      PTQ_ASSIGN_OR_RETURN(scheme.symmetric, JsonBool(json, "sym", scheme.symmetric));
      if (scheme.group_size <= 0) scheme.group_size = QuantizationScheme::kPerChannel;
      return scheme;
    }

    QuantizationScheme default_;
    Json extra_;
    std::unique_ptr<WeightPacking> packing_;
  };

  absl::StatusOr<std::unique_ptr<Reading>> Read(const Json& quantization_config,
                                                const CheckpointIndex& index) const override {
    return AutoRoundReading::Create(quantization_config, index);
  }

 private:
  // "model.layers": what the names of all blocks begin with.
  static std::string BlocksOf(const ExportPlan& plan) {
    const auto in_block = std::find_if(
        plan.modules.begin(), plan.modules.end(),
        [](const PlannedModule& module) { return module.place == ModulePlace::kBlock; });
    if (in_block == plan.modules.end()) return "";
    const std::string& module = in_block->module;
    size_t digit = module.find_first_of("0123456789");
    while (digit != std::string::npos && (digit == 0 || module[digit - 1] != '.')) {
      digit = module.find_first_of("0123456789", digit + 1);
    }
    return digit == std::string::npos ? "" : module.substr(0, digit - 1);
  }
};

}  // namespace

std::unique_ptr<CheckpointFormat> MakeAutoRoundFormat() {
  return std::make_unique<AutoRoundFormat>();
}

}  // namespace ptq
