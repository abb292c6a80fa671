// What torchao's safetensors layout says beside the tensors: the names of inner tensors, the
// strings in a shard's __metadata__, and transformers' quantization_config (torchao 0.18,
// prototype/safetensors). No libtorch types: the record check decodes with this file alone.
#ifndef PTQ_FORMATS_TORCHAO_METADATA_H_
#define PTQ_FORMATS_TORCHAO_METADATA_H_

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/json.h"
#include "common/quantization_scheme.h"
#include "formats/headers/dtype.h"

namespace ptq {

// The tensor classes that we write.
enum class TorchaoClass {
  kIntxUnpackedToInt8,  // codes of 2..8 bits, one a byte; scale as recorded
  kInt8,                // 8 bits, symmetric, one scale a row, in float32
  // Not torchao's: a K-quant in a job's records, which the affine format refuses.
  kKQuant,
};

// The class for a scheme: kInt8 for 8-bit symmetric per channel, whose matmul ignores zero points
// and knows no groups; the other one for all else.
TorchaoClass TorchaoClassOf(const QuantizationScheme& scheme);

// "<module>._weight_<data>": the tensor in the file; `data` is "qdata", "scale" or "zero_point".
std::string TorchaoTensorName(const std::string& module, const std::string& data);

// One parameter of the model as the metadata list it.
struct TorchaoParameter {
  std::string name;        // "model.layers.0.self_attn.q_proj.weight"
  bool quantized = false;  // the rest belongs to quantized ones
  QuantizationScheme scheme{};
  int64_t out_features = 0;
  int64_t in_features = 0;
};

// The __metadata__ of every shard: all `parameters` of the model in their order, "tensor_names",
// "format": "pt", and under "ptqd" what torchao has no field for. `dtype` is what the weights
// decode to.
std::map<std::string, std::string> TorchaoMetadata(const std::vector<TorchaoParameter>& parameters,
                                                   DType dtype, ScaleRule scale_rule);

// One quantized parameter's string, read back.
struct TorchaoTensorDescription {
  TorchaoClass tensor_class = TorchaoClass::kIntxUnpackedToInt8;
  int bits = 0;
  std::array<int64_t, 2> block_size{};
  KQuant k_quant = KQuant::kNone;
  DType dtype = DType::kF32;
};
// kInvalidArgument for anything but a string that TorchaoMetadata makes for a quantized parameter.
absl::StatusOr<TorchaoTensorDescription> ParseTorchaoTensor(const std::string& text);

// config.json's "quantization_config". `skipped` names linear modules that keep their dtype, the
// head too if it does; `embedding`: the tokens' embedding is quantized.
Json TorchaoQuantizationConfig(const QuantizationScheme& default_scheme,
                               const std::vector<std::string>& skipped, bool embedding);

// JSON as Python's json.dumps writes it: ", " and ": ", ASCII only.
std::string DumpJsonLikePython(const Json& value);

}  // namespace ptq

#endif  // PTQ_FORMATS_TORCHAO_METADATA_H_
