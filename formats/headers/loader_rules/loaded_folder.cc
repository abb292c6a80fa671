#include "formats/headers/loader_rules/loaded_folder.h"

#include <re2/re2.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/model_files.h"
#include "formats/headers/quote.h"
#include "formats/headers/tensor_table.h"

namespace ptq {
namespace {

constexpr size_t kMostNames = 3;

absl::StatusOr<Json> ReadConfigObject(const std::string& folder) {
  const std::string path = JoinPath(folder, "config.json");
  if (!PathExists(path)) {
    return absl::InvalidArgumentError(
        "the folder holds neither config.json nor a .gguf file: it is no model");
  }
  PTQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  absl::StatusOr<Json> config = ParseJson(text);
  if (!config.ok()) return Annotate(config.status(), "config.json");
  if (!config->is_object()) return absl::InvalidArgumentError("config.json is no JSON object");
  return config;
}

// The model that config.json describes, quantized or not; nullopt for a family that is not ours.
std::optional<ModelConfig> ParseModel(Json config) {
  config.erase("quantization_config");
  std::vector<std::string> warnings;
  auto model = ParseModelConfig(DumpJson(config), &warnings);
  if (!model.ok() || !IsSupportedModelType(model->model_type)) return std::nullopt;
  return *std::move(model);
}

bool IsWeightFile(const std::string& name) { return absl::EndsWith(name, ".safetensors"); }

// Tokenizers that AutoTokenizer builds from files: fast, sentencepiece, byte-level BPE, WordPiece.
bool IsTokenizerFile(const std::string& name) {
  return name == "tokenizer.json" || name == "tokenizer.model" || name == "vocab.json" ||
         name == "vocab.txt" || name == "tekken.json" || absl::EndsWith(name, ".tiktoken");
}

// formats.md §3.2: every tensor in one shard, and no weights beside those that the index names.
// transformers takes model.safetensors before an index; vLLM's filter_duplicate_safetensors_files
// drops what the index does not name, and loads all files where there is no index.
void CheckFiles(const std::vector<std::string>& names, LoadedFolder& folder) {
  const std::vector<std::string>& used = folder.index.files();
  std::vector<std::string> stray;
  for (const std::string& name : names) {
    if (IsWeightFile(name) && std::find(used.begin(), used.end(), name) == used.end()) {
      stray.push_back(Quote(name));
    }
  }
  if (!stray.empty()) {
    folder.faults.Refuse("", absl::StrFormat("%s: weights that the index does not name, which some "
                                             "loaders read as well; remove %s",
                                             ListSome(stray, kMostNames),
                                             stray.size() == 1 ? "the file" : "the files"));
  }
}

// Whether some tensor is named "MODULE.".
bool HasParts(const CheckpointIndex& index, const std::string& module) {
  const auto first = index.tensors().lower_bound(module + ".");
  return first != index.tensors().end() && absl::StartsWith(first->first, module + ".");
}

// Every row of the model's table is there, as it is or quantized; the rest is stray. Where layers
// have faults already, what they lack is not said again.
void CheckCompleteness(const std::vector<std::string>& parts, LoadedFolder& folder) {
  if (!folder.model) return;
  const bool damaged = folder.faults.refused();
  std::set<std::string> expected(parts.begin(), parts.end());
  std::set<std::string> quantized;
  for (const QuantizedLayer& layer : folder.layers) quantized.insert(layer.module + ".weight");
  for (const TableTensor& row : BuildTensorTable(*folder.model)) {
    expected.insert(row.name);
    if (quantized.count(row.name) > 0) continue;
    const CheckpointTensor* tensor = folder.index.Find(row.name);
    if (tensor == nullptr) {
      if (damaged && HasParts(folder.index, row.module)) continue;
      folder.faults.Refuse(row.name,
                           "the model needs this tensor and no file has it; loaders would make it "
                           "up at random or refuse");
    } else {
      ExpectTensor(folder, *tensor, {DType::kBF16, DType::kF16, DType::kF32}, row.stored_shape());
    }
  }
  for (const auto& [name, tensor] : folder.index.tensors()) {
    if (expected.count(name) > 0 || absl::EndsWith(name, ".rotary_emb.inv_freq")) continue;
    folder.stray_tensors.push_back(name);
  }
}

// bitsandbytes and the methods that this project neither writes nor reads.
bool IsKnownMethod(const std::string& method) {
  return method == "none" || method == "torchao" || method == "compressed-tensors" ||
         method == "gptq" || method == "awq" || method == "auto-round";
}

// quant_method, or "" and a fault.
std::string ReadMethod(LoadedFolder& folder) {
  if (folder.quantization.is_null()) return "none";
  if (!folder.quantization.is_object()) {
    folder.faults.Refuse("config.json", "quantization_config is no JSON object");
    return "";
  }
  const auto method = folder.quantization.find("quant_method");
  // transformers' AutoQuantizationConfig.from_dict.
  if (method == folder.quantization.end() || !method->is_string()) {
    folder.faults.Refuse("config.json",
                         "quantization_config has no quant_method, by which loaders choose their "
                         "code; write it again with one of this program's formats");
    return "";
  }
  return method->get<std::string>();
}

// Codes of whose quantization config.json says nothing.
void CheckPlainTensors(LoadedFolder& folder) {
  for (const auto& [name, tensor] : folder.index.tensors()) {
    if (tensor.info.dtype == DType::kI32 || tensor.info.dtype == DType::kI8 ||
        tensor.info.dtype == DType::kU8) {
      folder.faults.Refuse("config.json",
                           "has no quantization_config, and tensors such as " + Quote(name) +
                               " are codes that only one can explain; take both from one export");
      return;
    }
  }
}

// Linear layers by the model's table; of a family that is not ours by their shapes and names.
void FindPlainLinears(LoadedFolder& folder) {
  if (folder.model) {
    for (const TableTensor& row : BuildTensorTable(*folder.model)) {
      if (row.role != TensorRole::kLinearWeight || row.block < 0) continue;
      if (folder.index.Find(row.name) != nullptr) folder.plain_linears.push_back(row.module);
    }
    return;
  }
  for (const auto& [name, tensor] : folder.index.tensors()) {
    if (!absl::EndsWith(name, "_proj.weight") || tensor.info.shape.size() != 2) continue;
    folder.plain_linears.push_back(name.substr(0, name.size() - std::string(".weight").size()));
  }
}

void ReadLayers(LoadedFolder& folder, std::vector<std::string>* parts) {
  if (folder.method == "torchao") ReadTorchaoLayers(folder, parts);
  if (folder.method == "compressed-tensors") ReadCompressedTensorsLayers(folder, parts);
  if (folder.method == "gptq" || folder.method == "awq" || folder.method == "auto-round") {
    ReadGptqLayers(folder, parts);
  }
  if (folder.method == "none") CheckPlainTensors(folder);
}

}  // namespace

absl::StatusOr<LoadedFolder> ReadLoadedFolder(const std::string& path) {
  LoadedFolder folder;
  folder.folder = path;
  PTQ_ASSIGN_OR_RETURN(folder.config, ReadConfigObject(path));
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(path));
  folder.has_tokenizer = std::any_of(names.begin(), names.end(), IsTokenizerFile);
  folder.quantization = folder.config.value("quantization_config", Json(nullptr));
  folder.model = ParseModel(folder.config);
  if (folder.model) {
    for (const TableTensor& row : BuildTensorTable(*folder.model)) {
      folder.table_shapes[row.name] = row.shape;
    }
  }
  folder.method = ReadMethod(folder);
  if (folder.faults.refused()) return folder;
  folder.known = IsKnownMethod(folder.method);
  absl::StatusOr<CheckpointIndex> index = CheckpointIndex::Open(path);
  if (!index.ok()) {
    folder.faults.Refuse("", Message(index.status()));
    return folder;
  }
  folder.index = *std::move(index);
  CheckFiles(names, folder);
  if (!folder.known) return folder;
  FindPlainLinears(folder);
  std::vector<std::string> parts;
  ReadLayers(folder, &parts);
  // A reader may have learned that it does not know these files after all.
  if (folder.known) CheckCompleteness(parts, folder);
  return folder;
}

const CheckpointTensor* FindPart(LoadedFolder& folder, const std::string& module,
                                 const std::string& part, const char* what) {
  const CheckpointTensor* tensor = folder.index.Find(module + "." + part);
  if (tensor == nullptr) {
    folder.faults.Refuse(
        module, absl::StrFormat("tensor %s (%s) is missing; write the model again", part, what));
  }
  return tensor;
}

void ExpectTensor(LoadedFolder& folder, const CheckpointTensor& tensor,
                  const std::vector<DType>& dtypes, const std::vector<int64_t>& shape) {
  if (std::find(dtypes.begin(), dtypes.end(), tensor.info.dtype) == dtypes.end()) {
    std::vector<std::string> names;
    for (const DType dtype : dtypes) names.push_back(DTypeName(dtype));
    folder.faults.Refuse(tensor.info.name,
                         absl::StrFormat("has dtype %s, where loaders expect %s",
                                         DTypeName(tensor.info.dtype), ListSome(names, 4)));
  }
  if (tensor.info.shape != shape) {
    folder.faults.Refuse(tensor.info.name,
                         absl::StrFormat("has shape %s, where the layer and "
                                         "quantization_config ask for %s",
                                         ShapeToString(tensor.info.shape), ShapeToString(shape)));
  }
}

std::optional<std::vector<int64_t>> TableShape(const LoadedFolder& folder,
                                               const std::string& module) {
  const auto found = folder.table_shapes.find(module + ".weight");
  if (found == folder.table_shapes.end() || found->second.size() != 2) return std::nullopt;
  return found->second;
}

int64_t ConfigInt(LoadedFolder& folder, const Json& object, const std::string& key,
                  int64_t otherwise) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return otherwise;
  if (found->is_number_integer()) return found->get<int64_t>();
  folder.faults.Refuse("config.json", "quantization_config: " + key + " is not an integer");
  return otherwise;
}

bool ConfigBool(LoadedFolder& folder, const Json& object, const std::string& key, bool otherwise) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return otherwise;
  if (found->is_boolean()) return found->get<bool>();
  folder.faults.Refuse("config.json", "quantization_config: " + key + " is neither true nor false");
  return otherwise;
}

std::string ConfigText(LoadedFolder& folder, const Json& object, const std::string& key,
                       const std::string& otherwise) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return otherwise;
  if (found->is_string()) return found->get<std::string>();
  folder.faults.Refuse("config.json", "quantization_config: " + key + " is not a string");
  return otherwise;
}

NamePattern::NamePattern(const std::string& pattern) {
  RE2::Options options;
  options.set_log_errors(false);
  expression_ = std::make_shared<const RE2>(pattern, options);
}

bool NamePattern::valid() const { return expression_->ok(); }

bool NamePattern::MatchesStart(const std::string& name) const {
  return valid() &&
         expression_->Match(name, 0, name.size(), RE2::ANCHOR_START, /*submatch=*/nullptr, 0);
}

}  // namespace ptq
