// The decoder block of every family: attention and MLP, each added to the hidden states, with norms
// wherever the family's tensor table has one.
#ifndef PTQ_MODELS_TRANSFORMER_BLOCK_H_
#define PTQ_MODELS_TRANSFORMER_BLOCK_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/headers/model_config.h"
#include "models/attention.h"
#include "models/block_weights.h"
#include "models/decoder_block.h"
#include "models/mlp.h"

namespace ptq {

class TransformerBlock final : public DecoderBlock {
 public:
  // Block `block` of the model. kInvalidArgument naming what is missing.
  static absl::StatusOr<std::unique_ptr<TransformerBlock>> Create(const ModelConfig& config,
                                                                  int64_t block,
                                                                  const BlockWeights& weights);

  const std::string& name() const override { return name_; }
  const std::vector<Linear>& linears() const override { return linears_; }
  std::vector<Linear>& mutable_linears() override { return linears_; }

  std::optional<GatedBlockParts> gated_parts(int64_t length) const override;

 private:
  TransformerBlock() = default;
  at::Tensor ForwardByTensors(const at::Tensor& hidden, const RotaryTable& rotary,
                              const LinearFunction& apply) const override;
  // hidden + multiplier * norm(branch).
  at::Tensor Add(const at::Tensor& hidden, const at::Tensor& branch,
                 const std::optional<Norm>& norm) const;

  std::string name_;
  std::vector<Linear> linears_;
  std::unique_ptr<Attention> attention_;
  std::unique_ptr<Mlp> mlp_;
  // Each may be absent: most families have the two input norms, some the two output norms, some
  // all.
  std::optional<Norm> attention_input_norm_;
  std::optional<Norm> attention_output_norm_;
  std::optional<Norm> mlp_input_norm_;
  std::optional<Norm> mlp_output_norm_;
  bool parallel_ = false;
  double residual_multiplier_ = 1;
};

}  // namespace ptq

#endif  // PTQ_MODELS_TRANSFORMER_BLOCK_H_
