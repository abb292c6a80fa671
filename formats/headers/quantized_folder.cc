#include "formats/headers/quantized_folder.h"

#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/model_files.h"
#include "formats/headers/quote.h"
#include "formats/headers/tensor_table.h"

namespace ptq {
namespace {

absl::Status CheckPlain(const TableTensor& expected, const CheckpointTensor* found) {
  if (found == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", expected.name,
        expected.role == TensorRole::kHead
            ? " is missing, and so is a quantized head in its place"
            : " is missing from the checkpoint, and no quantized weight takes its place"));
  }
  const DType dtype = found->info.dtype;
  if (dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBF16) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: tensor %s has dtype %s; F32, F16 and BF16 are supported", found->file,
                        expected.name, DTypeName(dtype)));
  }
  if (found->info.shape != expected.shape) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: tensor %s has shape %s, but config.json asks for %s", found->file, expected.name,
        ShapeToString(found->info.shape), ShapeToString(expected.shape)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> FormatOfQuantization(const Json& quantization_config) {
  PTQ_ASSIGN_OR_RETURN(const std::string method, JsonString(quantization_config, "quant_method",
                                                            /*otherwise=*/"compressed-tensors"));
  if (method == "torchao") return "affine";
  if (method == "intel/auto-round") return "auto-round";  // of its older releases
  for (const char* format : {"auto-round", "awq", "compressed-tensors", "gptq"}) {
    if (method == format) return method;
  }
  return absl::InvalidArgumentError("quant_method " + Quote(method) +
                                    " can't be read; torchao, auto-round, awq, compressed-tensors, "
                                    "gptq and .gguf files can");
}

absl::StatusOr<QuantizedFolder> InspectQuantizedFolder(const std::string& folder) {
  if (!IsDirectory(folder)) {
    return absl::NotFoundError("the folder " + Quote(folder) + " does not exist");
  }
  const std::string path = JoinPath(folder, "config.json");
  if (!PathExists(path)) {
    return absl::InvalidArgumentError("config.json is missing from " + Quote(folder));
  }
  PTQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  auto json = ParseJson(text);
  if (!json.ok()) return Annotate(json.status(), path);
  QuantizedFolder result;
  if (json->is_object()) {
    for (const char* key : {"quantization_config", "compression_config"}) {
      if (result.quantization_config.is_null()) {
        result.quantization_config = json->value(key, Json());
      }
      json->erase(key);
    }
  }
  if (!result.quantization_config.is_object()) {
    return absl::InvalidArgumentError(
        path + " has no quantization_config: the folder holds no quantized model");
  }
  PTQ_ASSIGN_OR_RETURN(result.model.config,
                       ParseModelConfig(DumpJson(*json), &result.model.warnings));
  PTQ_ASSIGN_OR_RETURN(result.model.index, CheckpointIndex::Open(folder));
  result.model.has_tokenizer = PathExists(JoinPath(folder, "tokenizer.json"));
  return result;
}

absl::Status CheckPlainTensors(const CheckpointInspection& model,
                               const std::set<std::string>& quantized,
                               const std::set<std::string>& parts) {
  std::set<std::string> modules;  // of the blocks
  for (const TableTensor& expected : BuildTensorTable(model.config)) {
    if (expected.block >= 0) modules.insert(expected.module);
    if (quantized.contains(expected.name)) continue;
    PTQ_RETURN_IF_ERROR(CheckPlain(expected, model.index.Find(expected.name)));
  }
  for (const auto& [name, tensor] : model.index.tensors()) {
    if (parts.contains(name)) continue;
    const bool plain = absl::EndsWith(name, ".weight") || absl::EndsWith(name, ".bias");
    if (plain || !modules.contains(name.substr(0, name.rfind('.')))) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: tensor %s is neither part of the model nor of its quantized weights as "
        "quantization_config describes them",
        tensor.file, Quote(name)));
  }
  return absl::OkStatus();
}

}  // namespace ptq
