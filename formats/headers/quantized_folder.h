// A folder whose model is quantized already, seen as the model that it was.
#ifndef PTQ_FORMATS_HEADERS_QUANTIZED_FOLDER_H_
#define PTQ_FORMATS_HEADERS_QUANTIZED_FOLDER_H_

#include <functional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/json.h"
#include "formats/headers/inspect.h"

namespace ptq {

struct QuantizedFolder {
  // config.json without quantization_config, and the tensors that are in the files. A quantized
  // weight is not among them under its own name.
  CheckpointInspection model;
  Json quantization_config;  // an object
};

// The value of --format for files of this quantization_config. kInvalidArgument, listing those that
// are read, for any other quant_method.
absl::StatusOr<std::string> FormatOfQuantization(const Json& quantization_config);

// kNotFound if there is no such folder; kInvalidArgument naming file and key if config.json has no
// quantization_config or can't be read, or the files are damaged.
absl::StatusOr<QuantizedFolder> InspectQuantizedFolder(const std::string& folder);

// Every tensor of the model outside of the weights `quantized` is there, in its shape and as F32,
// F16 or BF16, and inside the blocks there is nothing but that and `parts`. kInvalidArgument naming
// the tensor.
absl::Status CheckPlainTensors(const CheckpointInspection& model,
                               const std::set<std::string>& quantized,
                               const std::set<std::string>& parts);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_QUANTIZED_FOLDER_H_
