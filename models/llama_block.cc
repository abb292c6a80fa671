#include "models/llama_block.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>

#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "models/rms_norm.h"
#include "models/rotary.h"

namespace ptq {
namespace {

constexpr const char* kProjectionNames[] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

absl::Status MissingModule(const std::string& module) {
  return absl::InvalidArgumentError(absl::StrFormat("the checkpoint has no %s", module));
}

absl::StatusOr<at::Tensor> FindNorm(const BlockWeights& weights, const std::string& module) {
  for (const BlockWeights::Norm& norm : weights.norms) {
    if (norm.module == module) {
      return norm.weight;
    }
  }
  return MissingModule(module);
}

// Query, key and value [B, T, heads, head_dim] -> [B, T, heads * head_dim].
at::Tensor CausalAttention(const at::Tensor& query, const at::Tensor& key,
                           const at::Tensor& value) {
  const int64_t groups = query.size(2) / key.size(2);
  // On CUDA only the half-precision kernels take fewer key than query heads; with enable_gqa
  // float32 would fall back to a T x T softmax, so its heads are repeated.
  const bool repeat = groups > 1 && query.is_cuda() && query.scalar_type() == at::kFloat;
  const auto heads_first = [&](const at::Tensor& states) {
    return (repeat ? states.repeat_interleave(groups, 2) : states).transpose(1, 2);
  };
  return at::scaled_dot_product_attention(query.transpose(1, 2), heads_first(key),
                                          heads_first(value), /*attn_mask=*/std::nullopt,
                                          /*dropout_p=*/0.0, /*is_causal=*/true,
                                          /*scale=*/std::nullopt,
                                          /*enable_gqa=*/groups > 1 && !repeat)
      .transpose(1, 2)
      .flatten(2);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LlamaBlock>> LlamaBlock::Create(const ModelConfig& config,
                                                               const std::string& name,
                                                               BlockWeights weights) {
  std::unique_ptr<LlamaBlock> block(new LlamaBlock);
  block->name_ = name;
  block->num_heads_ = config.num_attention_heads;
  block->num_key_value_heads_ = config.num_key_value_heads;
  block->head_dim_ = config.head_dim;
  block->rms_norm_eps_ = config.rms_norm_eps;
  PTQ_ASSIGN_OR_RETURN(block->input_norm_, FindNorm(weights, name + ".input_layernorm"));
  PTQ_ASSIGN_OR_RETURN(block->post_attention_norm_,
                       FindNorm(weights, name + ".post_attention_layernorm"));
  block->linears_ = std::move(weights.linears);
  for (size_t projection = 0; projection < kProjectionCount; ++projection) {
    const std::string module = name + "." + kProjectionNames[projection];
    size_t index = 0;
    while (index < block->linears_.size() && block->linears_[index].module != module) {
      ++index;
    }
    if (index == block->linears_.size()) {
      return MissingModule(module);
    }
    block->index_[projection] = index;
  }
  return block;
}

at::Tensor LlamaBlock::ForwardByTensors(const at::Tensor& hidden, const RotaryTable& rotary,
                                        const LinearFunction& apply) const {
  const at::Tensor attended =
      hidden + Attention(RmsNorm(hidden, input_norm_, rms_norm_eps_), rotary, apply);
  return attended + Mlp(RmsNorm(attended, post_attention_norm_, rms_norm_eps_), apply);
}

std::optional<GatedBlockParts> LlamaBlock::gated_parts() const {
  return GatedBlockParts{.query = index_[kQuery],
                         .key = index_[kKey],
                         .value = index_[kValue],
                         .output = index_[kOutput],
                         .gate = index_[kGate],
                         .up = index_[kUp],
                         .down = index_[kDown],
                         .input_norm = input_norm_,
                         .post_attention_norm = post_attention_norm_,
                         .rms_norm_eps = rms_norm_eps_,
                         .num_heads = num_heads_,
                         .num_key_value_heads = num_key_value_heads_,
                         .head_dim = head_dim_};
}

at::Tensor LlamaBlock::Attention(const at::Tensor& input, const RotaryTable& rotary,
                                 const LinearFunction& apply) const {
  const auto project = [&](Projection projection, int64_t heads) {
    return apply(index_[projection], input).unflatten(-1, {heads, head_dim_});
  };
  const at::Tensor query = ApplyRotary(project(kQuery, num_heads_), rotary);
  const at::Tensor key = ApplyRotary(project(kKey, num_key_value_heads_), rotary);
  const at::Tensor value = project(kValue, num_key_value_heads_);
  return apply(index_[kOutput], CausalAttention(query, key, value));
}

at::Tensor LlamaBlock::Mlp(const at::Tensor& input, const LinearFunction& apply) const {
  const at::Tensor gate = at::silu(apply(index_[kGate], input));
  return apply(index_[kDown], gate * apply(index_[kUp], input));
}

}  // namespace ptq
