// A folder of quantized safetensors as every loader finds it: config.json, the files' headers, and
// the linear layers that their names make up. What is wrong with it whoever loads it is found here.
#ifndef PTQ_FORMATS_HEADERS_LOADER_RULES_LOADED_FOLDER_H_
#define PTQ_FORMATS_HEADERS_LOADER_RULES_LOADED_FOLDER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/json.h"
#include "formats/headers/checkpoint_index.h"
#include "formats/headers/loader_rules/findings.h"
#include "formats/headers/model_config.h"

namespace re2 {
class RE2;
}  // namespace re2

namespace ptq {

// How a layer's codes, scales and zero points lie in tensors.
enum class Layout {
  kTorchaoIntx,        // IntxUnpackedToInt8Tensor
  kTorchaoInt8,        // Int8Tensor
  kCompressedTensors,  // pack-quantized
  kGptq,               // GPTQ v1: zero points less one
  kGptqTrueZeros,      // GPTQ v2, and auto-round's own packing
  kAwq,                // AWQ's GEMM order
};

struct QuantizedLayer {
  std::string module;  // "model.layers.0.mlp.down_proj"
  Layout layout = Layout::kCompressedTensors;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int bits = 4;
  int64_t group_size = 128;  // QuantizationScheme's: -1 one group a row, 0 one a tensor
  bool symmetric = true;
};

struct LoadedFolder {
  std::string folder;
  Json config;         // of config.json
  Json quantization;   // its quantization_config, or null
  std::string method;  // quant_method; "none" without a quantization_config
  bool known = true;   // false: a method whose rules are not known here
  CheckpointIndex index;
  std::optional<ModelConfig> model;                          // if its family is one of ours
  std::map<std::string, std::vector<int64_t>> table_shapes;  // of its tensors, by name
  std::vector<QuantizedLayer> layers;
  std::vector<std::string> plain_linears;  // linear modules of the blocks that kept their dtype
  // Those of them of which quantization_config does not say so.
  std::vector<std::string> unlisted_plain;
  // What no row of the model's table asks for and no layer has; empty if the table is not known.
  std::vector<std::string> stray_tensors;
  bool has_tokenizer = false;
  // The folder's own faults: every loader fails on them.
  Findings faults;
};

// kInvalidArgument if there is no config.json that is a JSON object.
absl::StatusOr<LoadedFolder> ReadLoadedFolder(const std::string& folder);

// Of one quant_method each: fill `layers` and add to `faults`. `parts` gets the names of all
// tensors that belong to a layer. The index and config are read.
void ReadTorchaoLayers(LoadedFolder& folder, std::vector<std::string>* parts);
void ReadCompressedTensorsLayers(LoadedFolder& folder, std::vector<std::string>* parts);
// GPTQ, AWQ, and auto-round in either's packing.
void ReadGptqLayers(LoadedFolder& folder, std::vector<std::string>* parts);

// For readers of layers. The tensor MODULE.PART, or nullptr and a fault; `what` says what it holds.
const CheckpointTensor* FindPart(LoadedFolder& folder, const std::string& module,
                                 const std::string& part, const char* what);
// A fault unless the tensor has one of `dtypes` and the shape.
void ExpectTensor(LoadedFolder& folder, const CheckpointTensor& tensor,
                  const std::vector<DType>& dtypes, const std::vector<int64_t>& shape);
// [out_features, in_features] by the model's table; nullopt if that is not known.
std::optional<std::vector<int64_t>> TableShape(const LoadedFolder& folder,
                                               const std::string& module);
// The value of a key of quantization_config, or `otherwise` where it is absent or null; a fault,
// and `otherwise`, where it has another type.
int64_t ConfigInt(LoadedFolder& folder, const Json& object, const std::string& key,
                  int64_t otherwise);
bool ConfigBool(LoadedFolder& folder, const Json& object, const std::string& key, bool otherwise);
std::string ConfigText(LoadedFolder& folder, const Json& object, const std::string& key,
                       const std::string& otherwise);

// A regular expression of a config, as Python's re.match takes it: matched at the start of a name.
class NamePattern {
 public:
  explicit NamePattern(const std::string& pattern);
  // False for what Python knows and RE2 does not: such a pattern can't be judged here.
  bool valid() const;
  bool MatchesStart(const std::string& name) const;

 private:
  std::shared_ptr<const re2::RE2> expression_;
};

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_LOADER_RULES_LOADED_FOLDER_H_
