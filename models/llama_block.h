// The decoder block of the Llama family: pre-norm, grouped-query attention with rotary embeddings,
// gated MLP; biases where the checkpoint has them.
#ifndef PTQ_MODELS_LLAMA_BLOCK_H_
#define PTQ_MODELS_LLAMA_BLOCK_H_

#include <ATen/core/Tensor.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/headers/model_config.h"
#include "models/decoder_block.h"

namespace ptq {

// A block's tensors as the tensor table lists them, on the compute device and in its dtype.
struct BlockWeights {
  struct Norm {
    std::string module;  // "model.layers.0.input_layernorm"
    at::Tensor weight;   // [D]
  };
  std::vector<Linear> linears;
  std::vector<Norm> norms;
};

class LlamaBlock final : public DecoderBlock {
 public:
  // `name` is the block's, "model.layers.0". kInvalidArgument naming a module that is missing.
  static absl::StatusOr<std::unique_ptr<LlamaBlock>> Create(const ModelConfig& config,
                                                            const std::string& name,
                                                            BlockWeights weights);

  const std::string& name() const override { return name_; }
  const std::vector<Linear>& linears() const override { return linears_; }
  std::vector<Linear>& mutable_linears() override { return linears_; }

  std::optional<GatedBlockParts> gated_parts() const override;

 private:
  enum Projection { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kProjectionCount };

  LlamaBlock() = default;
  at::Tensor ForwardByTensors(const at::Tensor& hidden, const RotaryTable& rotary,
                              const LinearFunction& apply) const override;
  at::Tensor Attention(const at::Tensor& input, const RotaryTable& rotary,
                       const LinearFunction& apply) const;
  at::Tensor Mlp(const at::Tensor& input, const LinearFunction& apply) const;

  std::string name_;
  std::vector<Linear> linears_;
  std::array<size_t, kProjectionCount> index_{};  // into linears_
  at::Tensor input_norm_;                         // [D]
  at::Tensor post_attention_norm_;                // [D]
  int64_t num_heads_ = 0;
  int64_t num_key_value_heads_ = 0;
  int64_t head_dim_ = 0;
  double rms_norm_eps_ = 0;
};

}  // namespace ptq

#endif  // PTQ_MODELS_LLAMA_BLOCK_H_
