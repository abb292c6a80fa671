#include "models/latent_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/status_macros.h"
#include "models/causal_attention.h"
#include "models/norm.h"
#include "models/rotary.h"

namespace ptq {
namespace {

// transformers gives the latents' norms their default, whatever rms_norm_eps is.
constexpr double kLatentNormEpsilon = 1e-6;

// states [B, T, heads, head_dim] with zeros behind, up to `width`.
at::Tensor PadHeads(const at::Tensor& states, int64_t width) {
  const int64_t missing = width - states.size(-1);
  return missing == 0 ? states : at::constant_pad_nd(states, {0, missing}, 0);
}

// Heads of one width are what the kernels without a T x T softmax take; zeros change no score.
at::Tensor Attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  double scale) {
  const int64_t width = std::max(query.size(-1), value.size(-1));
  return CausalAttention(PadHeads(query, width), PadHeads(key, width), PadHeads(value, width),
                         {.scale = scale})
      .unflatten(-1, {-1, width})
      .narrow(-1, 0, value.size(-1))
      .flatten(2);
}

class BlockLatentAttention final : public Attention {
 public:
  explicit BlockLatentAttention(LatentAttention parts) : parts_(std::move(parts)) {}
  at::Tensor Forward(const at::Tensor& input, const RotaryTable& rotary,
                     const LinearFunction& apply) const override {
    return ApplyLatentAttention(parts_, input, rotary, apply);
  }
  bool Describe(int64_t, GatedBlockParts*) const override { return false; }

 private:
  LatentAttention parts_;
};

}  // namespace

double LatentAttentionScale(const LatentAttentionConfig& config, const RopeConfig& rope) {
  const double scale = 1 / std::sqrt(static_cast<double>(config.head_dim()));
  if (rope.type == RopeConfig::Type::kDefault || rope.mscale_all_dim == 0) return scale;
  const double magnitude = YarnMagnitude(rope.factor, rope.mscale_all_dim);
  return scale * magnitude * magnitude;
}

at::Tensor ApplyLatentAttention(const LatentAttention& attention, const at::Tensor& input,
                                const RotaryTable& rotary, const LinearFunction& apply) {
  const LatentAttentionConfig& config = attention.config;
  const auto rotate = [&](const at::Tensor& states) {
    return config.interleaved ? ApplyInterleavedRotary(states, rotary)
                              : ApplyRotary(states, rotary);
  };
  const auto normalize = [](const at::Tensor& latent, const at::Tensor& weight) {
    return ApplyNorm({.weight = weight, .kind = NormKind::kRms, .epsilon = kLatentNormEpsilon},
                     latent);
  };
  const auto heads = [&](const at::Tensor& projected, int64_t width) {
    return projected.unflatten(-1, {attention.heads, width});
  };
  // Layers with one input come one after the other: observers look at it once.
  at::Tensor query;
  at::Tensor down;
  if (config.query_rank > 0) {
    const at::Tensor latent = apply(attention.query_down, input);
    down = apply(attention.key_value_down, input);
    query = apply(attention.query, normalize(latent, attention.query_norm));
  } else {
    query = apply(attention.query, input);
    down = apply(attention.key_value_down, input);
  }
  query = heads(query, config.head_dim());
  const at::Tensor key_value =
      heads(apply(attention.key_value,
                  normalize(down.narrow(-1, 0, config.key_value_rank), attention.key_value_norm)),
            config.plain_head_dim + config.value_head_dim);

  const at::Tensor rotated_query =
      rotate(query.narrow(-1, config.plain_head_dim, config.rotary_head_dim));
  const at::Tensor rotated_key =  // one head for all
      rotate(down.narrow(-1, config.key_value_rank, config.rotary_head_dim).unsqueeze(2));
  const at::Tensor whole_query =
      at::cat({query.narrow(-1, 0, config.plain_head_dim), rotated_query}, -1);
  const at::Tensor whole_key = at::cat({key_value.narrow(-1, 0, config.plain_head_dim),
                                        rotated_key.expand({-1, -1, attention.heads, -1})},
                                       -1);
  const at::Tensor value = key_value.narrow(-1, config.plain_head_dim, config.value_head_dim);
  return apply(attention.output, Attend(whole_query, whole_key, value, attention.scale));
}

absl::StatusOr<std::unique_ptr<Attention>> MakeLatentAttention(const ModelConfig& config,
                                                               const BlockWeights& weights) {
  LatentAttention parts;
  parts.config = config.latent_attention;
  parts.heads = config.num_attention_heads;
  parts.scale = LatentAttentionScale(config.latent_attention, config.rope);
  if (parts.config.query_rank > 0) {
    PTQ_ASSIGN_OR_RETURN(parts.query_down, weights.LinearOf(TensorPart::kQueryDown));
    PTQ_ASSIGN_OR_RETURN(const Norm norm, weights.NeededNormOf(TensorPart::kQueryLatentNorm));
    parts.query_norm = norm.weight;
  }
  PTQ_ASSIGN_OR_RETURN(parts.query, weights.LinearOf(TensorPart::kQuery));
  PTQ_ASSIGN_OR_RETURN(parts.key_value_down, weights.LinearOf(TensorPart::kKeyValueDown));
  PTQ_ASSIGN_OR_RETURN(parts.key_value, weights.LinearOf(TensorPart::kKeyValue));
  PTQ_ASSIGN_OR_RETURN(parts.output, weights.LinearOf(TensorPart::kAttentionOutput));
  PTQ_ASSIGN_OR_RETURN(const Norm norm, weights.NeededNormOf(TensorPart::kKeyValueLatentNorm));
  parts.key_value_norm = norm.weight;
  return std::make_unique<BlockLatentAttention>(std::move(parts));
}

}  // namespace ptq
