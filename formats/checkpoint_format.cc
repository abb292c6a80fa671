#include "formats/checkpoint_format.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "formats/headers/quote.h"
#include "formats/quantized_folder.h"

namespace ptq {
namespace {

const std::vector<std::unique_ptr<CheckpointFormat>>& Registry() {
  static const auto* const formats = [] {
    auto* list = new std::vector<std::unique_ptr<CheckpointFormat>>;
    list->push_back(MakeAffineFormat());
    list->push_back(MakeAutoRoundFormat());
    list->push_back(MakeAwqFormat());
    list->push_back(MakeCompressedTensorsFormat());
    list->push_back(MakeDequantizedFormat());
    list->push_back(MakeGgufFormat());
    list->push_back(MakeGptqFormat());
    return list;
  }();
  return *formats;
}

// quant_method of configs, where it is not the format's name.
std::string FormatOf(const std::string& quant_method) {
  if (quant_method == "torchao") return "affine";
  if (quant_method == "intel/auto-round") return "auto-round";  // of its older releases
  return quant_method;
}

absl::StatusOr<bool> HasGguf(const std::string& folder) {
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(folder));
  for (const std::string& name : names) {
    if (absl::EndsWith(name, ".gguf")) return true;
  }
  return false;
}

}  // namespace

const CheckpointFormat* FindCheckpointFormat(const std::string& name) {
  for (const auto& format : Registry()) {
    if (format->name() == name) return format.get();
  }
  return nullptr;
}

absl::StatusOr<const CheckpointFormat*> DetectCheckpointFormat(const std::string& folder) {
  PTQ_ASSIGN_OR_RETURN(const bool gguf, HasGguf(folder));
  if (gguf) return FindCheckpointFormat("gguf");
  PTQ_ASSIGN_OR_RETURN(const QuantizedFolder quantized, InspectQuantizedFolder(folder));
  PTQ_ASSIGN_OR_RETURN(const std::string method,
                       JsonString(quantized.quantization_config, "quant_method",
                                  /*otherwise=*/"compressed-tensors"));
  const CheckpointFormat* format = FindCheckpointFormat(FormatOf(method));
  if (format != nullptr) return format;
  std::vector<std::string> known;
  for (const auto& entry : Registry()) known.push_back(entry->name());
  return absl::InvalidArgumentError(folder + ": quant_method " + Quote(method) +
                                    " can't be read; formats are " + absl::StrJoin(known, ", "));
}

}  // namespace ptq
