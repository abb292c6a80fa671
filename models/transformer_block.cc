#include "models/transformer_block.h"

#include <ATen/TensorOperators.h>

#include "common/status_macros.h"

namespace ptq {
namespace {

at::Tensor Normalized(const std::optional<Norm>& norm, const at::Tensor& hidden) {
  return norm ? ApplyNorm(*norm, hidden) : hidden;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TransformerBlock>> TransformerBlock::Create(
    const ModelConfig& config, int64_t block, const BlockWeights& weights) {
  std::unique_ptr<TransformerBlock> result(new TransformerBlock);
  result->name_ = weights.name();
  result->linears_ = weights.linears();
  PTQ_ASSIGN_OR_RETURN(result->attention_, MakeAttention(config, block, weights));
  PTQ_ASSIGN_OR_RETURN(result->mlp_, MakeMlp(config, weights));
  result->attention_input_norm_ = weights.NormOf(TensorPart::kAttentionInputNorm);
  result->attention_output_norm_ = weights.NormOf(TensorPart::kAttentionOutputNorm);
  result->mlp_input_norm_ = weights.NormOf(TensorPart::kMlpInputNorm);
  result->mlp_output_norm_ = weights.NormOf(TensorPart::kMlpOutputNorm);
  result->parallel_ = config.parallel_residual;
  result->residual_multiplier_ = config.residual_multiplier;
  return result;
}

at::Tensor TransformerBlock::Add(const at::Tensor& hidden, const at::Tensor& branch,
                                 const std::optional<Norm>& norm) const {
  const at::Tensor normalized = Normalized(norm, branch);
  return hidden + (residual_multiplier_ == 1 ? normalized : normalized * residual_multiplier_);
}

at::Tensor TransformerBlock::ForwardByTensors(const at::Tensor& hidden, const RotaryTable& rotary,
                                              const LinearFunction& apply) const {
  const at::Tensor attended =
      Add(hidden, attention_->Forward(Normalized(attention_input_norm_, hidden), rotary, apply),
          attention_output_norm_);
  const at::Tensor& mlp_input = parallel_ ? hidden : attended;
  return Add(attended, mlp_->Forward(Normalized(mlp_input_norm_, mlp_input), apply),
             mlp_output_norm_);
}

std::optional<GatedBlockParts> TransformerBlock::gated_parts(int64_t length) const {
  const auto plain_rms = [](const std::optional<Norm>& norm) {
    return norm && norm->kind == NormKind::kRms;
  };
  GatedBlockParts parts;
  if (parallel_ || residual_multiplier_ != 1 || attention_output_norm_ || mlp_output_norm_ ||
      !plain_rms(attention_input_norm_) || !plain_rms(mlp_input_norm_) ||
      !attention_->Describe(length, &parts) || !mlp_->Describe(&parts)) {
    return std::nullopt;
  }
  parts.input_norm = attention_input_norm_->weight;
  parts.post_attention_norm = mlp_input_norm_->weight;
  parts.rms_norm_eps = attention_input_norm_->epsilon;
  return parts;
}

}  // namespace ptq
