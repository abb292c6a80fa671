// A model family declared as a table: every tensor of the checkpoint with its shape and its role.
// Inspection checks a checkpoint against it, models/ loads by it, exporters walk it. The rows of
// each family stand in families/ (family.h).
#ifndef PTQ_FORMATS_HEADERS_TENSOR_TABLE_H_
#define PTQ_FORMATS_HEADERS_TENSOR_TABLE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "formats/headers/checkpoint_index.h"
#include "formats/headers/model_config.h"

namespace ptq {

// What is done with a tensor.
enum class TensorRole { kEmbedding, kNorm, kNormBias, kLinearWeight, kLinearBias, kRouter, kHead };

// Where it stands in the computation, whatever its family calls it.
enum class TensorPart {
  kTokenEmbedding,
  kPositionEmbedding,
  // Of a block, in the order of the computation. Norms that a family does not have are absent.
  kAttentionInputNorm,
  kQuery,
  kKey,
  kValue,
  kQueryKeyValue,  // fused; AttentionOptions::fused_by_head
  kQueryNorm,      // [head_dim], or over all heads
  kKeyNorm,
  // Of latent attention, where kQuery may start from a latent too.
  kQueryDown,
  kQueryLatentNorm,
  kKeyValueDown,
  kKeyValueLatentNorm,
  kKeyValue,
  kAttentionOutput,
  kAttentionOutputNorm,  // of what attention adds to the hidden states
  kMlpInputNorm,
  // In blocks with experts: which ones a token goes to.
  kRouter,
  kRouterCorrection,  // kept in float32
  kSharedExpertGate,
  // Of the MLP; or of each routed expert, and without a number of the shared one.
  kGate,
  kUp,
  kGateUp,  // fused: all of gate, then all of up
  kDown,
  kMlpOutputNorm,  // of what the MLP adds
  // Of the whole model.
  kFinalNorm,
  kHead,
};

struct TableTensor {
  std::string name;    // "model.layers.0.self_attn.q_proj.weight"
  std::string module;  // "model.layers.0.self_attn.q_proj"
  TensorRole role = TensorRole::kNorm;
  TensorPart part = TensorPart::kFinalNorm;
  std::vector<int64_t> shape;  // linear weights: [out_features, in_features]
  bool transposed = false;     // a linear weight that lies in the checkpoint as [in, out]
  int64_t block = -1;          // decoder block, or -1 outside of the blocks
  int64_t expert = -1;         // of the block's experts, or -1
  // Linear layers that loaders fuse into one share this name: "model.layers.0.self_attn.qkv",
  // "model.layers.0.mlp.gate_up". They need one scheme. Empty: fused with no other.
  std::string fused_set;

  // In the checkpoint.
  std::vector<int64_t> stored_shape() const {
    return transposed ? std::vector<int64_t>(shape.rbegin(), shape.rend()) : shape;
  }
};

// All tensors that a checkpoint of `config` holds, in the model's order: embedding, blocks, final
// norm, head (absent if tied). config.model_type must be a supported one.
std::vector<TableTensor> BuildTensorTable(const ModelConfig& config);
// Those of block `block` alone; empty if there is no such block.
std::vector<TableTensor> BuildBlockTable(const ModelConfig& config, int64_t block);
// "model.layers.0".
std::string BlockName(const ModelConfig& config, int64_t block);

// True if ParseModelConfig accepts this model_type.
bool IsSupportedModelType(const std::string& model_type);
// "llama", ...: for messages and Capabilities.
std::vector<std::string> SupportedModelTypes();
// "LlamaForCausalLM" for "llama"; "" for a model_type that is not supported.
std::string ArchitectureOf(const std::string& model_type);

// Compares a checkpoint with its config's table. kInvalidArgument naming the tensor: missing,
// another shape, a dtype that is not F32, F16 or BF16; or an extra tensor inside a block of the
// table. Extra tensors that transformers ignores (rotary inv_freq buffers, lm_head.weight of a tied
// model) pass. A checkpoint that is already quantized is said to be so, by the names or dtypes of
// its tensors. `outside`, if given, gets the sorted names that no row of the table asks for, rotary
// buffers aside: what quantization leaves out.
absl::Status CheckAgainstTable(const CheckpointIndex& index, const ModelConfig& config,
                               std::vector<std::string>* outside = nullptr);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_TENSOR_TABLE_H_
