// One weight that a model has quantized, before its record exists.
#ifndef PTQ_FORMATS_HEADERS_PLANNED_MODULE_H_
#define PTQ_FORMATS_HEADERS_PLANNED_MODULE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "common/quantization_scheme.h"
#include "formats/headers/dtype.h"
#include "formats/headers/tensor_table.h"

namespace ptq {

// Where a quantized weight stands in its model.
enum class ModulePlace {
  kBlock,          // a linear layer of a decoder block
  kEmbedding,      // of tokens, one row a token
  kTiedEmbedding,  // the same where it is the language-model head too
  kHead,           // the head, where it has a weight of its own
};

// None for a tensor that can't be quantized. `tied`: the model has no head but its embedding.
inline std::optional<ModulePlace> PlaceOf(const TableTensor& tensor, bool tied) {
  if (tensor.role == TensorRole::kLinearWeight && tensor.block >= 0) return ModulePlace::kBlock;
  if (tensor.part == TensorPart::kHead) return ModulePlace::kHead;
  if (tensor.part != TensorPart::kTokenEmbedding) return std::nullopt;
  return tied ? ModulePlace::kTiedEmbedding : ModulePlace::kEmbedding;
}

// What is outside of the decoder blocks 0 .. n-1 is numbered with them: the embedding comes before
// the first one, and the head is block n.
inline constexpr int64_t kEmbeddingBlock = -1;
inline int64_t BlockOf(const TableTensor& tensor, int64_t block_count) {
  if (tensor.block >= 0) return tensor.block;
  return tensor.role == TensorRole::kEmbedding ? kEmbeddingBlock : block_count;
}

struct PlannedModule {
  std::string module;  // "model.layers.0.mlp.down_proj"
  int64_t out_features = 0;
  int64_t in_features = 0;
  QuantizationScheme scheme;
  DType original_dtype = DType::kF32;  // of the weight before it was quantized
  DType scale_dtype = DType::kF16;     // of the record: F16, BF16 or F32
  bool transposed = false;             // the source's weight lies as [in, out]; a record never does
  ModulePlace place = ModulePlace::kBlock;
};

// The dtype of the scales that a job makes by `rule` of weights in `original`.
inline DType ScaleDTypeOf(ScaleRule rule, DType original) {
  return rule == ScaleRule::kTorchao ? original : DType::kF16;
}

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_PLANNED_MODULE_H_
