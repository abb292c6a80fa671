#include "models/attention.h"

#include <ATen/TensorOperators.h>

#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "models/causal_attention.h"
#include "models/latent_attention.h"
#include "models/rotary.h"

namespace ptq {
namespace {

// Query heads that share key and value heads.
class GroupedAttention final : public Attention {
 public:
  static absl::StatusOr<std::unique_ptr<Attention>> Create(const ModelConfig& config, int64_t block,
                                                           const BlockWeights& weights);

  at::Tensor Forward(const at::Tensor& input, const RotaryTable& rotary,
                     const LinearFunction& apply) const override;
  bool Describe(int64_t length, GatedBlockParts* parts) const override;

 private:
  struct Heads {  // [B, T, heads, head_dim]
    at::Tensor query;
    at::Tensor key;
    at::Tensor value;
  };
  Heads Project(const at::Tensor& input, const LinearFunction& apply) const;
  // Of states [B, T, heads, head_dim]: of each head, or of all together.
  at::Tensor Normalize(const std::optional<Norm>& norm, const at::Tensor& states) const;

  bool fused_ = false;
  bool fused_by_head_ = false;
  size_t query_ = 0;  // of all three, if fused
  size_t key_ = 0;
  size_t value_ = 0;
  size_t output_ = 0;
  std::optional<Norm> query_norm_;
  std::optional<Norm> key_norm_;
  int64_t num_heads_ = 0;
  int64_t num_key_value_heads_ = 0;
  int64_t head_dim_ = 0;
  int64_t rotary_dim_ = 0;
  bool local_rotary_ = false;
  CausalAttentionOptions options_;
};

std::optional<double> ScaleOf(const ModelConfig& config, int64_t block) {
  const AttentionOptions& options = config.attention;
  if (options.scale == 0 && !options.scale_by_inverse_layer) return std::nullopt;
  const double scale =
      options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(config.head_dim));
  return options.scale_by_inverse_layer ? scale / static_cast<double>(block + 1) : scale;
}

absl::StatusOr<std::unique_ptr<Attention>> GroupedAttention::Create(const ModelConfig& config,
                                                                    int64_t block,
                                                                    const BlockWeights& weights) {
  auto attention = std::make_unique<GroupedAttention>();
  attention->fused_ = weights.Has(TensorPart::kQueryKeyValue);
  attention->fused_by_head_ = config.attention.fused_by_head;
  if (attention->fused_) {
    PTQ_ASSIGN_OR_RETURN(attention->query_, weights.LinearOf(TensorPart::kQueryKeyValue));
  } else {
    PTQ_ASSIGN_OR_RETURN(attention->query_, weights.LinearOf(TensorPart::kQuery));
    PTQ_ASSIGN_OR_RETURN(attention->key_, weights.LinearOf(TensorPart::kKey));
    PTQ_ASSIGN_OR_RETURN(attention->value_, weights.LinearOf(TensorPart::kValue));
  }
  PTQ_ASSIGN_OR_RETURN(attention->output_, weights.LinearOf(TensorPart::kAttentionOutput));
  attention->query_norm_ = weights.NormOf(TensorPart::kQueryNorm);
  attention->key_norm_ = weights.NormOf(TensorPart::kKeyNorm);
  attention->num_heads_ = config.num_attention_heads;
  attention->num_key_value_heads_ = config.num_key_value_heads;
  attention->head_dim_ = config.head_dim;
  attention->rotary_dim_ = config.RotaryDim();
  attention->options_ = {.scale = ScaleOf(config, block),
                         .soft_cap = config.attention.soft_cap,
                         .window = config.WindowOf(block)};
  attention->local_rotary_ = config.local_rope.has_value() && config.IsSliding(block);
  return attention;
}

GroupedAttention::Heads GroupedAttention::Project(const at::Tensor& input,
                                                  const LinearFunction& apply) const {
  if (!fused_) {
    const auto project = [&](size_t linear, int64_t heads) {
      return apply(linear, input).unflatten(-1, {heads, head_dim_});
    };
    Heads heads;
    heads.query = project(query_, num_heads_);
    heads.key = project(key_, num_key_value_heads_);
    heads.value = project(value_, num_key_value_heads_);
    return heads;
  }
  const at::Tensor all = apply(query_, input);
  if (fused_by_head_) {
    const std::vector<at::Tensor> parts =
        all.unflatten(-1, {num_heads_, 3 * head_dim_}).split(head_dim_, -1);
    return {parts[0], parts[1], parts[2]};
  }
  const at::Tensor heads = all.unflatten(-1, {num_heads_ + 2 * num_key_value_heads_, head_dim_});
  return {heads.narrow(2, 0, num_heads_), heads.narrow(2, num_heads_, num_key_value_heads_),
          heads.narrow(2, num_heads_ + num_key_value_heads_, num_key_value_heads_)};
}

at::Tensor GroupedAttention::Normalize(const std::optional<Norm>& norm,
                                       const at::Tensor& states) const {
  if (!norm) return states;
  if (norm->weight.size(0) == head_dim_) return ApplyNorm(*norm, states);
  return ApplyNorm(*norm, states.flatten(2)).view(states.sizes());
}

at::Tensor GroupedAttention::Forward(const at::Tensor& input, const RotaryTable& rotary,
                                     const LinearFunction& apply) const {
  const Heads heads = Project(input, apply);
  at::Tensor query = Normalize(query_norm_, heads.query);
  at::Tensor key = Normalize(key_norm_, heads.key);
  if (rotary_dim_ > 0) {
    const RotaryTable& own = local_rotary_ ? *rotary.local : rotary;
    query = ApplyRotary(query, own);
    key = ApplyRotary(key, own);
  }
  return apply(output_, CausalAttention(query, key, heads.value, options_));
}

bool GroupedAttention::Describe(int64_t length, GatedBlockParts* parts) const {
  if (fused_ || query_norm_ || key_norm_ || rotary_dim_ != head_dim_ || local_rotary_ ||
      options_.soft_cap > 0 || options_.scale.has_value() ||
      (options_.window > 0 && options_.window < length)) {
    return false;
  }
  parts->query = query_;
  parts->key = key_;
  parts->value = value_;
  parts->output = output_;
  parts->num_heads = num_heads_;
  parts->num_key_value_heads = num_key_value_heads_;
  parts->head_dim = head_dim_;
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Attention>> MakeAttention(const ModelConfig& config, int64_t block,
                                                         const BlockWeights& weights) {
  if (config.latent_attention.key_value_rank > 0) return MakeLatentAttention(config, weights);
  return GroupedAttention::Create(config, block, weights);
}

}  // namespace ptq
