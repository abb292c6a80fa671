#include "formats/checkpoint_format.h"

#include <vector>

#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/model_files.h"
#include "formats/headers/quantized_folder.h"

// The formats that are supported, a line each.
#define PTQ_FORMATS(F) \
  F(Affine)            \
  F(AutoRound)         \
  F(Awq)               \
  F(CompressedTensors) \
  F(Dequantized)       \
  F(Gguf)              \
  F(Gptq)

namespace ptq {

// In formats/<name>_format.cc.
#define PTQ_DECLARE(NAME) std::unique_ptr<CheckpointFormat> Make##NAME##Format();
PTQ_FORMATS(PTQ_DECLARE)
#undef PTQ_DECLARE

namespace {

const std::vector<std::unique_ptr<CheckpointFormat>>& Registry() {
  static const auto* const formats = [] {
    auto* list = new std::vector<std::unique_ptr<CheckpointFormat>>;
#define PTQ_ADD(NAME) list->push_back(Make##NAME##Format());
    PTQ_FORMATS(PTQ_ADD)
#undef PTQ_ADD
    return list;
  }();
  return *formats;
}

}  // namespace

const CheckpointFormat* FindCheckpointFormat(const std::string& name) {
  for (const auto& format : Registry()) {
    if (format->name() == name) return format.get();
  }
  return nullptr;
}

absl::StatusOr<const CheckpointFormat*> DetectCheckpointFormat(const std::string& path) {
  PTQ_ASSIGN_OR_RETURN(const std::string gguf, FindGgufFile(path));
  if (!gguf.empty()) return FindCheckpointFormat("gguf");
  PTQ_ASSIGN_OR_RETURN(const QuantizedFolder quantized, InspectQuantizedFolder(path));
  const auto name = FormatOfQuantization(quantized.quantization_config);
  if (!name.ok()) return Annotate(name.status(), path);
  const CheckpointFormat* format = FindCheckpointFormat(*name);
  if (format == nullptr) return absl::InternalError("there is no format " + *name);
  return format;
}

}  // namespace ptq
