#include "formats/headers/loader_rules/quantized_model.h"

#include <utility>

#include "absl/strings/match.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/checkpoint_index.h"
#include "formats/headers/format_rules.h"
#include "formats/headers/loader_rules/gguf_header.h"
#include "formats/headers/loader_rules/loaded_folder.h"
#include "formats/headers/model_files.h"
#include "formats/headers/quantized_folder.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

absl::StatusOr<QuantizedModel> InspectGguf(const std::string& path) {
  PTQ_ASSIGN_OR_RETURN(const ReadableFile file, ReadableFile::Open(path));
  const absl::StatusOr<GgufHeader> header = ReadGgufHeader(file);
  if (!header.ok()) return Annotate(header.status(), path);
  QuantizedModel model;
  model.format = "gguf";
  model.architecture = header->Text("general.architecture");
  if (model.architecture.empty()) {
    return absl::InvalidArgumentError(path + ": there is no key general.architecture");
  }
  const std::string key = model.architecture + ".block_count";
  const auto blocks = header->Integer(key);
  if (!blocks || *blocks < 1 || *blocks > 100'000) {
    return absl::InvalidArgumentError(path + ": there is no usable key " + Quote(key));
  }
  model.block_count = *blocks;
  model.tensor_count = static_cast<int64_t>(header->tensors.size());
  return model;
}

// A folder with faults is judged by whoever reads its weights.
std::vector<PlannedModule> PlannedModules(const std::string& folder) {
  std::vector<PlannedModule> modules;
  const absl::StatusOr<LoadedFolder> loaded = ReadLoadedFolder(folder);
  if (!loaded.ok() || !loaded->known || loaded->faults.refused()) return modules;
  for (const QuantizedLayer& layer : loaded->layers) {
    PlannedModule module;
    module.module = layer.module;
    module.out_features = layer.out_features;
    module.in_features = layer.in_features;
    module.scheme.bits = layer.bits;
    module.scheme.group_size = layer.group_size;
    module.scheme.symmetric = layer.symmetric;
    modules.push_back(std::move(module));
  }
  return modules;
}

}  // namespace

bool SaysQuantized(const std::string& path) {
  const absl::StatusOr<std::string> gguf = FindGgufFile(path);
  if (!gguf.ok()) return true;  // several of them
  if (!gguf->empty()) return true;
  const auto text = ReadFile(JoinPath(path, "config.json"), kMaxConfigBytes);
  if (!text.ok()) return false;
  const auto config = ParseJson(*text);
  return config.ok() && config->is_object() &&
         (config->contains("quantization_config") || config->contains("compression_config"));
}

absl::StatusOr<QuantizedModel> InspectQuantizedModel(const std::string& path) {
  PTQ_ASSIGN_OR_RETURN(const std::string gguf, FindGgufFile(path));
  if (!gguf.empty()) return InspectGguf(gguf);
  PTQ_ASSIGN_OR_RETURN(QuantizedFolder folder, InspectQuantizedFolder(path));
  QuantizedModel model;
  PTQ_ASSIGN_OR_RETURN(model.format, FormatOfQuantization(folder.quantization_config));
  model.architecture = folder.model.config.architecture;
  model.block_count = folder.model.config.num_hidden_layers;
  model.tensor_count = static_cast<int64_t>(folder.model.index.tensors().size());
  model.warnings = std::move(folder.model.warnings);
  model.modules = PlannedModules(path);
  return model;
}

absl::Status CheckConversion(const QuantizedModel& model, const std::vector<std::string>& formats) {
  if (model.modules.empty()) return absl::OkStatus();
  for (const std::string& format : formats) {
    PTQ_RETURN_IF_ERROR(CheckFormatHolds(format, model.modules));
  }
  return absl::OkStatus();
}

}  // namespace ptq
