// compressed-tensors' pack-quantized folders (compressed-tensors 0.20: quantization/quant_args.py,
// quant_scheme.py, compressors/pack_quantized).
#include <algorithm>
#include <array>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "formats/headers/loader_rules/loaded_folder.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

constexpr char kPacked[] = ".weight_packed";

// A name, a pattern ("re:...") or a class, as targets and ignore have them.
struct Target {
  std::string name;
  std::optional<NamePattern> pattern;
};

std::vector<Target> ReadTargets(LoadedFolder& folder, const Json& object, const char* key) {
  std::vector<Target> targets;
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return targets;
  if (!found->is_array()) {
    folder.faults.Refuse("config.json",
                         std::string("quantization_config: ") + key + " is not a list");
    return targets;
  }
  for (const Json& item : *found) {
    if (!item.is_string()) continue;
    Target& target = targets.emplace_back(Target{item.get<std::string>(), std::nullopt});
    if (!absl::StartsWith(target.name, "re:")) continue;
    target.pattern.emplace(target.name.substr(3));
    if (!target.pattern->valid()) folder.known = false;
  }
  return targets;
}

bool MatchesName(const std::vector<Target>& targets, const std::string& module) {
  return std::any_of(targets.begin(), targets.end(), [&](const Target& target) {
    return target.pattern ? target.pattern->MatchesStart(module) : target.name == module;
  });
}

bool MatchesClass(const std::vector<Target>& targets) {
  return std::any_of(targets.begin(), targets.end(),
                     [](const Target& target) { return target.name == "Linear"; });
}

struct Group {
  std::string name;
  std::vector<Target> targets;
  int bits = 0;
  int64_t group_size = -1;
  bool symmetric = true;
};

// Both objects are pydantic models that forbid unknown keys.
void CheckKeys(LoadedFolder& folder, const std::string& where, const Json& object,
               const std::vector<std::string>& known) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    folder.faults.Refuse("config.json", "quantization_config: " + where + " has the key " +
                                            Quote(key) +
                                            ", which compressed-tensors does not know and refuses");
  }
}

// QuantizationArgs.validate_model_after.
void ReadStrategy(LoadedFolder& folder, const Json& weights, Group* group) {
  const std::string where = "quantization_config: " + group->name;
  const int64_t size = ConfigInt(folder, weights, "group_size", 0);
  const bool sized = weights.contains("group_size") && !weights.at("group_size").is_null();
  std::string strategy = ConfigText(folder, weights, "strategy", "");
  if (strategy.empty()) strategy = !sized ? "tensor" : size == -1 ? "channel" : "group";
  if (strategy == "group") {
    group->group_size = size;
    if (size > 0) return;
    folder.faults.Refuse("config.json", where + ": strategy group needs a positive group_size");
  } else if (strategy == "channel" || strategy == "tensor") {
    group->group_size = strategy == "channel" ? -1 : 0;
    if (!sized || size <= 0) return;
    folder.faults.Refuse("config.json",
                         where + ": group_size needs the strategy group, and it is " + strategy);
  } else {
    folder.known = false;
  }
}

std::optional<Group> ReadGroup(LoadedFolder& folder, const std::string& name, const Json& json) {
  if (!json.is_object()) {
    folder.faults.Refuse("config.json", "quantization_config: " + name + " is no JSON object");
    return std::nullopt;
  }
  CheckKeys(folder, name, json,
            {"targets", "weights", "input_activations", "output_activations", "format"});
  Group group;
  group.name = name;
  group.targets = ReadTargets(folder, json, "targets");
  const Json weights = json.value("weights", Json(nullptr));
  // Activations that are quantized too, and formats beside pack-quantized, are not known here.
  const std::string format =
      ConfigText(folder, json, "format", ConfigText(folder, folder.quantization, "format", ""));
  const Json activations = json.value("input_activations", Json(nullptr));
  if (!weights.is_object() || format != "pack-quantized" || !activations.is_null()) {
    folder.known = false;
    return std::nullopt;
  }
  CheckKeys(folder, name + ".weights", weights,
            {"num_bits", "type", "symmetric", "group_size", "strategy", "block_structure",
             "dynamic", "actorder", "scale_dtype", "zp_dtype", "observer", "observer_kwargs"});
  group.bits = static_cast<int>(ConfigInt(folder, weights, "num_bits", 8));
  group.symmetric = ConfigBool(folder, weights, "symmetric", true);
  ReadStrategy(folder, weights, &group);
  if (group.bits < 1 || group.bits > 8 || ConfigText(folder, weights, "type", "int") != "int") {
    folder.faults.Refuse("config.json", "quantization_config: " + name +
                                            ": pack-quantized holds integers of 1 to 8 bits");
    return std::nullopt;
  }
  // validate_actorder: the group order with a weight_g_idx was removed in 0.20.
  const Json order = weights.value("actorder", Json(nullptr));
  if (order == "group" || order == "dynamic" || order == true) {
    folder.faults.Refuse("config.json", "quantization_config: " + name +
                                            ": actorder group is no longer read; quantize without "
                                            "it, or write gptq");
  }
  return group;
}

// Names before classes, as vLLM's find_matched_target and compressed-tensors' match_targets do.
const Group* GroupOf(const std::vector<Group>& groups, const std::string& module) {
  for (const Group& group : groups) {
    if (MatchesName(group.targets, module)) return &group;
  }
  for (const Group& group : groups) {
    if (MatchesClass(group.targets)) return &group;
  }
  return nullptr;
}

int64_t Words(int64_t elements, int bits) { return (elements * bits + 31) / 32; }

void ReadLayer(LoadedFolder& folder, const std::string& module, const Group& group,
               std::vector<std::string>* parts) {
  const CheckpointTensor* packed = FindPart(folder, module, "weight_packed", "the codes");
  const CheckpointTensor* scale = FindPart(folder, module, "weight_scale", "the scales");
  // vLLM's CompressedTensorsWNA16 registers it, and the library unpacks by it.
  const CheckpointTensor* shape = FindPart(folder, module, "weight_shape", "the layer's shape");
  const CheckpointTensor* zeros =
      group.symmetric ? nullptr
                      : FindPart(folder, module, "weight_zero_point", "asymmetric zero points");
  if (packed == nullptr || scale == nullptr || shape == nullptr) return;
  if (!group.symmetric && zeros == nullptr) return;
  for (const CheckpointTensor* part : {packed, scale, shape, zeros}) {
    if (part != nullptr) parts->push_back(part->info.name);
  }
  if (packed->info.shape.size() != 2 || scale->info.shape.size() != 2) {
    folder.faults.Refuse(module, "weight_packed and weight_scale must be matrices");
    return;
  }
  QuantizedLayer layer;
  layer.module = module;
  layer.layout = Layout::kCompressedTensors;
  layer.bits = group.bits;
  layer.group_size = group.group_size;
  layer.symmetric = group.symmetric;
  layer.out_features = packed->info.shape[0];
  layer.in_features = layer.group_size > 0 ? scale->info.shape[1] * layer.group_size
                                           : packed->info.shape[1] * 32 / layer.bits;
  if (const auto table = TableShape(folder, module)) {
    layer.out_features = (*table)[0];
    layer.in_features = (*table)[1];
  }
  if (layer.group_size > 0 && layer.in_features % layer.group_size != 0) {
    folder.faults.Refuse(module, absl::StrFormat("group_size %d does not divide in_features %d",
                                                 layer.group_size, layer.in_features));
    return;
  }
  const int64_t groups = layer.group_size > 0 ? layer.in_features / layer.group_size : 1;
  const int64_t rows = layer.group_size == 0 ? 1 : layer.out_features;
  ExpectTensor(folder, *packed, {DType::kI32},
               {layer.out_features, Words(layer.in_features, layer.bits)});
  ExpectTensor(folder, *scale, {DType::kF16, DType::kBF16, DType::kF32}, {rows, groups});
  ExpectTensor(folder, *shape, {DType::kI64}, {2});
  if (zeros != nullptr) {
    ExpectTensor(folder, *zeros, {DType::kI32}, {Words(rows, layer.bits), groups});
  }
  folder.layers.push_back(layer);
}

}  // namespace

void ReadCompressedTensorsLayers(LoadedFolder& folder, std::vector<std::string>* parts) {
  const auto config_groups = folder.quantization.find("config_groups");
  if (config_groups == folder.quantization.end() || !config_groups->is_object() ||
      config_groups->empty()) {
    folder.faults.Refuse("config.json",
                         "quantization_config has no config_groups; write the model "
                         "again");
    return;
  }
  std::vector<Group> groups;
  for (const auto& [name, json] : config_groups->items()) {
    if (auto group = ReadGroup(folder, name, json)) groups.push_back(*std::move(group));
  }
  const std::vector<Target> ignore = ReadTargets(folder, folder.quantization, "ignore");
  if (!folder.known || folder.faults.refused()) return;
  for (const auto& [name, tensor] : folder.index.tensors()) {
    if (!absl::EndsWith(name, kPacked)) continue;
    const std::string module = name.substr(0, name.size() - std::string(kPacked).size());
    const Group* group = GroupOf(groups, module);
    if (group == nullptr || MatchesName(ignore, module)) {
      folder.faults.Refuse(module, group == nullptr
                                       ? "is packed, and no group of quantization_config targets it"
                                       : "is packed, and quantization_config ignores it");
      continue;
    }
    ReadLayer(folder, module, *group, parts);
  }
  std::vector<std::string> plain = folder.plain_linears;
  if (folder.index.Find("lm_head.weight") != nullptr) plain.push_back("lm_head");
  for (const std::string& module : plain) {
    if (GroupOf(groups, module) == nullptr || MatchesName(ignore, module)) continue;
    folder.faults.Refuse(module,
                         "is not quantized, but a group of quantization_config targets it; add it "
                         "to \"ignore\"");
  }
}

}  // namespace ptq
