// torchao's tensor subclasses in safetensors: torchao/prototype/safetensors (0.18), and how
// transformers 5 reads them (quantizers/quantizer_torchao.py).
#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "formats/headers/loader_rules/loaded_folder.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

constexpr char kNames[] = "tensor_names";

// One entry of the metadata: the JSON of a parameter.
struct Entry {
  std::string type;
  Json json;
};

std::optional<Entry> ParseEntry(const std::string& text) {
  const auto json = ParseJson(text);
  if (!json.ok() || !json->is_object()) return std::nullopt;
  const auto type = json->find("_type");
  if (type == json->end() || !type->is_string()) return std::nullopt;
  return Entry{type->get<std::string>(), *json};
}

// Parameters that "tensor_names" of a file lists; nullopt if it lists none.
std::optional<std::set<std::string>> ListedNames(
    const std::map<std::string, std::string>& metadata) {
  const auto names = metadata.find(kNames);
  if (names == metadata.end()) return std::nullopt;
  const auto json = ParseJson(names->second);
  if (!json.ok() || !json->is_array() || json->empty()) return std::nullopt;
  std::set<std::string> listed;
  for (const Json& name : *json) {
    if (name.is_string()) listed.insert(name.get<std::string>());
  }
  return listed;
}

// The parameter that a stored tensor belongs to: "m._weight_qdata" is of "m.weight".
std::string ParameterOf(const std::string& tensor) {
  for (const char* part : {"_qdata", "_scale", "_zero_point", "_act_quant_scale",
                           "_act_quant_zero_point", "_act_pre_scale"}) {
    const size_t dot = tensor.rfind("._");
    if (dot == std::string::npos || !absl::EndsWith(tensor, part)) continue;
    const size_t begin = dot + 2;
    const size_t end = tensor.size() - std::string(part).size();
    if (begin < end) return tensor.substr(0, dot + 1) + tensor.substr(begin, end - begin);
  }
  return tensor;
}

// transformers merges the files' metadata, so the last file's list counts; vLLM takes each file by
// its own. Both work if every file lists every parameter (measured: formats.md §1.3).
void CheckLists(LoadedFolder& folder) {
  std::set<std::string> parameters;
  for (const auto& [name, tensor] : folder.index.tensors()) parameters.insert(ParameterOf(name));
  for (const std::string& file : folder.index.files()) {
    const auto listed = ListedNames(folder.index.metadata(file));
    if (!listed) {
      folder.faults.Refuse(file,
                           "its __metadata__ has no list \"tensor_names\", without which torchao "
                           "can't put the weights together; write the model again");
      continue;
    }
    for (const std::string& parameter : parameters) {
      if (listed->count(parameter) > 0) continue;
      folder.faults.Refuse(file,
                           "its \"tensor_names\" does not list every parameter of the model, "
                           "such as " +
                               parameter + "; every shard must list all of them");
      break;
    }
    for (const std::string& name : *listed) {
      if (folder.index.metadata(file).count(name) > 0) continue;
      folder.faults.Refuse(file, "its __metadata__ lists " + Quote(name) +
                                     " and has no entry for it; every shard must describe all "
                                     "parameters of the model");
      break;
    }
  }
}

std::string AttributeText(const Json& entry, const char* name) {
  const auto data = entry.find("_data");
  if (data == entry.end() || !data->is_object()) return "";
  const auto attribute = data->find(name);
  if (attribute == data->end() || !attribute->is_object()) return "";
  const auto value = attribute->find("_data");
  return value != attribute->end() && value->is_string() ? value->get<std::string>() : "";
}

std::optional<std::array<int64_t, 2>> BlockSize(const Json& entry) {
  const auto data = entry.find("_data");
  if (data == entry.end() || !data->is_object()) return std::nullopt;
  const auto block = data->find("block_size");
  if (block == data->end() || !block->is_array() || block->size() != 2) return std::nullopt;
  if (!(*block)[0].is_number_integer() || !(*block)[1].is_number_integer()) return std::nullopt;
  return std::array<int64_t, 2>{(*block)[0].get<int64_t>(), (*block)[1].get<int64_t>()};
}

// IntxUnpackedToInt8Tensor and Int8Tensor (formats.md §4.2).
void ReadLayer(LoadedFolder& folder, const std::string& parameter, const Entry& entry,
               std::vector<std::string>* parts) {
  const std::string module = parameter.substr(0, parameter.rfind('.'));
  if (!absl::EndsWith(parameter, ".weight")) {
    folder.faults.Refuse(parameter, "only parameters named weight can be quantized");
    return;
  }
  const CheckpointTensor* qdata = FindPart(folder, module, "_weight_qdata", "the codes");
  const CheckpointTensor* scale = FindPart(folder, module, "_weight_scale", "the scales");
  const CheckpointTensor* zeros = FindPart(folder, module, "_weight_zero_point", "the zero points");
  for (const CheckpointTensor* part : {qdata, scale, zeros}) {
    if (part == nullptr) return;
    parts->push_back(part->info.name);
  }
  QuantizedLayer layer;
  layer.module = module;
  layer.layout = entry.type == "Int8Tensor" ? Layout::kTorchaoInt8 : Layout::kTorchaoIntx;
  layer.bits = 8;
  if (layer.layout == Layout::kTorchaoIntx) {
    const std::string target = AttributeText(entry.json, "target_dtype");
    if (target.size() != 4 || target.compare(0, 3, "int") != 0 || target[3] < '1' ||
        target[3] > '8') {
      folder.faults.Refuse(parameter,
                           "its target_dtype " + Quote(target) + " is none of int1 to int8");
      return;
    }
    layer.bits = target[3] - '0';
  }
  const auto block = BlockSize(entry.json);
  if (qdata->info.shape.size() != 2 || !block || (*block)[0] <= 0 || (*block)[1] <= 0) {
    folder.faults.Refuse(parameter,
                         "its codes are not a matrix, or its block_size is not two "
                         "positive numbers; write the model again");
    return;
  }
  layer.out_features = qdata->info.shape[0];
  layer.in_features = qdata->info.shape[1];
  const auto [rows, columns] = *block;
  if (layer.out_features % rows != 0 || layer.in_features % columns != 0) {
    folder.faults.Refuse(
        parameter, absl::StrFormat("its block_size [%d, %d] does not divide %s", rows, columns,
                                   ShapeToString(qdata->info.shape)));
    return;
  }
  layer.group_size = rows > 1 ? 0 : columns == layer.in_features ? -1 : columns;
  const std::vector<int64_t> groups = {layer.out_features / rows, layer.in_features / columns};
  ExpectTensor(folder, *qdata, {DType::kI8},
               TableShape(folder, module).value_or(qdata->info.shape));
  ExpectTensor(folder, *scale, {DType::kF16, DType::kBF16, DType::kF32}, groups);
  ExpectTensor(folder, *zeros, {DType::kI8}, groups);
  folder.layers.push_back(layer);
}

// TorchAoConfig.from_dict: one key, "default", with a config object of torchao.
void CheckConfig(LoadedFolder& folder) {
  const auto type = folder.quantization.find("quant_type");
  if (type == folder.quantization.end() || !type->is_object() || type->size() != 1 ||
      !type->contains("default") || !type->at("default").is_object()) {
    folder.faults.Refuse("config.json",
                         "quantization_config: quant_type must be an object with the one key "
                         "\"default\", a config of torchao; names such as \"int4_weight_only\" "
                         "are those of transformers 4");
    return;
  }
  const Json& config = type->at("default");
  const std::string name = ConfigText(folder, config, "_type", "");
  if (name.empty()) {
    folder.faults.Refuse("config.json", "quantization_config: quant_type.default has no _type");
  }
  // IntxWeightOnlyConfig asserts on it, before any weight is read.
  if (config.contains("_data") && config.at("_data").is_object()) {
    const Json granularity = config.at("_data").value("granularity", Json(nullptr));
    if (name == "IntxWeightOnlyConfig" && granularity.is_object() &&
        granularity.value("_type", Json(nullptr)) == "PerTensor") {
      folder.faults.Refuse("config.json",
                           "quantization_config: IntxWeightOnlyConfig takes no granularity "
                           "PerTensor; the weights' own metadata says how they lie, so write "
                           "PerAxis there");
    }
  }
}

}  // namespace

void ReadTorchaoLayers(LoadedFolder& folder, std::vector<std::string>* parts) {
  CheckConfig(folder);
  CheckLists(folder);
  // Merged as transformers does.
  std::map<std::string, std::string> metadata;
  for (const std::string& file : folder.index.files()) {
    for (const auto& [key, value] : folder.index.metadata(file)) metadata[key] = value;
  }
  for (const auto& [parameter, text] : metadata) {
    if (parameter == kNames || parameter.find('.') == std::string::npos) continue;
    const auto entry = ParseEntry(text);
    if (!entry) {
      folder.faults.Refuse(parameter, "its entry in __metadata__ is no JSON object with a _type");
    } else if (entry->type == "IntxUnpackedToInt8Tensor" || entry->type == "Int8Tensor") {
      ReadLayer(folder, parameter, *entry, parts);
    } else if (entry->type != "Tensor") {
      folder.known = false;
    } else if (folder.index.Find(parameter) == nullptr) {
      folder.faults.Refuse(parameter, "__metadata__ describes this tensor and no file has it");
    }
  }
}

}  // namespace ptq
