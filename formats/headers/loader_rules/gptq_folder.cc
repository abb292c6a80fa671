// GPTQ's, AWQ's and auto-round's packed integers: AutoGPTQ and GPTQModel, AutoAWQ's WQLinear_GEMM,
// auto_round/export (0.16).
#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "formats/headers/loader_rules/fused_sets.h"
#include "formats/headers/loader_rules/loaded_folder.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

constexpr char kCodes[] = ".qweight";

struct Scheme {
  int64_t bits = 4;
  int64_t group_size = 128;
  bool symmetric = true;
  bool quantized = true;
};

// What overrides the config's scheme for some modules: GPTQModel's `dynamic`, auto-round's
// `extra_config`, AWQ's modules_to_not_convert.
struct Override {
  std::string name;                    // compared whole ...
  std::optional<NamePattern> pattern;  // ... or matched,
  std::string part;                    // or looked for in the module's name
  bool skip = false;
  Json settings = Json::object();
};

bool Applies(const Override& override, const std::string& module) {
  if (override.pattern) return override.pattern->MatchesStart(module);
  if (!override.part.empty()) return absl::StrContains(module, override.part);
  return override.name == module;
}

// GPTQModel's QuantizeConfig.dynamic: "+:regex" changes settings, "-:regex" leaves unquantized.
std::vector<Override> ReadDynamic(LoadedFolder& folder) {
  std::vector<Override> overrides;
  const Json dynamic = folder.quantization.value("dynamic", Json(nullptr));
  if (!dynamic.is_object()) return overrides;
  for (const auto& [key, settings] : dynamic.items()) {
    Override& override = overrides.emplace_back();
    override.skip = absl::StartsWith(key, "-:");
    const bool prefixed = override.skip || absl::StartsWith(key, "+:");
    override.pattern.emplace(prefixed ? key.substr(2) : key);
    if (!override.pattern->valid()) folder.known = false;
    if (settings.is_object()) override.settings = settings;
  }
  return overrides;
}

// auto-round's extra_config: names, and since 0.8 patterns; bits of 16 and more: left alone.
std::vector<Override> ReadExtraConfig(LoadedFolder& folder) {
  std::vector<Override> overrides;
  const Json extra = folder.quantization.value("extra_config", Json(nullptr));
  if (!extra.is_object()) return overrides;
  for (const auto& [key, settings] : extra.items()) {
    Override& override = overrides.emplace_back();
    override.name = key;
    if (key.find_first_of("*+?^$()[]{}|\\") != std::string::npos) {
      // Looked for anywhere in the name, as vLLM's INCConfigParser and auto-round do.
      override.pattern.emplace(".*(?:" + key + ")");
      if (!override.pattern->valid()) folder.known = false;
    }
    if (settings.is_object()) override.settings = settings;
  }
  return overrides;
}

// vLLM's and transformers' should_convert_module look for the entries anywhere in a name.
std::vector<Override> ReadSkippedModules(LoadedFolder& folder) {
  std::vector<Override> overrides;
  const Json skipped = folder.quantization.value("modules_to_not_convert", Json(nullptr));
  if (!skipped.is_array()) return overrides;
  for (const Json& part : skipped) {
    if (!part.is_string()) continue;
    Override& override = overrides.emplace_back();
    override.part = part.get<std::string>();
    override.skip = true;
  }
  return overrides;
}

Scheme SchemeOf(LoadedFolder& folder, const Scheme& base, const std::vector<Override>& overrides,
                const std::string& module) {
  Scheme scheme = base;
  for (const Override& override : overrides) {
    if (!Applies(override, module)) continue;
    scheme.bits = ConfigInt(folder, override.settings, "bits", base.bits);
    scheme.group_size = ConfigInt(folder, override.settings, "group_size", base.group_size);
    scheme.symmetric = ConfigBool(folder, override.settings, "sym", base.symmetric);
    scheme.quantized = !override.skip && scheme.bits < 16;
    break;
  }
  return scheme;
}

// What `packing` or the method says of the layout; nullopt for packings that are not known here.
std::optional<Layout> LayoutOf(LoadedFolder& folder) {
  if (folder.method == "awq") {
    const std::string version = ConfigText(folder, folder.quantization, "version", "gemm");
    return version == "gemm" || version == "GEMM" ? std::make_optional(Layout::kAwq) : std::nullopt;
  }
  if (folder.method == "gptq") {
    const std::string format =
        ConfigText(folder, folder.quantization, "checkpoint_format",
                   ConfigText(folder, folder.quantization, "format", "gptq"));
    if (format == "gptq") return Layout::kGptq;
    if (format == "gptq_v2") return Layout::kGptqTrueZeros;
    return std::nullopt;
  }
  const std::string packing =
      ConfigText(folder, folder.quantization, "packing_format", "auto_round:auto_gptq");
  if (packing == "auto_round:auto_gptq" || packing == "auto_round:gptq") return Layout::kGptq;
  if (packing == "auto_round" || packing == "auto_round:gptqmodel") return Layout::kGptqTrueZeros;
  if (packing == "auto_round:auto_awq" || packing == "auto_round:awq") return Layout::kAwq;
  return std::nullopt;
}

std::optional<Scheme> ReadBase(LoadedFolder& folder) {
  const Json& config = folder.quantization;
  Scheme base;
  // AutoAWQ's own spelling of the keys.
  base.bits = ConfigInt(folder, config, config.contains("w_bit") ? "w_bit" : "bits", 0);
  base.group_size =
      ConfigInt(folder, config, config.contains("q_group_size") ? "q_group_size" : "group_size", 0);
  base.symmetric = folder.method == "awq" ? !ConfigBool(folder, config, "zero_point", true)
                                          : ConfigBool(folder, config, "sym", true);
  if (base.bits == 0 || base.group_size == 0) {
    folder.faults.Refuse("config.json",
                         "quantization_config must have bits and group_size, and no 0 in them");
    return std::nullopt;
  }
  return base;
}

struct Parts {
  const CheckpointTensor* codes;
  const CheckpointTensor* zeros;
  const CheckpointTensor* scales;
};

std::optional<Parts> FindParts(LoadedFolder& folder, const std::string& module,
                               std::vector<std::string>* parts) {
  const Parts found = {FindPart(folder, module, "qweight", "the codes"),
                       FindPart(folder, module, "qzeros", "the zero points"),
                       FindPart(folder, module, "scales", "the scales")};
  for (const CheckpointTensor* part : {found.codes, found.zeros, found.scales}) {
    if (part == nullptr) return std::nullopt;
    parts->push_back(part->info.name);
  }
  if (found.codes->info.shape.size() == 2) return found;
  folder.faults.Refuse(module, "its qweight is not a matrix");
  return std::nullopt;
}

void ReadLayer(LoadedFolder& folder, Layout layout, const Scheme& scheme, const std::string& module,
               std::vector<std::string>* parts) {
  const auto found = FindParts(folder, module, parts);
  if (!found) return;
  const std::vector<int64_t>& codes = found->codes->info.shape;
  QuantizedLayer layer{
      module,          layout, codes[1], codes[0], static_cast<int>(scheme.bits), scheme.group_size,
      scheme.symmetric};
  if (scheme.bits < 1 || scheme.bits > 8 || scheme.group_size < -1) {
    folder.faults.Refuse(module,
                         "quantization_config gives it bits or a group_size that no "
                         "loader knows");
    return;
  }
  // GPTQ packs along the inputs, AWQ along the outputs.
  if (layout == Layout::kAwq) {
    layer.out_features = codes[1] * 32 / layer.bits;
  } else {
    layer.in_features = codes[0] * 32 / layer.bits;
  }
  if (const auto table = TableShape(folder, module)) {
    layer.out_features = (*table)[0];
    layer.in_features = (*table)[1];
  }
  const int64_t group = layer.group_size > 0 ? layer.group_size : layer.in_features;
  if (group == 0 || layer.in_features % group != 0) {
    folder.faults.Refuse(module, absl::StrFormat("group_size %d does not divide in_features %d",
                                                 layer.group_size, layer.in_features));
    return;
  }
  const int64_t groups = layer.in_features / group;
  const int64_t words = layer.out_features * layer.bits / 32;
  ExpectTensor(folder, *found->codes, {DType::kI32},
               layout == Layout::kAwq
                   ? std::vector<int64_t>{layer.in_features, words}
                   : std::vector<int64_t>{layer.in_features * layer.bits / 32, layer.out_features});
  ExpectTensor(folder, *found->zeros, {DType::kI32}, {groups, words});
  ExpectTensor(folder, *found->scales, {DType::kF16, DType::kBF16, DType::kF32},
               {groups, layer.out_features});
  if (const CheckpointTensor* index = folder.index.Find(module + ".g_idx"); index != nullptr) {
    parts->push_back(index->info.name);
    ExpectTensor(folder, *index, {DType::kI32}, {layer.in_features});
  }
  folder.layers.push_back(layer);
}

std::vector<Override> ReadOverrides(LoadedFolder& folder) {
  if (folder.method == "gptq") return ReadDynamic(folder);
  if (folder.method == "awq") return ReadSkippedModules(folder);
  return ReadExtraConfig(folder);
}

// auto-round quantizes what begins with one of these; no list: everything but the head.
bool OutsideOfBlocks(LoadedFolder& folder, const std::string& module) {
  if (folder.method != "auto-round") return false;
  const Json names = folder.quantization.value("block_name_to_quantize", Json(nullptr));
  std::vector<std::string> blocks;
  if (names.is_string()) blocks = absl::StrSplit(names.get<std::string>(), ',');
  if (names.is_array()) {
    for (const Json& name : names) {
      if (name.is_string()) blocks.push_back(name.get<std::string>());
    }
  }
  return !blocks.empty() &&
         std::none_of(blocks.begin(), blocks.end(), [&module](const std::string& block) {
           return absl::StartsWith(module, block);
         });
}

// What lies outside of the blocks has to be named: GPTQ's head by the key lm_head, auto-round's by
// its extra_config. AWQ's loaders know no such layers.
bool NamesOutside(LoadedFolder& folder, const std::vector<Override>& overrides,
                  const std::string& module) {
  if (!IsOutsideOfBlocks(module)) return true;
  if (folder.method == "gptq") return ConfigBool(folder, folder.quantization, "lm_head", false);
  return folder.method == "auto-round" &&
         std::any_of(overrides.begin(), overrides.end(),
                     [&module](const Override& override) { return Applies(override, module); });
}

}  // namespace

void ReadGptqLayers(LoadedFolder& folder, std::vector<std::string>* parts) {
  const auto layout = LayoutOf(folder);
  if (!layout || ConfigText(folder, folder.quantization, "data_type", "int") != "int") {
    folder.known = false;
    return;
  }
  const auto base = ReadBase(folder);
  if (!base) return;
  const std::vector<Override> overrides = ReadOverrides(folder);
  if (!folder.known) return;
  for (const auto& [name, tensor] : folder.index.tensors()) {
    if (!absl::EndsWith(name, kCodes)) continue;
    const std::string module = name.substr(0, name.size() - std::string(kCodes).size());
    const Scheme scheme = SchemeOf(folder, *base, overrides, module);
    if (!scheme.quantized || !NamesOutside(folder, overrides, module)) {
      folder.faults.Refuse(module,
                           "is packed, and quantization_config says that it is not quantized");
      continue;
    }
    ReadLayer(folder, *layout, scheme, module, parts);
  }
  for (const std::string& module : folder.plain_linears) {
    if (OutsideOfBlocks(folder, module)) continue;
    if (!SchemeOf(folder, *base, overrides, module).quantized) continue;
    folder.unlisted_plain.push_back(module);
    if (folder.method != "auto-round") continue;  // other methods' loaders differ in it
    folder.faults.Refuse(module,
                         "is not quantized, and quantization_config does not say so; add it to "
                         "\"extra_config\" with \"bits\": 16");
  }
}

}  // namespace ptq
