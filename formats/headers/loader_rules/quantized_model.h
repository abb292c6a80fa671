// A quantized model as the input of a conversion: all that headers and JSON tell, before any weight
// is read.
#ifndef PTQ_FORMATS_HEADERS_LOADER_RULES_QUANTIZED_MODEL_H_
#define PTQ_FORMATS_HEADERS_LOADER_RULES_QUANTIZED_MODEL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "formats/headers/planned_module.h"

namespace ptq {

struct QuantizedModel {
  std::string format;        // "gptq": as --format names it
  std::string architecture;  // of config.json; of a .gguf file llama.cpp's name of it
  int64_t block_count = 0;
  int64_t tensor_count = 0;
  std::vector<std::string> warnings;
  // The quantized layers; empty where names and shapes don't tell their schemes.
  std::vector<PlannedModule> modules;
};

// Whether `path`, a folder or a .gguf file, says that its weights are quantized. Errors of reading
// config.json are left to whoever reads all of it: false.
bool SaysQuantized(const std::string& path);

// kNotFound, kInvalidArgument or kUnimplemented, naming file and key: nothing is quantized there,
// not in a format that is read, or the files are damaged.
absl::StatusOr<QuantizedModel> InspectQuantizedModel(const std::string& path);

// Whether the formats can hold the layers, as far as that is known before the records are read:
// kFailedPrecondition (format_rules.h).
absl::Status CheckConversion(const QuantizedModel& model, const std::vector<std::string>& formats);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_LOADER_RULES_QUANTIZED_MODEL_H_
